"""Estimates from a share of all hashes: right on average, and their intervals as sure as they say."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.key import make_key
from kvstrata.cli.estimates import CONFIDENCE, Sum
from kvstrata.cli.holdings import ALL, HOUR, Holdings, Seen


def coverage(parts: list[float], share: float, trials: int) -> tuple[float, float]:
    """How often the interval holds the true sum, and the mean estimate by that sum."""
    truth, held, mean = sum(parts), 0, 0.0
    for seed in range(trials):
        chance, seen = random.Random(seed), Sum()
        for part in parts:
            if chance.random() < share:
                seen.add(part)
        found = seen.estimate(share, typical=max(parts))
        held += found.low <= truth <= found.high
        mean += found.value / trials / truth
    return held / trials, mean


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("count", "sizes"), [(30, (1,)), (600, (1,)), (600, (1, 3, 20))])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    count: int, sizes: tuple[int, ...], share: float
) -> None:
    parts = [float(sizes[one % len(sizes)]) for one in range(count)]
    held, mean = coverage(parts, share, trials=400)
    assert held >= CONFIDENCE - 0.035
    assert mean == pytest.approx(1, abs=0.08)


def test_the_interval_is_no_wider_than_it_must_be() -> None:
    seen = Sum()
    for _ in range(400):
        seen.add(7.0)
    found = seen.estimate(0.01)
    assert found.value == 400 * 7 / 0.01
    assert found.error == pytest.approx(1.96 / math.sqrt(400), rel=0.1)


@given(st.lists(st.floats(0, 1e12), max_size=50), st.floats(1e-6, 1.0))
def test_what_holds_whatever_was_seen(parts: list[float], share: float) -> None:
    seen = Sum()
    for part in parts:
        seen.add(part)
    found = seen.estimate(share, typical=1.0)
    assert 0 <= found.low <= found.value * (1 + 1e-9) and found.value <= found.high * (1 + 1e-9)
    assert found.low >= min(seen.total, found.value) * (1 - 1e-9)
    if share == 1.0:
        assert found.exact and found.value == seen.total


def test_of_what_was_never_seen_there_may_be_some() -> None:
    found = Sum().estimate(0.01, typical=5.0)
    assert (found.value, found.low) == (0, 0)
    assert 5 * 300 < found.high < 5 * 400


def test_chunks_of_one_hash_are_drawn_together() -> None:
    """Two groups that always lie together say no more than one."""
    alone, paired = Holdings(), Holdings()
    for number in range(200):
        digest = number.to_bytes(32, "big")
        alone.add([Seen("n", make_key(digest, 0), 20.0, 0.0)])
        paired.add([Seen("n", make_key(digest, group), 10.0, 0.0) for group in range(2)])
    assert paired.nbytes(ALL, 0.1) == alone.nbytes(ALL, 0.1)
    assert paired.chunks(ALL, 0.1).value == 2 * alone.chunks(ALL, 0.1).value
    assert paired.chunks(ALL, 0.1).error == alone.chunks(ALL, 0.1).error


def test_every_sum_of_parts_is_the_whole() -> None:
    chance, held = random.Random(3), Holdings()
    for number in range(500):
        key = make_key(number.to_bytes(32, "big"), chance.randrange(3))
        age = chance.choice([-5, 10, 2 * HOUR, 50 * HOUR, 500 * HOUR])
        held.add([Seen(chance.choice("ab"), key, 1.0, age, chance.choice(["none", "f" * 16]))])
    for kind in ("namespace", "age", "tenant"):
        parts = [held.chunks((kind, name), 1.0).value for name in held.parts(kind)]
        assert len(parts) > 1 and sum(parts) == 500
    for name in held.parts("namespace"):
        groups = [held.chunks(("group", name, one), 1.0).value for one in held.parts("group", name)]
        assert sum(groups) == held.chunks(("namespace", name), 1.0).value
    ages = held.ages("a")
    assert ages is not None and (ages.newest, ages.oldest) == (0, 500 * HOUR)
