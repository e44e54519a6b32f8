"""Which field keeps two namespaces apart."""

import copy
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from kvstrata.doctor.facts import NamespaceFacts, ReplicaFacts
from kvstrata.doctor.findings import Finding
from kvstrata.doctor.replicas import (
    FIELD_REMEDIES,
    MOST_FIELDS,
    check_namespaces,
    check_replicas,
    differing_fields,
    flatten,
)

LEAF = st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=3)
NAMES = st.text("abc", min_size=1, max_size=3)
JSON = st.dictionaries(
    NAMES,
    st.recursive(
        LEAF,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(JSON, JSON)
def test_nothing_differs_exactly_between_equal_facts(one: Any, other: Any) -> None:
    assert differing_fields({"x": one, "y": copy.deepcopy(one)}) == {}
    if repr(sorted(flatten(one).items(), key=str)) != repr(sorted(flatten(other).items(), key=str)):
        assert differing_fields({"x": one, "y": other})


@given(JSON, st.data())
def test_a_changed_leaf_is_named(facts: dict[str, Any], data: st.DataObject) -> None:
    leaves = flatten(facts)
    assume(leaves)
    field = data.draw(st.sampled_from(sorted(leaves)))
    changed = copy.deepcopy(facts)
    *parents, last = field.split(".")
    holder: Any = changed
    for name in parents:
        holder = holder[int(name)] if isinstance(holder, list) else holder[name]
    holder[int(last) if isinstance(holder, list) else last] = "something else"
    assert list(differing_fields({"x": facts, "y": changed})) == [field]


def test_true_is_not_one() -> None:
    assert list(differing_fields({"x": {"a": True}, "y": {"a": 1}})) == ["a"]


def spaces(*covers: Any, model: str = "tiny") -> list[NamespaceFacts]:
    return [NamespaceFacts(f"tiny-{i}" + "0" * 31, model, one) for i, one in enumerate(covers)]


def subjects(findings: Any) -> list[str]:
    return [finding.subject for finding in findings if finding.code == "namespace-differs"]


def test_every_value_says_who_has_it_and_what_to_do() -> None:
    found = list(check_namespaces(spaces({"hash_seed": "default"}, {"hash_seed": "=1"}, {})))
    (finding,) = found
    assert finding.subject == "tiny: hash_seed"
    assert finding.message == "'default' in 00000000; '=1' in 10000000; absent in 20000000"
    assert "PYTHONHASHSEED" in finding.remedy


def test_a_nested_field_is_named_by_its_path() -> None:
    one = {"config": {"rope_parameters": {"rope_theta": "1e4"}}, "groups": [{"kind": "full"}]}
    other = copy.deepcopy(one)
    other["config"]["rope_parameters"]["rope_theta"] = "1e6"  # type: ignore[index, call-overload]
    other["groups"][0]["kind"] = "window"  # type: ignore[index, call-overload]
    assert subjects(check_namespaces(spaces(one, other))) == [
        "tiny: config.rope_parameters.rope_theta",
        "tiny: groups.0.kind",
    ]


def test_models_are_not_compared_with_each_other() -> None:
    found = check_namespaces(spaces({"a": 1}) + spaces({"a": 2}, model="other"))
    assert list(found) == []


def test_random_seeds_and_resets_do_not_hide_what_else_differs() -> None:
    found = list(
        check_namespaces(
            spaces(
                {"hash_seed": "random 1", "dtype": "float32"},
                {"hash_seed": "random 2", "dtype": "bfloat16"},
                {"hash_seed": "default", "dtype": "x", "reset": [1]},
            )
        )
    )
    assert [f.code for f in found] == ["namespace-random", "namespace-reset", "namespace-differs"]
    assert found[2].subject == "tiny: dtype"


def test_very_different_namespaces_are_summed_up() -> None:
    one = {f"f{i:02}": 1 for i in range(40)}
    found = list(check_namespaces(spaces(one, dict.fromkeys(one, 2))))
    assert len(found) == MOST_FIELDS + 1
    assert found[-1].subject == "tiny: 28 more fields"


def test_long_values_are_shortened() -> None:
    (finding,) = check_namespaces(spaces({"a": "x" * 5000}, {"a": "y"}))
    assert len(finding.message) < 200


def test_there_is_a_remedy_for_what_the_engine_says() -> None:
    """The fields of a real namespace, so that none ends with the general remedy."""
    assert {"weights", "config", "kv_cache", "groups", "parallel", "engine"} <= set(FIELD_REMEDIES)


# --- running engines -------------------------------------------------------------------------


def replica(url: str, **facts: Any) -> ReplicaFacts:
    return ReplicaFacts(url, **{"root": "/m/tiny", "version": "1", **facts})


def test_with_the_root_the_field_between_two_replicas_is_named() -> None:
    there = spaces({"label": ""}, {"label": "blue"}, {"label": "old", "weights": "old"})
    pair = [replica(f"http://{i}", namespace=there[i].directory) for i in range(2)]
    without = [finding.code for finding in check_replicas(pair)]
    assert without == ["replica-namespace"]
    assert subjects(check_replicas(pair, there)) == ["tiny: label"]  # and not the third one's


def test_replicas_that_could_not_be_asked_are_not_compared() -> None:
    down = replica("http://b", error="Connection refused", namespace="x")
    found = list(check_replicas([replica("http://a", namespace="y"), down]))
    assert [finding.code for finding in found] == ["replica-unreachable"]


def test_what_the_engine_found_at_its_start_is_said_once() -> None:
    one = replica(
        "http://a",
        codes=("prefix-caching-off", "state-block-size", "from-the-future"),
        settings={"enable_prefix_caching": "False"},
    )
    found: list[Finding] = list(check_replicas([one]))
    assert [finding.code for finding in found] == ["prefix-caching-off", "state-block-size"]
    assert "--block-size <size>" in found[1].remedy


def test_without_the_engine_s_word_its_settings_speak() -> None:
    one = replica("http://a", settings={"enable_prefix_caching": "False"}, hash_seed="random")
    assert [f.code for f in check_replicas([one])] == ["prefix-caching-off", "seed-random"]
