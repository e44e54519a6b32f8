"""Where a request goes: the seam between the proxy, which moves bytes, and what knows better."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvstrata.router.asking import Asked
from kvstrata.router.index_state import IndexState
from kvstrata.router.replicas import Replica
from kvstrata.routing.decision import Candidate, Decision, Outcome, Policy, RequestView
from kvstrata.routing.drift import Drift
from kvstrata.routing.engine_rates import read_prefill

_NAMED = b'"cached_tokens"'
"""Inside an answer's text the quotes would be escaped."""
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*([0-9]{1,9})\b')


@dataclass(frozen=True, slots=True)
class Result:
    """How one attempt went.

    Attributes:
        id: of the request.
        replica: that had it.
        status: of the answer; 0 when there was none.
        ttft: seconds from sending it to the first bytes of the answer's body, or None.
        seconds: from sending it to the end, whatever that was.
        streamed: whether the answer was a stream of events.
        tail: the last bytes of the body, at most 16 KiB, for the usage that is told there.
        failed: by the replica's fault.
        cached_tokens: prompt tokens that the engine says it did not compute; None where it says nothing.
    """

    id: str
    replica: str
    status: int
    ttft: float | None
    seconds: float
    streamed: bool
    tail: bytes
    failed: bool
    cached_tokens: int | None = field(init=False)

    def __post_init__(self) -> None:
        # Once, since several ask.
        object.__setattr__(self, "cached_tokens", _cached_tokens(self.tail))


def _cached_tokens(tail: bytes) -> int | None:
    at = tail.rfind(_NAMED)
    while at >= 0:
        found = _CACHED.match(tail, at)
        if found is not None and tail[at - 1 : at] != b"\\":
            return int(found[1])
        at = tail.rfind(_NAMED, 0, at)
    return None


class Chooser(Protocol):
    """Chooses replicas. All calls come from the event loop's thread."""

    @property
    def drift(self) -> Drift:
        """What was foreseen, against what came."""
        ...

    async def view(self, asked: Asked) -> RequestView:
        """What there is to know of a request: once for each, before it is chosen for.

        May take its time elsewhere, such as with a tokenizer in a thread; it must not block the loop, and
        must not fail for a body that an engine would understand.
        """
        ...

    def choose(self, view: RequestView, replicas: Sequence[Replica], now: float) -> Decision:
        """Choose one of `replicas`, which is not empty. Changes nothing."""
        ...

    def sent(self, view: RequestView, decision: Decision, now: float) -> None:
        """It goes there."""
        ...

    def begun(self, identity: str, replica: str, ttft: float, now: float) -> None:
        """The first bytes of its streamed answer came, `ttft` seconds after it was sent."""
        ...

    def observed(self, result: Result, view: RequestView, decision: Decision, now: float) -> None:
        """What became of the attempt that `decision` led to."""
        ...

    def metrics(self, replica: Replica, text: bytes) -> None:
        """The replica's metrics, in Prometheus' text format, were read."""
        ...

    def forget(self, replica: str) -> None:
        """The replica was removed, is down or was restarted."""
        ...

    def describe(self, now: float) -> Mapping[str, Any]:
        """What it knows, as plain data for JSON."""
        ...

    def index_of(self, replica: str, now: float) -> IndexState | None:
        """How it stands with the index of a replica; None where none is kept."""
        ...

    def save(self, now: float) -> bytes:
        """What it has learned, to be kept over a restart; empty when it learns nothing."""
        ...

    def restore(self, data: bytes, now: float) -> None:
        """Go on with what `save` wrote. Raises ConfigError, and has changed nothing then."""
        ...


class PolicyChooser:
    """Chooses by what the proxy itself sees: requests in flight, engines' queues, and sessions."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._drift = Drift()
        self._told: set[str] = set()

    @property
    def drift(self) -> Drift:
        """See `Chooser`."""
        return self._drift

    async def view(self, asked: Asked) -> RequestView:
        """See `Chooser`."""
        return RequestView(
            id=asked.id,
            session=asked.session,
            model=asked.fields.model or "",
            arrival=asked.request.arrived,
        )

    def choose(self, view: RequestView, replicas: Sequence[Replica], now: float) -> Decision:
        """See `Chooser`."""
        return self._policy.decide(view, [candidate(one) for one in replicas], now)

    def sent(self, view: RequestView, decision: Decision, now: float) -> None:
        """See `Chooser`."""
        self._policy.sent(view, decision, now)

    def begun(self, identity: str, replica: str, ttft: float, now: float) -> None:
        """See `Chooser`."""
        self._policy.observed(Outcome(id=identity, replica=replica, final=False, ttft=ttft), now)

    def observed(self, result: Result, view: RequestView, decision: Decision, now: float) -> None:
        """See `Chooser`."""
        outcome = Outcome(
            id=result.id,
            replica=result.replica,
            ttft=result.ttft if result.streamed and result.status == 200 else None,
            cached_tokens=result.cached_tokens if result.status == 200 else None,
            failed=result.failed,
        )
        self._policy.observed(outcome, now)
        if view.tokens is not None and not result.failed:
            appraisal = decision.appraisal
            self._drift.note(appraisal, view.tokens, outcome.ttft, outcome.cached_tokens, now)

    def metrics(self, replica: Replica, text: bytes) -> None:
        """See `Chooser`: they say how fast the engine was before."""
        if replica.name not in self._told:
            prefill = read_prefill(text)
            if prefill is not None:
                self._told.add(replica.name)
                self._policy.told(replica.name, prefill, time.monotonic())

    def forget(self, replica: str) -> None:
        """See `Chooser`."""
        self._told.discard(replica)
        self._policy.forget(replica)

    def describe(self, now: float) -> Mapping[str, Any]:
        """See `Chooser`."""
        return self._policy.describe(now)

    def index_of(self, replica: str, now: float) -> IndexState | None:
        """See `Chooser`."""
        return None

    def save(self, now: float) -> bytes:
        """See `Chooser`."""
        return self._policy.save(now)

    def restore(self, data: bytes, now: float) -> None:
        """See `Chooser`."""
        self._policy.restore(data, now)


def candidate(replica: Replica) -> Candidate:
    """The replica as a policy sees it, without an index."""
    load = replica.load
    return Candidate(
        name=replica.name,
        waiting=0 if load is None else load.waiting,
        running=0 if load is None else load.running,
        in_flight=replica.in_flight,
        in_flight_tokens=replica.tokens,
    )
