"""Tiers that are avoided are tried now and then, with little."""

import itertools

import pytest

from kvstrata.routing.cost import Profile
from kvstrata.routing.decision import Candidate, Outcome, Reach, RequestView, Reuse
from kvstrata.routing.probing import LATEST, PROBE_SECONDS, SOONEST
from kvstrata.routing.seconds import Seconds

TOKENS, BYTES = 8000, 100_000
REUSE = Reuse(Reach(1000), Reach(1000), Reach(7000, 0, 6000 * BYTES))
FLEET = [Candidate(name="a", reuse=REUSE)]
SLOW = Profile(storage_bytes_per_s=20e6)


def serve(policy: Seconds, number: int, now: float, storage: float):
    """One request at a replica whose storage really has this bandwidth."""
    request = RequestView(id=str(number), tokens=TOKENS)
    decision = policy.decide(request, FLEET, now)
    policy.sent(request, decision, now)
    chosen = decision.appraisal
    terms = chosen.terms
    ttft = terms.overhead + terms.compute + terms.attention + terms.memory_transfer
    ttft += chosen.storage_bytes / storage
    policy.observed(
        Outcome(id=request.id, replica="a", ttft=ttft, cached_tokens=chosen.tokens), now + ttft
    )
    return decision


def test_a_probe_is_small_and_told_to_the_engine() -> None:
    policy = Seconds(SLOW)
    first = serve(policy, 0, 0.0, 2e9)
    assert first.load_cap == 0 and first.reason != "probe"
    assert serve(policy, 1, SOONEST / 2, 2e9).load_cap == 0
    probe = serve(policy, 2, SOONEST + 1, 2e9)
    chosen = probe.appraisal
    assert (probe.reason, chosen.source) == ("probe", "storage")
    assert chosen.terms.storage_transfer == pytest.approx(PROBE_SECONDS)
    assert probe.load_cap == chosen.tokens - 1000 == chosen.storage_bytes // BYTES
    assert 0 < chosen.tokens - 1000 < 6000


def test_a_tier_that_is_better_than_stated_is_used_soon() -> None:
    policy = Seconds(SLOW)
    last = [serve(policy, number, number * 3.0, 5e9) for number in range(30)][-1]
    assert (last.load_cap, last.appraisal.source) == (None, "storage")


def test_a_tier_that_is_as_slow_as_stated_is_tried_less_and_less() -> None:
    policy = Seconds(SLOW)
    probed = [
        number
        for number in range(1500)
        if serve(policy, number, number * 3.0, 20e6).reason == "probe"
    ]
    gaps = [3.0 * (after - before) for before, after in itertools.pairwise(probed)]
    assert 4 <= len(probed) <= 16
    assert gaps[0] < 4 * SOONEST and gaps[-1] > LATEST / 3


def test_a_client_that_says_what_to_load_is_no_probe() -> None:
    policy = Seconds(SLOW)
    for number in range(20):
        request = RequestView(id=str(number), tokens=TOKENS, load_cap=500)
        decision = policy.decide(request, FLEET, number * 10.0)
        policy.sent(request, decision, number * 10.0)
        assert decision.reason != "probe"
        assert decision.load_cap is not None and decision.load_cap <= 500
