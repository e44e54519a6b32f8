"""Policies that look at load, sessions or prefixes only: what others do, to be compared with.

They share one interface with `routing.seconds`; see `routing.decision.Policy` for what each method is for.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvstrata.routing.decision import (
    Appraisal,
    Appraisals,
    Candidate,
    Decision,
    NoCandidatesError,
    Outcome,
    Policy,
    RequestView,
)
from kvstrata.routing.engine_rates import Prefill
from kvstrata.routing.history import History

REMEMBERED_SECONDS = 600.0
"""How long an approximate history believes that a replica holds what it was sent."""
REMEMBERED_TRUST = 0.7
"""Stated share of such beliefs that hold."""
_MASK = (1 << 64) - 1


def draw(key: str, replica: str) -> int:
    """A number from 0 to 2**64 - 1 that is always the same for the two, and else as good as random."""
    # CRC-32 alone would be linear: the highest of several replicas would not be drawn evenly.
    value = zlib.crc32(replica.encode(), zlib.crc32(key.encode())) * 0x9E3779B97F4A7C15 & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def choose(
    policy: str,
    request: RequestView,
    considered: Sequence[Appraisal],
    reason: str,
    now: float,
) -> Decision:
    """The decision for the lowest score; equal ones are drawn by the request's id."""
    if not considered:
        raise NoCandidatesError("no replica to choose from")
    ranked = sorted(considered, key=lambda one: (one.score, draw(request.id, one.replica)))
    best = ranked[0]
    return Decision(
        id=request.id,
        policy=policy,
        chosen=best.replica,
        reason=reason,
        runner_up=ranked[1].replica if len(ranked) > 1 else None,
        load_cap=request.load_cap,
        at=now,
        appraisals=Appraisals.of(considered),
    )


def load_of(candidate: Candidate) -> int:
    """Requests on a replica; the router knows its own at once, the engine's figures come later."""
    return max(candidate.in_flight, candidate.waiting + candidate.running)


def appraise(
    candidate: Candidate, score: float, tokens: int = 0, source: str = "none"
) -> Appraisal:
    """An appraisal without seconds."""
    return Appraisal(
        replica=candidate.name,
        score=score,
        tokens=tokens,
        source=source,
        reuse=candidate.shown,
        trust=candidate.trust,
        index_age=candidate.index_age,
    )


class _Simple:
    """A policy that remembers nothing."""

    name = "?"

    def sent(self, request: RequestView, decision: Decision, now: float) -> None:
        """Nothing to remember."""

    def observed(self, outcome: Outcome, now: float) -> None:
        """Nothing to learn."""

    def told(self, replica: str, prefill: Prefill, now: float) -> None:
        """Times do not matter."""

    def forget(self, replica: str) -> None:
        """Nothing to forget."""

    def describe(self, now: float) -> Mapping[str, Any]:
        """Only the name."""
        return {"policy": self.name}

    def save(self, now: float) -> bytes:
        """Nothing."""
        return b""

    def restore(self, data: bytes, now: float) -> None:
        """Nothing to go on with."""


class RoundRobin(_Simple):
    """One after the other, in the order of the names."""

    name = "round-robin"

    def __init__(self) -> None:
        self._last = ""

    def decide(self, request: RequestView, candidates: Sequence[Candidate], now: float) -> Decision:
        """See `Policy`."""
        names = sorted(one.name for one in candidates)
        later = [name for name in names if name > self._last]
        turn = {name: place for place, name in enumerate(later + names[: len(names) - len(later)])}
        considered = [appraise(one, turn[one.name]) for one in candidates]
        return choose(self.name, request, considered, "turn", now)

    def sent(self, request: RequestView, decision: Decision, now: float) -> None:
        """See `Policy`."""
        self._last = decision.chosen


class LeastLoaded(_Simple):
    """Fewest requests; of those, fewest tokens of prompts in flight."""

    name = "least-loaded"

    def decide(self, request: RequestView, candidates: Sequence[Candidate], now: float) -> Decision:
        """See `Policy`."""
        most = 1 + max((one.in_flight_tokens for one in candidates), default=0)
        considered = [
            appraise(one, load_of(one) + one.in_flight_tokens / most) for one in candidates
        ]
        return choose(self.name, request, considered, "load", now)


class SessionHash(_Simple):
    """The same session always to the same replica, by rendezvous hashing.

    A replica that comes or goes moves only the sessions that it gets or had. Without a session, the
    prompt's beginning stands for it, and without that, chance.
    """

    name = "session-hash"

    def decide(self, request: RequestView, candidates: Sequence[Candidate], now: float) -> Decision:
        """See `Policy`."""
        key = request.session
        reason = "session"
        if key is None and request.prefix is not None and len(request.prefix):
            key, reason = str(int(request.prefix[0])), "beginning"
        if key is None:
            key, reason = request.id, "chance"
        considered = [appraise(one, 1 - draw(key, one.name) / _MASK) for one in candidates]
        return choose(self.name, request, considered, reason, now)


