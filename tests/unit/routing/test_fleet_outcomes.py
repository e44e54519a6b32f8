"""What policies make of the same arrivals, in a simulated fleet: ours must be ahead where it matters."""

from collections import Counter
from functools import cache

import numpy as np
import pytest

from kvstrata.routing.cost import Profile
from kvstrata.routing.decision import Policy
from kvstrata.routing.policies import make_policy
from kvstrata.routing.seconds import Seconds
from tests.unit.routing.simulated_fleet import Fleet, Physics, conversations

WORLDS = {
    "ordinary": [Physics()] * 4,
    "slow disk": [Physics(storage_bandwidth=0.15e9, storage_latency=0.05)] * 4,
    "fast disk": [Physics(storage_bandwidth=8e9, storage_latency=0.002)] * 4,
    "one slow replica": [*[Physics()] * 3, Physics(per_token=4e-4, per_pair=8e-9)],
}
RIVALS = ("round-robin", "least-loaded", "session-hash", "approximate-prefix", "tier-weighted")


@cache
def outcome(world: str, policy: str, rate: float) -> tuple[float, float]:
    """Mean and 90th percentile of the seconds to the first token, over the same arrivals."""
    fleet = Fleet(make_policy(policy), WORLDS[world], seed=1)
    seconds = fleet.run(conversations(seed=3, rate=rate, seconds=80)).seconds()
    return float(seconds.mean()), float(np.quantile(seconds, 0.9))


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("rate", [1.2, 3.0])
@pytest.mark.parametrize("world", WORLDS)
def test_first_tokens_come_sooner_than_with(world: str, rate: float, rival: str) -> None:
    """The stated profile is the same everywhere, so that it is wrong in all worlds but the first."""
    mean, high = outcome(world, "seconds", rate)
    other_mean, other_high = outcome(world, rival, rate)
    assert mean < other_mean * 0.97
    assert high < other_high


@pytest.mark.parametrize(
    "wrong",
    [
        Profile(prefill_tokens_per_s=500),
        Profile(prefill_tokens_per_s=200_000, attention_doubles_at=1e6),
        Profile(storage_bytes_per_s=20e6, memory_bytes_per_s=50e6),
        Profile(storage_bytes_per_s=200e9, storage_latency_seconds=1e-4),
    ],
    ids=["slow prefill", "fast prefill", "slow tiers", "fast storage"],
)
def test_a_wrong_profile_is_learned_away(wrong: Profile) -> None:
    true = Profile(storage_bytes_per_s=0.3e9, storage_latency_seconds=0.05)
    world = [Physics(storage_bandwidth=0.3e9, storage_latency=0.05)] * 4
    load = conversations(seed=3, rate=2.0, seconds=120)

    def later(profile: Profile) -> float:
        seconds = Fleet(Seconds(profile), world, seed=1).run(load).seconds()
        return float(seconds[len(seconds) // 3 :].mean())

    assert later(wrong) < later(true) * 1.25


def test_what_is_foreseen_is_what_happens() -> None:
    policy = Seconds(Profile(prefill_tokens_per_s=2000))
    fleet = Fleet(policy, WORLDS["slow disk"], seed=1)
    actual = fleet.run(conversations(seed=4, rate=1.5, seconds=150)).seconds()
    foreseen = np.array([one.appraisal.terms.first_token for one in fleet.decisions])
    errors = np.abs(np.log(actual / foreseen))
    assert np.median(errors[:5]) > 0.5
    assert np.median(errors[200:]) < 0.15


@pytest.mark.parametrize("profile", [Profile(), Profile(prefill_tokens_per_s=200)])
def test_a_cold_start_does_not_pile_on_one_replica(profile: Profile) -> None:
    """Every conversation has another beginning, and nothing is known of anybody."""
    load = conversations(seed=5, rate=4.0, seconds=30, shared=100_000, turns=1.01)[:60]
    fleet = Fleet(Seconds(profile), WORLDS["ordinary"], seed=1).run(load)
    counts = Counter(one.chosen for one in fleet.decisions)
    assert all(10 <= counts[f"r{number}"] <= 20 for number in range(4))


def test_a_shared_prompt_does_not_stay_with_one_replica() -> None:
    load = conversations(seed=6, rate=6.0, seconds=60, shared=1, shared_blocks=60, turns=1.5)
    fleet = Fleet(Seconds(), WORLDS["ordinary"], seed=1).run(load)
    counts = Counter(one.chosen for one in fleet.decisions)
    assert min(counts.values()) > 0.15 * len(load)
    computed = sum(one.computed for one in fleet.replicas)
    assert computed < 0.5 * sum(prompt.tokens for prompt in load)


def test_the_slow_replica_is_used_for_what_it_is_worth() -> None:
    policy: Policy = Seconds()
    fleet = Fleet(policy, WORLDS["one slow replica"], seed=1)
    fleet.run(conversations(seed=7, rate=4.5, seconds=60))
    served = [one.served for one in fleet.replicas]
    assert 0 < served[3] < min(served[:3]) / 2
