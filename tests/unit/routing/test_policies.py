"""Policies one by one: what each promises, and what all do."""

import math
from collections import Counter
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from kvstrata.errors import ConfigError
from kvstrata.routing import pricing
from kvstrata.routing.cost import Profile
from kvstrata.routing.decision import (
    Candidate,
    Decision,
    Load,
    NoCandidatesError,
    Outcome,
    Policy,
    Reach,
    RequestView,
    Reuse,
)
from kvstrata.routing.engine_rates import Prefill, read_prefill
from kvstrata.routing.policies import NAMES, make_policy
from kvstrata.routing.seconds import SETTLE, Seconds
from kvstrata.routing.simple import draw

TOKENS = 8000
BYTES = 100_000


def prefix(*parts: int) -> np.ndarray:
    """500 hashes for each part; each stands for 8 tokens."""
    made = [np.random.default_rng(part).integers(0, 2**63, 500, np.uint64) for part in parts]
    return np.concatenate(made)


def ask(name: str, **others: object) -> RequestView:
    settings: dict[str, object] = {"tokens": TOKENS, "prefix_tokens": 8, **others}
    return RequestView(id=name, **settings)  # type: ignore[arg-type]


def replica(name: str, device: int = 0, memory: int = 0, storage: int = 0, **others: object):
    memory, storage = max(device, memory), max(device, memory, storage)
    moved = (memory - device) * BYTES
    reuse = Reuse(
        Reach(device), Reach(memory, moved), Reach(storage, moved, (storage - memory) * BYTES)
    )
    return Candidate(name=name, **{"reuse": reuse, **others})


def send(policy: Policy, request: RequestView, candidates: list, now: float) -> Decision:
    decision = policy.decide(request, candidates, now)
    policy.sent(request, decision, now)
    return decision


def answer(policy: Policy, decision: Decision, now: float, ttft: float | None = None) -> None:
    terms = decision.appraisal.terms
    policy.observed(
        Outcome(
            id=decision.id,
            replica=decision.chosen,
            ttft=terms.first_token if ttft is None else ttft,
            cached_tokens=decision.appraisal.tokens,
        ),
        now,
    )


