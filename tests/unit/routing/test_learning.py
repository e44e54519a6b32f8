"""Rates that are learned, against replicas whose rates are known."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.errors import ConfigError
from kvstrata.routing.cost import LEARNED, Profile, Work
from kvstrata.routing.learning import FORGET, FURTHEST, LEAST_NOISE, MOST_NOISE, Learner

TRUE = Profile(
    prefill_tokens_per_s=2500,
    attention_doubles_at=20_000,
    memory_bytes_per_s=5e9,
    storage_bytes_per_s=0.2e9,
    storage_latency_seconds=0.05,
)


def seconds(profile: Profile, work: Work) -> float:
    return sum(rate * unit for rate, unit in zip(profile.rates(), work.units(), strict=True))


def some_work(chance: random.Random) -> Work:
    kind = chance.randrange(4)
    left = int(chance.lognormvariate(6, 1)) + 1
    before = 0 if kind == 0 else chance.randrange(20_000)
    return Work(
        left,
        before,
        chance.randrange(10**9) if kind == 2 else 0,
        chance.randrange(10**9) if kind == 3 else 0,
        chance.expovariate(2.0) if chance.random() < 0.3 else 0.0,
    )


def teach(
    learner: Learner,
    replica: str,
    true: Profile,
    count: int,
    *,
    start: float = 0.0,
    outliers: float = 0.0,
    seed: int = 1,
) -> float:
    """A request a second; returns the time after the last one."""
    chance = random.Random(seed)
    for number in range(count):
        work = some_work(chance)
        took = seconds(true, work) * chance.lognormvariate(0, 0.1)
        if chance.random() < outliers:
            took *= 50
        learner.learn(replica, work, took, start + number)
    return start + count


def error(learner: Learner, replica: str, true: Profile, seed: int = 99) -> float:
    """Median relative error over new work."""
    chance = random.Random(seed)
    errors = []
    for _ in range(200):
        work = some_work(chance)
        believed = sum(r * u for r, u in zip(learner.rates(replica), work.units(), strict=True))
        errors.append(abs(math.log(believed / seconds(true, work))))
    return float(np.median(errors))


def test_without_any_request_the_stated_profile_holds() -> None:
    learner = Learner(Profile(), {"b": TRUE})
    assert learner.rates("a") == Profile().rates()
    assert learner.rates("b") == TRUE.rates()
    assert {one.factor for one in learner.learned("a").values()} == {1.0}


@pytest.mark.parametrize("off", [1 / 50, 1 / 4, 4, 50])
def test_a_wrong_profile_is_learned_away(off: float) -> None:
    stated = Profile(
        prefill_tokens_per_s=TRUE.prefill_tokens_per_s * off,
        storage_bytes_per_s=TRUE.storage_bytes_per_s / off,
        memory_bytes_per_s=TRUE.memory_bytes_per_s,
        attention_doubles_at=TRUE.attention_doubles_at,
    )
    learner = Learner(stated)
    before = error(learner, "a", TRUE)
    teach(learner, "a", TRUE, 150)
    assert before > 1.0
    assert error(learner, "a", TRUE) < 0.1
    read = learner.describe("a")["storage_bytes_per_s"]
    assert read == pytest.approx(TRUE.storage_bytes_per_s, rel=0.3)


def test_twenty_requests_are_enough_for_the_first_orientation() -> None:
    wrong = msgspec.structs.replace(TRUE, prefill_tokens_per_s=TRUE.prefill_tokens_per_s * 20)
    learner = Learner(wrong)
    assert error(learner, "a", TRUE) > 0.9
    teach(learner, "a", TRUE, 20)
    assert error(learner, "a", TRUE) < 0.3


def test_one_in_ten_that_takes_fifty_times_as_long_moves_little() -> None:
    learner = Learner(TRUE)
    teach(learner, "a", TRUE, 400, outliers=0.1)
    assert error(learner, "a", TRUE) < 0.35
    assert 20 <= learner.describe("a")["outliers"] <= 60


def test_a_replica_that_becomes_slow_is_followed_and_back() -> None:
    slow = Profile(
        prefill_tokens_per_s=TRUE.prefill_tokens_per_s / 6,
        attention_doubles_at=TRUE.attention_doubles_at,
    )
    learner = Learner(TRUE)
    now = teach(learner, "a", TRUE, 300)
    now = teach(learner, "a", slow, 80, start=now, seed=2)
    assert error(learner, "a", slow) < 0.25
    assert learner.describe("a")["changes"] >= 1
    teach(learner, "a", TRUE, 80, start=now, seed=3)
    assert error(learner, "a", TRUE) < 0.25


def test_what_one_replica_teaches_counts_for_those_that_were_never_tried() -> None:
    learner = Learner(Profile(prefill_tokens_per_s=TRUE.prefill_tokens_per_s / 10))
    teach(learner, "a", TRUE, 100)
    assert error(learner, "never", TRUE) < 0.3


def test_one_slow_replica_stays_the_only_slow_one() -> None:
    slow = Profile(prefill_tokens_per_s=TRUE.prefill_tokens_per_s / 5)
    learner = Learner(TRUE)
    for turn in range(40):
        for name in "abc":
            teach(learner, name, TRUE, 3, start=turn * 10.0, seed=turn * 7 + ord(name))
        teach(learner, "slow", slow, 3, start=turn * 10.0, seed=turn)
    assert error(learner, "a", TRUE) < 0.15
    assert error(learner, "slow", slow) < 0.25


def test_a_bad_memory_fades_and_certainty_with_it() -> None:
    slow = Profile(prefill_tokens_per_s=TRUE.prefill_tokens_per_s / 5)
    learner = Learner(TRUE)
    for turn in range(60):
        teach(learner, "a", TRUE, 4, start=turn * 5.0, seed=turn)
        teach(learner, "slow", slow, 1, start=turn * 5.0, seed=turn)
    before = learner.learned("slow")["compute"]
    teach(learner, "a", TRUE, 20, start=300 + 4 * FORGET)
    learner.learn("slow", Work(1, 0), seconds(TRUE, Work(1, 0)), 300 + 4 * FORGET)
    after = learner.learned("slow")["compute"]
    assert before.factor > 2.5
    assert after.factor < 1.5
    assert after.spread > before.spread


observations = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(1, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 10**11),
        st.integers(0, 10**11),
        st.floats(0, 1e4),
        st.floats(allow_nan=True, allow_infinity=True),
        st.floats(0, 1e5),
    ),
    max_size=20,
)


def feed(learner: Learner, told: list) -> float:
    now = 0.0
    for replica, left, before, memory, storage, wait, took, passed in told:
        now += passed
        learner.learn(replica, Work(left, before, memory, storage, wait), took, now)
    return now


@given(observations)
@settings(max_examples=50)
def test_whatever_is_told_rates_stay_finite_and_in_bounds(told: list) -> None:
    learner = Learner(Profile())
    feed(learner, told)
    for replica in "abc":
        for rate, stated in zip(learner.rates(replica), Profile().rates(), strict=True):
            assert stated / FURTHEST * 0.999 <= rate <= stated * FURTHEST * 1.001
        assert LEAST_NOISE <= learner.describe(replica)["noise"] <= MOST_NOISE
        for one in learner.learned(replica).values():
            assert math.isfinite(one.spread) and one.spread >= 0


@given(observations)
@settings(max_examples=40)
def test_what_is_saved_is_what_goes_on(told: list) -> None:
    learner = Learner(Profile())
    now = feed(learner, told)
    later = Learner(Profile())
    later.restore(learner.to_bytes(now), 5.0)
    for replica in "abc":
        assert later.rates(replica) == pytest.approx(learner.rates(replica))
    work = Work(1000, 500, 10**8, 10**8)
    learner.learn("a", work, 0.7, now + 60)
    later.learn("a", work, 0.7, 65.0)
    assert later.rates("a") == pytest.approx(learner.rates("a"), rel=1e-6)


def damaged() -> list[bytes]:
    learner = Learner(Profile())
    teach(learner, "a", TRUE, 5)
    good = learner.to_bytes(5.0)
    plain = msgspec.json.decode(good)
    bad = [b"", b"{}", good[: len(good) // 2], b"\xff" + good, b"[" * 5000]
    for change in (
        {"version": 2},
        {"terms": ["overhead"]},
        {"noise": 0.0},
        {"noise": 1e9},
        {"fleet": {**plain["fleet"], "mean": [0.0]}},
        {"fleet": {**plain["fleet"], "mean": [1e9] * len(LEARNED)}},
        {"replicas": {"a": {**plain["fleet"], "covariance": [[1.0]]}}},
        {"replicas": {"a": {**plain["fleet"], "covariance": (-np.eye(len(LEARNED))).tolist()}}},
    ):
        bad.append(msgspec.json.encode({**plain, **change}))
    return bad


@pytest.mark.parametrize("data", damaged())
def test_a_damaged_file_is_refused_and_changes_nothing(data: bytes) -> None:
    learner = Learner(Profile())
    teach(learner, "a", TRUE, 20)
    before = learner.rates("a")
    with pytest.raises(ConfigError, match="remove the file"):
        learner.restore(data, 0.0)
    assert learner.rates("a") == before


def test_a_bandwidth_stated_far_too_high_is_found_out() -> None:
    """It has next to no share in what is foreseen, and another term of each load could take the blame."""
    learner = Learner(msgspec.structs.replace(TRUE, storage_bytes_per_s=10e9))
    chance = random.Random(4)
    for number in range(60):
        moved = 10**8 + chance.randrange(10**9)
        storage = moved if number % 2 else 0
        work = Work(500, 8000, moved - storage, storage)
        learner.learn("a", work, seconds(TRUE, work) * chance.lognormvariate(0, 0.1), number)
    told = learner.describe("a")
    assert told["storage_bytes_per_s"] == pytest.approx(TRUE.storage_bytes_per_s, rel=0.5)
    assert told["memory_bytes_per_s"] == pytest.approx(TRUE.memory_bytes_per_s, rel=0.5)


def test_surprises_that_agree_are_no_outliers() -> None:
    """By bounded steps alone, five requests would bring a sure estimate to less than three times."""
    work = Work(4000, 0)
    learner = Learner(TRUE)
    for number in range(300):
        learner.learn("a", work, seconds(TRUE, work), number)
    for number in range(5):
        learner.learn("a", work, 8 * seconds(TRUE, work), 300 + number)
    believed = sum(r * u for r, u in zip(learner.rates("a"), work.units(), strict=True))
    assert believed > 4 * seconds(TRUE, work)


def test_a_prompt_that_met_an_overdue_one_does_not_make_all_waits_longer() -> None:
    learner = Learner(TRUE)
    for number in range(5):
        work = Work(1800, 0)
        learner.learn("a", work, seconds(TRUE, work), float(number))
    # The one in front was thought to need 0.1 s more, and needed ten times that.
    work = Work(500, 1500, wait=0.1)
    learner.learn("a", work, seconds(TRUE, work) + 0.9, 6.0)
    assert learner.rates("a")[7] < 1.5


def test_a_wait_behind_a_prompt_that_was_under_way_teaches_little() -> None:
    """What it had left is a difference, off by a share of the whole."""

    def taught(unsure: float) -> float:
        learner = Learner(TRUE)
        for number in range(50):
            alone = Work(1800, 0)
            learner.learn("a", alone, seconds(TRUE, alone), float(number))
        work = Work(500, 1500, wait=0.5, unsure=unsure)
        for number in range(10):
            learner.learn("a", work, seconds(TRUE, work) + 2.0, 50.0 + number)
        return learner.rates("a")[7]

    assert taught(4.0) < 1.15 < 1.5 < taught(0.0)


def test_waits_that_are_always_longer_are_learned() -> None:
    learner = Learner(TRUE)
    alone, behind = Work(500, 1500), Work(500, 1500, wait=2.0)
    for number in range(60):
        learner.learn("a", alone, seconds(TRUE, alone), float(number))
        learner.learn("a", behind, seconds(TRUE, alone) + 2 * 1.8, float(number))
    assert 1.5 < learner.rates("a")[7] < 2.1


BESIDE = (Work(2000, 0), Work(200, 4000), Work(300, 6000, 0, 500_000_000))
"""What replicas are compared by: a cold prompt, a conversation's next turn, a load."""


