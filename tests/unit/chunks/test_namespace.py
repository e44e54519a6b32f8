"""Namespaces: every fact counts, and nothing else does."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks import namespace as namespace_module
from kvstrata.chunks.namespace import Namespace

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FINGERPRINT = "b876cf0ca98497aed409b5e039f19347"

facts = st.dictionaries(st.text(min_size=1, max_size=6), values, max_size=4).filter(
    lambda drawn: not {"record_version", "checksum"} & set(drawn)
)


@given(facts, facts)
def test_equal_facts_and_only_they_share_a_fingerprint(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    def text(value: dict[str, Any]) -> str:
        return json.dumps(value, sort_keys=True)

    same = Namespace("m", one).fingerprint == Namespace("m", other).fingerprint
    assert same == (text(one) == text(other))


def test_the_order_of_facts_does_not_count() -> None:
    assert (
        Namespace("m", {"a": 1, "b": {"c": 2, "d": 3}}).fingerprint
        == Namespace("m", {"b": {"d": 3, "c": 2}, "a": 1}).fingerprint
    )


def test_record_version_and_checksum_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Namespace("m", {}).fingerprint
    monkeypatch.setattr(namespace_module, "RECORD_VERSION", 99)
    versioned = Namespace("m", {}).fingerprint
    monkeypatch.setattr(namespace_module, "ALGORITHM", "other")
    assert len({before, versioned, Namespace("m", {}).fingerprint}) == 3


def test_the_fingerprint_is_stable_between_releases() -> None:
    assert Namespace("x", {"dtype": "float32"}).fingerprint.hex() == FINGERPRINT


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        ("meta-llama/Llama-3", "Llama-3"),
        ("/models/tiny/", "tiny"),
        ("a b:c", "a_b_c"),
        ("..", "model"),
        ("", "model"),
        ("ü", "model"),
        ("x" * 300, "x" * 64),
    ],
)
def test_directory_names_are_safe(model: str, prefix: str) -> None:
    name = Namespace(model, {}).directory_name
    assert name == f"{prefix}-{Namespace(model, {}).fingerprint.hex()}"


@given(st.text(max_size=90))
def test_any_model_name_is_safe_as_a_directory(model: str) -> None:
    assert re.fullmatch(
        r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}-[0-9a-f]{32}", Namespace(model, {}).directory_name
    )


def test_the_description_can_be_read_by_people() -> None:
    described = Namespace("org/x", {"dtype": "float32", "groups": [1, 2]})
    document = json.loads(described.to_json())
    assert document["model"] == "org/x"
    assert document["fingerprint"] == described.fingerprint.hex()
    assert document["covers"] == {
        "record_version": 1,
        "checksum": "xxh3-128",
        "dtype": "float32",
        "groups": [1, 2],
    }


def test_facts_that_are_no_json_are_our_own_bug() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = Namespace("m", {"scale": float("nan")}).fingerprint
