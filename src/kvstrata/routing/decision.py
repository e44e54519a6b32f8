"""What a routing policy is asked, and what it answers: plain values that anyone can read afterwards.

The caller asks `decide`, which changes nothing, so that it also serves a dry run; tells `sent` when the
request really goes there; and reports what happened through `observed`, once with the first token and once
at the end. Nothing here knows a clock: `now` is passed in, in seconds of any monotonic clock, the same for
all calls.

Structs instead of dataclasses: a decision over 64 replicas may build some hundred of them, and they are
written out as JSON as they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, overload

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.routing.engine_rates import Prefill

Hashes = npt.NDArray[np.uint64]


class RequestView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a policy sees of a request.

    Attributes:
        id: names the request and its decision; unique while the request lives.
        tokens: of the prompt, or None when they could not be counted.
        prefix: uint64 (n,), one hash for every `prefix_tokens` tokens from the beginning, each covering
            all before it, so that equal hashes mean equal beginnings; the engine's block hashes, or any
            other chain. None when the prompt is not known well enough.
        prefix_tokens: tokens that one hash of `prefix` covers beyond the one before it.
        session: names a conversation or user, or None.
        model: as the client asked for it.
        arrival: when the router got the request, seconds.
        load_cap: the client's own `max_load_tokens`, or None.
        doubt: what could not be known of the prompt, and why; empty if nothing. Only shown.
    """

    id: str
    tokens: int | None = None
    prefix: Hashes | None = None
    prefix_tokens: int = 16
    session: str | None = None
    model: str = ""
    arrival: float = 0.0
    load_cap: int | None = None
    doubt: str = ""


class Load(msgspec.Struct, frozen=True, gc=False):
    """What one group would bring from one tier.

    Attributes:
        tier: "memory" or "storage".
        group: KV cache group.
        tokens: that the chunks cover.
        bytes: to be moved.
    """

    tier: str
    group: int
    tokens: int
    bytes: int


class Reach(msgspec.Struct, frozen=True, gc=False):
    """How far a request could resume with some of the tiers.

    Attributes:
        tokens: the boundary: tokens that need not be computed, those of the device included.
        memory_bytes: to be loaded from host memory for that.
        storage_bytes: to be loaded from storage for that; they pass through memory too, and are not
            counted in `memory_bytes`.
        loads: the same by tier and group, where known; only shown.
    """

    tokens: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0
    loads: tuple[Load, ...] = ()


NOTHING = Reach()


class Reuse(msgspec.Struct, frozen=True, gc=False):
    """What a replica could reuse, as its index says. Each reach is at least as long as the one before.

    Attributes:
        device: with the device's cache alone; its bytes are 0.
        memory: with device and memory.
        storage: with device, memory and storage.
    """

    device: Reach = NOTHING
    memory: Reach = NOTHING
    storage: Reach = NOTHING


class Candidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A replica that could take the request, as it looks now.

    Attributes:
        name: of the replica, unique.
        waiting: requests that wait in the engine, from its metrics; 0 when unknown.
        running: requests that run in the engine, from its metrics; 0 when unknown.
        in_flight: the router's own requests there that are not answered in full.
        in_flight_tokens: of their prompts.
        reuse: what its index says, or None for a replica that publishes nothing; where there is `detail`,
            without `Reach.loads`.
        detail: makes the same with them, for who looks at an appraisal; None where `reuse` has them.
        trust: share of the index's answers that hold, 0 to 1: 1 when its stream is synced.
        index_age: seconds since the index last heard of the replica; only shown.
        resume_every: tokens between places where a prefix that was just sent can be resumed: 1 for anywhere,
            the retention interval of a model with windowed groups, 0 where their windows are kept only where
            a prompt ends and where two part.
        capacity: prompts that can run at once; 0 when unknown.
    """

    name: str
    waiting: int = 0
    running: int = 0
    in_flight: int = 0
    in_flight_tokens: int = 0
    reuse: Reuse | None = None
    detail: Callable[[], Reuse] | None = None
    trust: float = 1.0
    index_age: float = 0.0
    resume_every: int = 1
    capacity: int = 0

    @property
    def shown(self) -> Reuse | None:
        """`reuse`, by tier and group."""
        return self.detail() if self.detail is not None else self.reuse


class Terms(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What sending the request to one replica is thought to cost, in seconds. All 0 for simple policies.

    Attributes:
        wait: until the prompts before it are computed.
        overhead: that every request pays.
        compute: of the tokens left, the part that grows with their number.
        attention: of the tokens left, the part that grows with what they look back at.
        memory_latency, memory_transfer: of the load into the device.
        storage_latency, storage_transfer: of the reads from storage.
        overlap: what of the reads goes on while the request waits; counts against the sum.
        doubt: what is lost if the index is wrong, times how likely that is.
        fault: set on replicas that failed lately.
        burden: not this request's own: what its computation takes from those behind it.
    """

    wait: float = 0.0
    overhead: float = 0.0
    compute: float = 0.0
    attention: float = 0.0
    memory_latency: float = 0.0
    memory_transfer: float = 0.0
    storage_latency: float = 0.0
    storage_transfer: float = 0.0
    overlap: float = 0.0
    doubt: float = 0.0
    fault: float = 0.0
    burden: float = 0.0

    @property
    def first_token(self) -> float:
        """Seconds to the first token, if nothing goes wrong."""
        return (
            self.wait
            + self.overhead
            + self.compute
            + self.attention
            + self.memory_latency
            + self.memory_transfer
            + self.storage_latency
            + self.storage_transfer
            - self.overlap
        )

    @property
    def score(self) -> float:
        """Seconds by which replicas are compared."""
        return self.first_token + self.doubt + self.fault + self.burden