def scattered(
    seed: int, rounds: int, slow: float = 1.0, wrong: float = 1.0, scatter: float = 0.5
) -> Learner:
    """Four replicas with times that nothing explains; "d" takes `slow` times as long as the others."""
    chance = random.Random(seed)
    stated = msgspec.structs.replace(TRUE, prefill_tokens_per_s=TRUE.prefill_tokens_per_s * wrong)
    learner = Learner(stated)
    for number in range(rounds):
        for name in "abcd":
            work = some_work(chance)
            took = seconds(TRUE, work) * chance.lognormvariate(0, scatter)
            learner.learn(name, work, took * (slow if name == "d" else 1.0), number * 2.0)
    return learner


def beliefs(learner: Learner, work: Work) -> list[float]:
    """Seconds that each replica is believed to take."""
    return [
        sum(rate * unit for rate, unit in zip(learner.rates(name), work.units(), strict=True))
        for name in "abcd"
    ]


@pytest.mark.parametrize("wrong", [1.0, 5.0])
@pytest.mark.parametrize(("rounds", "most"), [(1, 1.4), (4, 1.9), (20, 1.9), (100, 1.6)])
def test_equal_replicas_are_not_told_apart_by_scatter(
    rounds: int, most: float, wrong: float
) -> None:
    """Of four, the one that seems slowest against the one that seems quickest, in the worst case of eight."""
    for seed in range(8 if rounds < 100 else 4):
        learner = scattered(seed, rounds, wrong=wrong)
        for work in BESIDE:
            told = beliefs(learner, work)
            assert max(told) / min(told) < most