class ApproximatePrefix(_Simple):
    """The replica that was sent the longest common beginning, without any events.

    The published rule of routers that keep a tree of past prompts: the longest match if it is long enough
    and loads are not too unequal, otherwise the least loaded.

    Args:
        least_share: of the prompt that must match.
        unequal: difference of requests between the most and the least loaded from which load decides.
        ratio: by which they must differ besides.
    """

    name = "approximate-prefix"

    def __init__(self, least_share: float = 0.3, unequal: int = 8, ratio: float = 1.5) -> None:
        self._least_share = least_share
        self._unequal = unequal
        self._ratio = ratio
        self._history = History()

    def decide(self, request: RequestView, candidates: Sequence[Candidate], now: float) -> Decision:
        """See `Policy`. The score is the share of the prompt that is not believed to be there."""
        prefix = request.prefix
        length = 0 if prefix is None else len(prefix)
        found = {} if prefix is None else self._history.match(prefix, now)
        loads = [load_of(one) for one in candidates] or [0]
        low, high = min(loads), max(loads)
        unequal = high - low > self._unequal and high > low * self._ratio
        longest = max((found.get(one.name, 0) for one in candidates), default=0)
        by_prefix = not unequal and longest >= max(self._least_share * length, 1)
        considered = [
            Appraisal(
                replica=one.name,
                score=1 - REMEMBERED_TRUST * found.get(one.name, 0) / length
                if by_prefix
                else float(load),
                tokens=found.get(one.name, 0) * request.prefix_tokens,
                predicted_tokens=found.get(one.name, 0) * request.prefix_tokens,
                source="device" if one.name in found else "none",
                trust=REMEMBERED_TRUST,
            )
            for one, load in zip(candidates, loads, strict=False)
        ]
        reason = "prefix" if by_prefix else "unequal" if unequal else "load"
        return choose(self.name, request, considered, reason, now)

    def sent(self, request: RequestView, decision: Decision, now: float) -> None:
        """See `Policy`."""
        if request.prefix is not None and len(request.prefix):
            until = now + REMEMBERED_SECONDS
            self._history.add(request.id, decision.chosen, request.prefix, now, until)

    def observed(self, outcome: Outcome, now: float) -> None:
        """See `Policy`."""
        if outcome.failed:
            self._history.drop(outcome.id)

    def forget(self, replica: str) -> None:
        """See `Policy`."""
        self._history.forget(replica)

    def describe(self, now: float) -> Mapping[str, Any]:
        """See `Policy`."""
        return {
            "policy": self.name,
            "prompts": len(self._history),
            "hashes": self._history.keys,
            "trust": REMEMBERED_TRUST,
        }


class TierWeighted(_Simple):
    """Blocks by the weight of their tier, and the queue: llm-d's published rule.

    Its prefix scorer counts consecutive blocks, 1.0 on the device and 0.8 in memory, relative to the best
    replica; its scheduler adds 3 times that to 2 times how few requests wait, relative to the most and the
    fewest. Storage, for which nothing is published, weighs as much as memory. Its third summand, the share
    of the cache in use, needs a figure that a candidate does not have.

    Args:
        weights: of device, memory and storage.
        prefix_weight: of the first summand.
        queue_weight: of the second.
    """

    name = "tier-weighted"

    def __init__(
        self,
        weights: tuple[float, float, float] = (1.0, 0.8, 0.8),
        prefix_weight: float = 3.0,
        queue_weight: float = 2.0,
    ) -> None:
        self._weights = weights
        self._prefix_weight = prefix_weight
        self._queue_weight = queue_weight

    def decide(self, request: RequestView, candidates: Sequence[Candidate], now: float) -> Decision:
        """See `Policy`. The score is the published one, negative."""
        hits = [self._weighted(one) for one in candidates]
        best = max(hits, default=0.0)
        told = any(one.waiting or one.running for one in candidates)
        loads = [one.waiting if told else one.in_flight for one in candidates] or [0]
        low, high = min(loads), max(loads)
        considered = []
        for one, hit, load in zip(candidates, hits, loads, strict=False):
            prefix = hit / best if best else 0.0
            queue = (high - load) / (high - low) if high > low else 1.0
            score = self._prefix_weight * prefix + self._queue_weight * queue
            reach = one.reuse.storage.tokens if one.reuse else 0
            considered.append(appraise(one, -score, reach))
        return choose(self.name, request, considered, "prefix" if best else "queue", now)

    def _weighted(self, candidate: Candidate) -> float:
        reuse = candidate.reuse
        if reuse is None:
            return 0.0
        device, memory, storage = reuse.device.tokens, reuse.memory.tokens, reuse.storage.tokens
        on_device, in_memory, in_storage = self._weights
        return on_device * device + in_memory * (memory - device) + in_storage * (storage - memory)


SIMPLE: dict[str, Callable[[], Policy]] = {
    RoundRobin.name: RoundRobin,
    LeastLoaded.name: LeastLoaded,
    SessionHash.name: SessionHash,
    ApproximatePrefix.name: ApproximatePrefix,
    TierWeighted.name: TierWeighted,
}