COLD = [replica(name) for name in "abcd"]


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_answers_in_full_and_only_what_is_sent_counts(name: str) -> None:
    policy = make_policy(name)
    assert policy.name == name
    request = ask("1", prefix=prefix(1), session="s")
    first = policy.decide(request, COLD, 1.0)
    assert policy.decide(request, COLD, 1.0) == first
    assert [one.replica for one in first.considered] == list("abcd")
    assert first.chosen != first.runner_up
    assert first.appraisal.replica == first.chosen
    assert first.reason and first.policy == name and first.id == "1"
    msgspec.json.decode(msgspec.json.encode(first.considered))
    policy.sent(request, first, 1.0)
    answer(policy, first, 2.0, 0.5)
    answer(policy, first, 2.0, 0.5)
    policy.observed(Outcome(id="unknown", replica="a", failed=True), 3.0)
    policy.forget("a")
    policy.forget("never seen")
    msgspec.json.encode(policy.describe(4.0))


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_copes_with_little(name: str) -> None:
    policy = make_policy(name)
    with pytest.raises(NoCandidatesError):
        policy.decide(ask("1"), [], 0.0)
    silent = [Candidate(name="a")]
    for request in (
        ask("1", tokens=None),
        ask("2", tokens=1, prefix=prefix(1)[:0]),
        ask("3", tokens=0),
        ask("4", tokens=5, prefix=prefix(1), load_cap=0),
    ):
        decision = send(policy, request, silent, 0.0)
        assert (decision.chosen, decision.runner_up) == ("a", None)
        policy.observed(Outcome(id=request.id, replica="a"), 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_no_policy_keeps_a_request_from_the_only_replica_that_is_left(name: str) -> None:
    policy = make_policy(name)
    for number in range(20):
        decision = send(policy, ask(str(number), session="s"), COLD[:1], number / 10)
        policy.observed(Outcome(id=str(number), replica="a", failed=True), number / 10)
        assert decision.chosen == "a"


@pytest.mark.parametrize("name", NAMES)
def test_cold_requests_do_not_pile_up(name: str) -> None:
    """All at once, so that nothing is known of any of them: the router's own counts must do."""
    policy = make_policy(name)
    counts: Counter[str] = Counter()
    for number in range(40):
        candidates = [
            replica(one, in_flight=counts[one], in_flight_tokens=counts[one] * TOKENS)
            for one in "abcd"
        ]
        request = ask(str(number), prefix=prefix(number), session=str(number))
        counts[send(policy, request, candidates, 0.0).chosen] += 1
    least = 4 if name == "session-hash" else 10
    assert min(counts[one] for one in "abcd") >= least


def test_a_name_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean tier-weighted"):
        make_policy("tier-weigthed")


def test_round_robin_goes_round_though_replicas_come_and_go() -> None:
    policy = make_policy("round-robin")
    turns = [send(policy, ask(str(n)), COLD, 0.0).chosen for n in range(6)]
    assert turns == list("abcdab")
    assert send(policy, ask("7"), [COLD[0], COLD[3]], 0.0).chosen == "d"
    assert send(policy, ask("8"), COLD, 0.0).chosen == "a"


def test_a_session_moves_only_when_its_replica_comes_or_goes() -> None:
    policy = make_policy("session-hash")
    four = {str(s): policy.decide(ask("1", session=str(s)), COLD, 0.0).chosen for s in range(2000)}
    three = {s: policy.decide(ask("2", session=s), COLD[:3], 0.0).chosen for s in four}
    assert all(three[s] == four[s] for s in four if four[s] != "d")
    assert all(400 < count < 600 for count in Counter(four.values()).values())
    assert all(550 < count < 780 for count in Counter(three.values()).values())


def test_draws_are_even_for_names_that_differ_little() -> None:
    names = [f"http://127.0.0.1:{8000 + n}" for n in range(7)]
    counts = Counter(max(names, key=lambda name: draw(str(n), name)) for n in range(7000))
    assert all(850 < counts[name] < 1150 for name in names)


def test_least_loaded_believes_the_router_before_the_engine() -> None:
    policy = make_policy("least-loaded")
    candidates = [replica("a", in_flight=3), replica("b", waiting=1, running=1), replica("c")]
    assert policy.decide(ask("1"), candidates, 0.0).chosen == "c"
    assert policy.decide(ask("1"), candidates[:2], 0.0).chosen == "b"


def test_approximate_prefixes_follow_what_was_sent_until_loads_differ() -> None:
    policy = make_policy("approximate-prefix")
    send(policy, ask("1", prefix=prefix(1, 2)), COLD[1:2], 0.0)
    decision = policy.decide(ask("2", prefix=prefix(1, 3)), COLD, 1.0)
    assert (decision.chosen, decision.reason) == ("b", "prefix")
    assert decision.appraisal.predicted_tokens == 496 * 8  # up to a step of the grid
    busy = [replica("a"), replica("b", in_flight=20)]
    decision = policy.decide(ask("3", prefix=prefix(1, 3)), busy, 1.0)
    assert (decision.chosen, decision.reason) == ("a", "unequal")
    policy.forget("b")
    assert policy.decide(ask("4", prefix=prefix(1, 3)), COLD, 1.0).reason == "load"


def test_the_published_rule_weighs_tiers_and_queues() -> None:
    policy = make_policy("tier-weighted")
    device, memory = replica("d", 4000), replica("m", 0, 4500)
    assert policy.decide(ask("1"), [memory, device], 0.0).chosen == "d"
    memory = replica("m", 0, 5500)
    assert policy.decide(ask("1"), [memory, device], 0.0).chosen == "m"
    busy = msgspec.structs.replace(memory, waiting=3)
    assert policy.decide(ask("1"), [busy, device], 0.0).chosen == "d"


def test_seconds_say_why() -> None:
    policy = Seconds(Profile(storage_bytes_per_s=5e9))
    cold = policy.decide(ask("1"), COLD, 0.0)
    assert cold.reason == "cold"
    warm = [replica("a", 2000), replica("b", 6000), replica("c", 2000, 2000, 7000)]
    decision = policy.decide(ask("2"), warm, 0.0)
    chosen = decision.appraisal
    assert (decision.chosen, decision.reason, decision.runner_up) == ("b", "spread", "c")
    assert (chosen.tokens, chosen.device_tokens, chosen.source) == (6000, 6000, "device")
    other = decision.appraisals.named("c")
    assert (other.source, other.storage_bytes, other.load_cap) == ("storage", 5000 * BYTES, None)
    assert other.terms.storage_transfer == pytest.approx(0.1)
    with pytest.raises(KeyError):
        decision.appraisals.named("z")


@pytest.mark.parametrize(("speed", "cap", "source"), [(20e9, None, "storage"), (2e8, 0, "none")])
def test_load_or_recompute_is_told_to_the_engine(
    speed: float, cap: int | None, source: str
) -> None:
    policy = Seconds(Profile(storage_bytes_per_s=speed))
    decision = policy.decide(ask("1"), [replica("a", 0, 0, 7000)], 0.0)
    assert (decision.load_cap, decision.appraisal.source) == (cap, source)


def test_what_was_just_sent_counts_before_its_events() -> None:
    policy = Seconds()
    first = send(policy, ask("1", prefix=prefix(1, 2)), COLD, 0.0)
    answer(policy, first, 0.8)
    second = policy.decide(ask("2", prefix=prefix(1, 2, 3), tokens=12_000), COLD, 1.0)
    assert (second.chosen, second.appraisal.predicted_tokens) == (first.chosen, 8000)
    # Its events must have come by now. They did not, so it is not there.
    late = policy.decide(ask("3", prefix=prefix(1, 2, 3), tokens=12_000), COLD, 1.0 + SETTLE)
    assert late.reason == "cold"


def test_what_failed_or_was_given_up_does_not_count() -> None:
    for outcome in ({"failed": True}, {"failed": False}):
        policy = Seconds()
        first = send(policy, ask("1", prefix=prefix(1, 2)), COLD, 0.0)
        policy.observed(Outcome(id="1", replica=first.chosen, **outcome), 0.1)
        assert policy.decide(ask("2", prefix=prefix(1, 2)), COLD, 0.2).reason == "cold"


def test_where_windows_are_kept_at_the_end_only_a_continuation_counts() -> None:
    ends = [replica(name, resume_every=0) for name in "abcd"]
    policy = Seconds()
    first = send(policy, ask("1", prefix=prefix(1, 2)), ends, 0.0)
    answer(policy, first, 0.8)
    assert policy.decide(ask("2", prefix=prefix(1, 3)), ends, 1.0).reason == "cold"
    longer = policy.decide(ask("3", prefix=prefix(1, 2, 3), tokens=12_000), ends, 1.0)
    assert longer.chosen == first.chosen


def test_with_a_retention_interval_the_second_prompt_resumes_at_a_multiple_of_it() -> None:
    kept = [replica(name, resume_every=1000) for name in "abcd"]  # 125 hashes of 8 tokens
    policy = Seconds()
    first = send(policy, ask("1", prefix=prefix(1, 2)[:640]), kept, 0.0)
    answer(policy, first, 0.8)
    parted = np.concatenate((prefix(1, 2)[:300], prefix(3)))
    second = policy.decide(ask("2", prefix=parted), kept, 1.0)
    assert (second.chosen, second.appraisal.predicted_tokens) == (first.chosen, 2000)


def test_a_silent_replica_is_believed_to_hold_what_it_was_sent_but_not_fully() -> None:
    silent = [Candidate(name=name) for name in "ab"]
    policy = Seconds()
    first = send(policy, ask("1", prefix=prefix(1, 2)), silent, 0.0)
    answer(policy, first, 1.0)
    decision = policy.decide(ask("2", prefix=prefix(1, 2, 3), tokens=12_000), silent, 120.0)
    assert decision.chosen == first.chosen
    assert 0 < decision.appraisal.trust < 1 and decision.appraisal.terms.doubt > 0
    assert policy.decide(ask("3", prefix=prefix(1)), silent, 5000.0).reason == "cold"


def test_a_doubtful_index_gives_way_to_a_certain_one() -> None:
    doubtful, certain = replica("a", 7000, trust=0.2), replica("b", 5000)
    assert Seconds().decide(ask("1"), [doubtful, certain], 0.0).chosen == "b"
    doubtful = msgspec.structs.replace(doubtful, trust=0.95)
    assert Seconds().decide(ask("1"), [doubtful, certain], 0.0).chosen == "a"


def test_a_hot_prefix_spreads_when_its_owners_queue_costs_more() -> None:
    policy = Seconds()
    fleet = [replica("owner", 7900), *(replica(name) for name in "bcd")]
    chosen = [send(policy, ask(str(n), prefix=prefix(1)[:1]), fleet, 0.0).chosen for n in range(60)]
    spread = next(place for place, name in enumerate(chosen) if name != "owner")
    # A cold prompt computes for some 0.85 s, at the owner 0.03 s.
    assert 10 < spread < 40
    assert len(set(chosen)) == 4


def test_a_conversation_stays_among_equals_and_leaves_for_a_reason() -> None:
    policy = Seconds()
    first = send(policy, ask("0", session="s"), COLD, 0.0)
    answer(policy, first, 1.0)
    for number in range(1, 20):
        # Others come and go; what a and b could reuse hardly differs.
        other = send(policy, ask(f"o{number}"), COLD, 100.0 * number)
        answer(policy, other, 100.0 * number + 5)
        fleet = [replica(name, 6000 + 50 * (name == "abcd"[number % 4])) for name in "abcd"]
        turn = send(policy, ask(str(number), session="s"), fleet, 100.0 * number + 50)
        answer(policy, turn, 100.0 * number + 51)
        assert (turn.chosen, turn.reason) == (first.chosen, "stay")
    better = [replica(name, 0 if name == first.chosen else 7900) for name in "abcd"]
    assert policy.decide(ask("x", session="s"), better, 3000.0).chosen != first.chosen


def test_a_replica_that_fails_fast_does_not_draw_all_requests() -> None:
    policy = Seconds()
    fleet = [replica("broken", 6000), replica("b"), replica("c")]
    chosen = Counter()
    for number in range(100):
        now = number * 0.5
        decision = send(policy, ask(str(number)), fleet, now)
        chosen[decision.chosen] += 1
        if decision.chosen == "broken":
            policy.observed(Outcome(id=str(number), replica="broken", failed=True), now + 0.01)
        else:
            answer(policy, decision, now + 0.4, 0.9)
    assert chosen["broken"] < 20
    later = policy.decide(ask("later"), fleet, 300.0)
    assert later.chosen == "broken"


def test_a_replica_that_stands_still_is_left() -> None:
    policy = Seconds()
    fleet = [replica("frozen", 7000), replica("b"), replica("c")]
    send(policy, ask("0"), fleet, 0.0)
    for number in range(1, 40):
        decision = send(policy, ask(str(number)), fleet, number * 1.0)
        if decision.chosen != "frozen":
            answer(policy, decision, number + 0.9, 0.9)
    assert decision.chosen != "frozen"
    assert decision.appraisals.named("frozen").terms.wait > 1


def test_requests_behind_a_prompt_that_is_long_overdue_do_not_make_every_wait_long() -> None:
    """It was to take four seconds and takes thirty; those that come in between wait for it."""
    policy = Seconds()
    only = [replica("a")]
    for number in range(20):
        decision = send(policy, ask(f"usual{number}", tokens=28_000), only, 5.0 * number)
        answer(policy, decision, 5.0 * number + 4, 4.0)
    held = [send(policy, ask("long", tokens=28_000), only, 100.0)]
    # A policy looks after what is overdue when it sends something.
    for number in range(10):
        held.append(send(policy, ask(f"behind{number}", tokens=1000), only, 103.9 + 2.5 * number))
        assert policy.learner.rates("a")[7] < 1.3
    for place, decision in enumerate(held):
        now = 130.0 + 0.12 * place
        answer(policy, decision, now, now - decision.at)
        assert policy.learner.rates("a")[7] < 1.3
    send(policy, ask("long again", tokens=28_000), only, 140.0)
    assert policy.decide(ask("next", tokens=1000), only, 140.0).appraisal.terms.wait < 10


def test_other_routers_requests_and_full_seats_count() -> None:
    policy = Seconds()
    foreign = replica("a", 1000, waiting=20)
    assert policy.decide(ask("1"), [foreign, replica("b")], 0.0).chosen == "b"
    full = replica("a", 1000, in_flight=20, capacity=8)
    assert policy.decide(ask("1"), [full, replica("b")], 0.0).chosen == "b"


def test_cached_tokens_that_disagree_teach_no_bandwidth() -> None:
    policy = Seconds()
    fleet = [replica("a", 0, 0, 7000)]
    before = policy.learner.learned("a")["storage_transfer"]
    for number in range(30):
        decision = send(policy, ask(str(number)), fleet, float(number))
        assert decision.appraisal.storage_bytes
        policy.observed(
            Outcome(id=str(number), replica="a", ttft=3.0, cached_tokens=0), number + 0.9
        )
    assert policy.learner.learned("a")["storage_transfer"] == before


def test_what_was_learned_outlives_a_restart() -> None:
    policy = Seconds(Profile(prefill_tokens_per_s=100_000))
    for number in range(50):
        decision = send(policy, ask(str(number)), COLD, number * 5.0)
        answer(policy, decision, number * 5.0 + 4, 4.0)
    again = Seconds(Profile(prefill_tokens_per_s=100_000))
    again.restore(policy.save(250.0), 0.0)
    seconds = again.decide(ask("1"), COLD, 0.0).appraisal.terms.first_token
    assert seconds == pytest.approx(4.0, rel=0.15)


def test_what_has_not_come_yet_teaches_too() -> None:
    """Storage hangs: not one answer ever comes, and still the requests stop going there."""
    policy = Seconds()
    fleet = [replica("a", 0, 0, 7000), replica("b", 0, 0, 7000)]
    sources = []
    for number in range(40):
        decision = send(policy, ask(str(number), tokens=7500), fleet, float(number))
        sources.append(decision.appraisal.source)
        if decision.appraisal.source == "none":
            answer(policy, decision, number + 0.9)
    assert sources[0] == "storage"
    assert sources[-10:].count("none") >= 8  # a probe comes in between


def test_cold_tokens_are_spread_and_not_only_requests() -> None:
    """All are answered before the next one comes, so that no queue ever decides."""
    policy = Seconds()
    lengths = [200 if number % 4 else 8000 for number in range(120)]
    placed: Counter[str] = Counter()
    for number, length in enumerate(lengths):
        now = number * 5.0
        decision = send(policy, ask(str(number), tokens=length), COLD, now)
        answer(policy, decision, now + 1)
        placed[decision.chosen] += length
    assert max(placed.values()) - min(placed[one] for one in "abcd") <= 2 * max(lengths)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_no_number_is_no_choice_and_no_obstacle(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:
        pricing.warm()
    else:
        monkeypatch.setattr(pricing, "ready", lambda: False)
    policy = Seconds()
    wrong = [replica(name, 100, trust=math.nan) for name in "ab"]
    decision = send(policy, ask("1"), [wrong[0], replica("c"), wrong[1]], 0.0)
    assert decision.chosen == "c" and decision.runner_up in ("a", "b")
    decision = send(policy, ask("2"), wrong, 0.0)
    assert {decision.chosen, decision.runner_up} == {"a", "b"}
    assert len(decision.considered) == 2


def test_a_cap_below_nothing_is_nothing() -> None:
    policy = Seconds()
    decision = policy.decide(ask("1", load_cap=-5), [replica("a", 0, 4000, 8000)], 0.0)
    assert (decision.load_cap, decision.appraisal.source) == (0, "none")


def test_an_appraisal_is_made_for_who_looks_and_only_once() -> None:
    made: list[str] = []

    def detail(name: str) -> Callable[[], Reuse]:
        def make() -> Reuse:
            made.append(name)
            return Reuse(Reach(100), Reach(100), Reach(200, loads=(Load("storage", 0, 100, 1),)))

        return make

    plain = Reuse(Reach(100), Reach(100), Reach(200))
    candidates = [Candidate(name=name, reuse=plain, detail=detail(name)) for name in "abc"]
    decision = send(Seconds(), ask("1"), candidates, 0.0)
    assert made == [decision.chosen]
    assert all(one.reuse and one.reuse.storage.loads for one in decision.considered)
    assert decision.considered == decision.considered and sorted(made) == list("abc")
    kept = decision.appraisals.only((decision.chosen, None))
    assert [one.replica for one in kept] == [decision.chosen] and len(made) == 3


def test_what_an_engine_says_of_its_past_counts_until_something_is_learned() -> None:
    policy = Seconds()
    told = Prefill(
        requests=4, tokens=8_000, seconds=14.0
    )  # 2 000 tokens in 3.5 s; stated are 0.2 s
    stated = policy.learner.rates("b")[1]
    policy.told("a", told, 0.0)
    assert policy.learner.rates("a")[1] > 8 * stated
    assert policy.learner.rates("b")[1] > 8 * stated, "replicas are mostly alike"
    before = policy.learner.rates("a")
    policy.told("a", told, 1.0)
    assert policy.learner.rates("a") == before, "one answer's worth, however often it is told"
    policy.told("c", Prefill(requests=50, tokens=500, seconds=9.0), 1.0)
    assert "c" not in policy.learner.replicas(), "short prompts say nothing of rates"


HISTOGRAMS = """# TYPE vllm:request_prefill_time_seconds histogram
vllm:request_prefill_time_seconds_bucket{engine="0",le="0.3"} 1.0
vllm:request_prefill_time_seconds_sum{engine="0",model_name="m"} 3.25
vllm:request_prefill_time_seconds_count{engine="0",model_name="m"} 2.0
vllm:request_prefill_time_seconds_sum{engine="1",model_name="m"} 1e-1
vllm:request_prefill_time_seconds_count{engine="1",model_name="m"} 1.0
vllm:request_prefill_kv_computed_tokens_sum{engine="0",model_name="m"} 4000.0
vllm:request_prefill_kv_computed_tokens_count{engine="0",model_name="m"} 2.0
vllm:request_prefill_kv_computed_tokens_sum{engine="1",model_name="m"} 130.0
"""


def test_engines_histograms_are_read() -> None:
    assert read_prefill(HISTOGRAMS.encode()) == Prefill(3, 4130, 3.35)
    assert read_prefill(b"") is None
    assert read_prefill(HISTOGRAMS.replace("4000.0", "0").replace("130.0", "0").encode()) is None
    assert read_prefill(HISTOGRAMS.replace("3.25", "1-e").encode()) is None