@pytest.mark.parametrize("wrong", [1.0, 5.0])
def test_a_replica_that_takes_three_times_as_long_is_found_in_spite_of_scatter(
    wrong: float,
) -> None:
    for rounds, least in ((10, 1.3), (25, 1.8)):
        for seed in range(8):
            *others, slow = beliefs(scattered(seed, rounds, slow=3.0, wrong=wrong), BESIDE[0])
            assert slow / float(np.median(others)) > least


@pytest.mark.parametrize("scatter", [0.15, 0.3, 0.6])
def test_the_noise_is_what_the_times_show(scatter: float) -> None:
    for seed in range(3):
        noise = scattered(seed, 75, wrong=5.0, scatter=scatter).describe("a")["noise"]
        assert noise == pytest.approx(scatter, rel=0.35)


def test_the_noise_of_better_times_is_followed() -> None:
    learner = Learner(TRUE)
    chance = random.Random(1)
    for number in range(900):
        work = some_work(chance)
        took = seconds(TRUE, work) * chance.lognormvariate(0, 0.6 if number < 300 else 0.15)
        learner.learn("a", work, took, float(number))
        if number == 299:
            assert learner.describe("a")["noise"] > 0.45
    assert learner.describe("a")["noise"] < 0.25


def test_an_outlier_changes_what_is_foreseen_by_no_more_than_its_bound() -> None:
    """Of prompts that are all alike, nobody knows what their length costs and what they look back at.

    Where one of the two grows and the other shrinks, their sum does not stay as it was for long.
    """
    usual, short = Work(28_000, 0), Work(1000, 0)
    learner = Learner(Profile())
    for number in range(20):
        learner.learn("a", usual, seconds(Profile(), usual), 5.0 * number)
    before = 1.0
    for number in range(3):
        learner.learn("a", usual, 8 * seconds(Profile(), usual), 100.0 + 5 * number)
        usually, shortly = (
            sum(rate * unit for rate, unit in zip(learner.rates("a"), work.units(), strict=True))
            / seconds(Profile(), work)
            for work in (usual, short)
        )
        assert before < usually < 1.9 * before
        assert shortly < 1.4 * usually  # a prompt of another length is not blamed for much more
        before = usually
