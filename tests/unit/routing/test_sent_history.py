"""What was sent where, against a plain list of all prompts."""

import hashlib
import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.routing.history import MOST_HASHES, STEPS, History, grid


def hashes(*texts: str) -> np.ndarray:
    """Chained: a letter's hash covers all letters before it."""
    text = "".join(texts)
    digests = (hashlib.blake2b(text[: n + 1].encode(), digest_size=8) for n in range(len(text)))
    return np.frombuffer(b"".join(one.digest() for one in digests), np.uint64)


def test_the_grid_is_dense_in_proportion() -> None:
    counts = grid(MOST_HASHES)
    assert counts[: 2 * STEPS] == list(range(1, 2 * STEPS + 1))
    assert all((b - a) * STEPS <= a for a, b in itertools.pairwise(counts[2 * STEPS :]))
    assert counts[-1] == MOST_HASHES
    assert len(grid(8192)) < 180


# Few letters and prompts that share beginnings; long ones so that the grid has gaps.
texts = st.builds(
    lambda start, count, end: start * count + end,
    st.sampled_from(["a", "ab", "b"]),
    st.integers(0, 60),
    st.text("abc", max_size=12),
).filter(bool)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9), st.sampled_from("xyz"), texts),
        st.tuples(st.just("settle"), st.integers(0, 9), st.floats(0, 20), st.none()),
        st.tuples(st.just("drop"), st.integers(0, 9), st.none(), st.none()),
        st.tuples(st.just("forget"), st.none(), st.sampled_from("xyz"), st.none()),
        st.tuples(st.just("pass"), st.floats(0, 10), st.none(), st.none()),
    ),
    max_size=25,
)


def common(one: str, other: str) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


@given(actions, texts)
def test_matches_are_those_of_a_plain_list(told: list, asked: str) -> None:
    history = History(1000)
    plain: dict[str, list] = {}  # id -> [replica, text, until]
    junctions: dict[
        str, list[tuple[int, str]]
    ] = {}  # replica -> where a prompt parted, and the prompt
    now = 0.0
    for kind, first, second, text in told:
        if kind == "pass":
            now += first
        elif kind == "add":
            before = [
                one for name, (to, one, _) in plain.items() if to == second and name != str(first)
            ]
            parted = max((common(one, text) for one in before), default=0)
            junctions.setdefault(second, []).append((parted, text))
            history.add(str(first), second, hashes(text), now, now + 15)
            plain.pop(str(first), None)
            plain[str(first)] = [second, text, now + 15]
        elif kind == "settle":
            history.settle(str(first), now, now + second)
            if str(first) in plain:
                plain[str(first)][2] = min(plain[str(first)][2], now + second)
        elif kind == "drop":
            history.drop(str(first))
            plain.pop(str(first), None)
        else:
            history.forget(second)
            plain = {name: one for name, one in plain.items() if one[0] != second}
    live = [(name, replica, text) for name, (replica, text, until) in plain.items() if until >= now]
    exact: dict[str, int] = {}
    ends: dict[str, int] = {}
    for _, replica, text in live:
        exact[replica] = max(exact.get(replica, 0), common(text, asked))
        if asked.startswith(text):
            ends[replica] = max(ends.get(replica, 0), len(text))
    found = history.match(hashes(asked), now)
    for replica, count in found.items():
        assert ends.get(replica, 0) <= count <= exact[replica]
    continued = history.match(hashes(asked), now, every=0)
    shared = {
        replica: max(min(parted, common(text, asked)) for parted, text in those)
        for replica, those in junctions.items()
    }
    for replica, count in continued.items():
        assert count <= max(ends.get(replica, 0), shared[replica])
    if not any(kind in ("drop", "forget", "settle", "pass") for kind, *_ in told):
        # Nothing was taken back, so that no newer prompt can have hidden an older one.
        for replica, count in exact.items():
            assert found.get(replica, 0) > count * (1 - 1 / STEPS) - 1
        if len({text for _, _, text in live}) == len(live):
            assert all(continued.get(replica, 0) >= count for replica, count in ends.items())


@given(st.lists(texts, max_size=30), st.integers(1, 5))
def test_memory_is_bounded_and_all_of_it_is_given_back(prompts: list[str], most: int) -> None:
    history = History(most)
    for number, text in enumerate(prompts):
        history.add(str(number), "xyz"[number % 3], hashes(text), 0.0, 10.0)
        assert len(history) <= most
        assert history.keys <= most * 200
    for replica in "xyz":
        history.forget(replica)
    assert (len(history), history.keys) == (0, 0)


def test_prompts_that_count_no_more_leave_by_themselves() -> None:
    history = History()
    for number in range(100):
        history.add(str(number), "x", hashes(f"{number:03}"), float(number), number + 5.0)
        history.settle(str(number), float(number), number + 1.0)
    assert len(history) <= 3
    assert history.match(hashes("150"), 99.0) == {}
    assert history.match(hashes("099"), 99.5) == {"x": 3}


def test_where_two_prompts_part_counts_only_for_models_that_can_resume_there() -> None:
    history = History()
    history.add("1", "x", hashes("system", "one"), 0.0, 10.0)
    asked = hashes("system", "two")
    assert history.match(asked, 0.0) == {"x": 6}
    assert history.match(asked, 0.0, every=0) == {}
    assert history.match(hashes("system", "one", "and on"), 0.0, every=0) == {"x": 9}


def test_with_a_retention_interval_prompts_part_at_its_multiples() -> None:
    history = History()
    history.add("1", "x", hashes("system", "one"), 0.0, 10.0)
    asked = hashes("system", "two")
    assert history.match(asked, 0.0, every=4) == {"x": 4}
    assert history.match(asked, 0.0, every=7) == {}
    assert history.match(hashes("system", "one", "and on"), 0.0, every=4) == {"x": 9}


def test_the_second_prompt_with_a_beginning_leaves_a_junction_on_its_replica() -> None:
    history = History()
    history.add("1", "x", hashes("system", "one"), 0.0, 10.0)
    history.add("2", "y", hashes("system", "two"), 0.0, 10.0)
    asked = hashes("system", "three")
    assert history.match(asked, 0.0, every=0) == {}
    history.add("3", "x", hashes("system", "ten"), 0.0, 10.0)
    assert history.match(asked, 0.0, every=0) == {"x": 6}
    assert history.match(hashes("sys"), 0.0, every=0) == {}
    # The first may be gone: the windows are the second's.
    history.drop("1")
    assert history.match(asked, 0.0, every=0) == {"x": 6}
    history.drop("3")
    assert history.match(asked, 0.0, every=0) == {}


def test_an_answer_does_not_grow_with_the_holders_of_a_hot_prefix() -> None:
    history = History(10_000)
    prefix = hashes("system" * 100)
    for number in range(64):
        history.add(str(number), f"r{number}", prefix, 0.0, 10.0)
    assert history.match(prefix, 0.0) == {f"r{number}": 600 for number in range(64)}