class Appraisal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a policy thinks of one candidate.

    Attributes:
        replica: its name.
        score: the less the better; seconds where the policy has them, otherwise its own unit.
        terms: seconds by term.
        tokens: that need not be computed at the boundary that was chosen for this replica.
        device_tokens: of them, on the device already.
        predicted_tokens: of those, believed only because a request like it was just sent there.
        source: "device", "memory" or "storage": the last tier that the boundary needs; "none" without
            reuse.
        memory_bytes, storage_bytes: to be loaded for that; what comes from storage counts only there.
        load_cap: `max_load_tokens` that makes the engine resume there; None when it would anyway.
        reuse: what the index said, or None.
        trust: as the candidate says.
        index_age: as the candidate says, seconds.
    """

    replica: str
    score: float
    terms: Terms = Terms()
    tokens: int = 0
    device_tokens: int = 0
    predicted_tokens: int = 0
    source: str = "none"
    memory_bytes: int = 0
    storage_bytes: int = 0
    load_cap: int | None = None
    reuse: Reuse | None = None
    trust: float = 1.0
    index_age: float = 0.0


class Appraisals(Sequence[Appraisal]):
    """Appraisals of all candidates, each made when someone looks at it: mostly, only of the chosen one.

    Args:
        names: of the replicas, in the order of the candidates.
        make: makes the one at a place; called once for each at most.
    """

    __slots__ = ("_made", "_make", "names")

    def __init__(self, names: Sequence[str], make: Callable[[int], Appraisal]) -> None:
        self.names = names
        self._make = make
        self._made: dict[int, Appraisal] = {}

    @classmethod
    def of(cls, appraisals: Sequence[Appraisal]) -> Self:
        """Those that are made already."""
        return cls([one.replica for one in appraisals], appraisals.__getitem__)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Appraisal: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Appraisal]: ...
    def __getitem__(self, index: int | slice) -> Appraisal | Sequence[Appraisal]:
        if isinstance(index, slice):
            return tuple(self[one] for one in range(len(self))[index])
        place = range(len(self))[index]
        made = self._made.get(place)
        if made is None:
            made = self._made[place] = self._make(place)
        return made

    def __iter__(self) -> Iterator[Appraisal]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Appraisals) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as of every other list

    def named(self, replica: str) -> Appraisal:
        """Of the named candidate.

        Raises:
            KeyError: it was not considered.
        """
        try:
            return self[self.names.index(replica)]
        except ValueError:
            raise KeyError(replica) from None

    def replaced(self, appraisal: Appraisal) -> "Appraisals":
        """The same, but for one replica."""
        there = self.names.index(appraisal.replica)
        return Appraisals(self.names, lambda place: appraisal if place == there else self[place])

    def only(self, replicas: Iterable[str | None]) -> "Appraisals":
        """Those of some replicas; of what the others need, nothing is kept."""
        wanted = set(replicas)
        return Appraisals.of([self.named(one) for one in self.names if one in wanted])


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes, and why.

    Attributes:
        id: of the request.
        policy: name of the policy.
        chosen: name of the replica.
        reason: why that one, one of the policy's few fixed words (they label metrics).
        runner_up: the next best by score, or None when there is only one.
        load_cap: to be sent as `kv_transfer_params.max_load_tokens`, or None for nothing to be sent.
        at: when, seconds.
        appraisals: of every candidate, in the order that was given.
        tokens: of the prompt, as the policy took it to be.
    """

    id: str
    policy: str
    chosen: str
    reason: str
    runner_up: str | None
    load_cap: int | None
    at: float
    appraisals: Appraisals
    tokens: int = 0

    @property
    def considered(self) -> tuple[Appraisal, ...]:
        """All of `appraisals`, made; as they are written out as JSON."""
        return tuple(self.appraisals)

    @property
    def appraisal(self) -> Appraisal:
        """Of the chosen replica."""
        return self.appraisals.named(self.chosen)


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of a request that was sent.

    Attributes:
        id: of the request.
        replica: that it was sent to.
        final: nothing more will be reported. A request that cannot be followed is reported once, final.
        ttft: seconds from sending to the first token (to the whole answer where it is not streamed and
            short), or None when there was none, or none worth learning from.
        cached_tokens: that the engine says it did not compute, or None when it did not say.
        failed: by the replica's fault. A request that the client gave up is final and not failed.
    """

    id: str
    replica: str
    final: bool = True
    ttft: float | None = None
    cached_tokens: int | None = None
    failed: bool = False


class NoCandidatesError(ValueError):
    """There is no replica to choose from."""


class Policy(Protocol):
    """Chooses a replica. Not for several threads at once."""

    @property
    def name(self) -> str:
        """As it is chosen by option."""
        ...

    def decide(self, request: RequestView, candidates: Sequence[Candidate], now: float) -> Decision:
        """Choose. Changes nothing: asked twice in a row it answers the same.

        Raises:
            NoCandidatesError: `candidates` is empty.
        """
        ...

    def sent(self, request: RequestView, decision: Decision, now: float) -> None:
        """The request goes to `decision.chosen` now; right after `decide`. Again after a retry."""
        ...

    def observed(self, outcome: Outcome, now: float) -> None:
        """What became of it. Unknown and repeated ids are no error."""
        ...

    def told(self, replica: str, prefill: Prefill, now: float) -> None:
        """How fast the replica's engine says that it was; counts only before anything else is known."""
        ...

    def forget(self, replica: str) -> None:
        """The replica was removed or restarted: what was sent there is gone."""
        ...

    def describe(self, now: float) -> Mapping[str, Any]:
        """What the policy has learned and remembers, as plain data for JSON."""
        ...

    def save(self, now: float) -> bytes:
        """What it has learned, to be kept over a restart; empty when it learns nothing."""
        ...

    def restore(self, data: bytes, now: float) -> None:
        """Go on with what `save` wrote.

        Raises:
            ConfigError: it did not write that; nothing has changed then.
        """
        ...
