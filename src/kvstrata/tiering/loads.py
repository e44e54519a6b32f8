"""One request's way to its cached chunks: survey, reserve, read, ready. A state machine without I/O.

A *survey* finds the boundary that memory and storage together allow. Places for what memory lacks are
*reserved*, all or none, so that two requests cannot each hold half of what they need. Then the chunks are
*read*, by as many threads as are free, and pinned as they arrive. When all are there the load is *ready*;
when some did not come it is planned again without them. Past its deadline it is ready with what memory
holds. Only a ready load answers lookups, so a hit is always bytes in memory, verified.
"""

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiering.planner import LoadPlan, RequestShape
from kvstrata.tiering.runner import Job
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier

JOB_BYTES = 4 << 20
"""Bytes of payload after which a job is full."""
JOB_CHUNKS = 32
"""Chunks after which a job is full."""


class Phase(enum.Enum):
    """Where a load stands."""

    SURVEYING = "surveying"
    RESERVING = "reserving"
    READING = "reading"
    READY = "ready"


@dataclass(slots=True, eq=False)
class Load:
    """One request's load.

    Attributes:
        shape: of the request; its `computed` is part of the load's identity.
        deadline: clock time after which storage is not waited for.
        started: clock time of the first lookup.
        phase: see `Phase`.
        plan: what the last survey found.
        pinned: chunks that this load keeps in memory.
        waiting: chunks that are being written into memory, by this load or by somebody else.
        absent: chunks that were promised and did not come; planned around.
        promoted: chunks that came from storage for this load.
        first_blocks: needed block of chunks that are not needed whole; see `LoadPlan.needs`.
        jobs: I/O under way for this load, with the chunks that each job brings (none for a survey).
        rounds: surveys made.
        shared: see `LoadPlan.shared`; the largest of all plans.
    """

    shape: RequestShape
    deadline: float
    started: float
    phase: Phase = Phase.SURVEYING
    plan: LoadPlan | None = None
    pinned: list[ChunkKey] = field(default_factory=list)
    waiting: set[ChunkKey] = field(default_factory=set)
    absent: set[ChunkKey] = field(default_factory=set)
    promoted: set[ChunkKey] = field(default_factory=set)
    first_blocks: dict[ChunkKey, int] = field(default_factory=dict)
    jobs: list[tuple[Job, frozenset[ChunkKey]]] = field(default_factory=list)
    rounds: int = 0
    shared: int = 0

    def same_request(self, shape: RequestShape) -> bool:
        """Whether `shape` asks for the same chunks as this load was planned for."""
        return self.shape.computed == shape.computed and self.shape.tokens == shape.tokens


class Need(enum.Enum):
    """What memory can say about one needed chunk."""

    HELD = "held"
    """Readable now."""
    COMING = "coming"
    """Being written; will be readable or gone soon."""
    READ = "read"
    """Not in memory: to be read from storage."""
    BLOCKED = "blocked"
    """Its place cannot be used now; as good as absent."""


def classify(memory: MemoryTier, key: ChunkKey, first_block: int) -> Need:
    """See `Need`."""
    entry = memory.entry(key)
    if entry is None:
        return Need.READ
    if entry.state is State.WRITING:
        return Need.COMING
    if memory.readable(key, first_block):
        return Need.HELD
    if entry.state is State.READY:
        memory.remove(key)  # holds fewer blocks than needed: read it anew
        return Need.READ
    return Need.BLOCKED


@dataclass(frozen=True, slots=True)
class Reservation:
    """Result of `reserve`: chunks to read with their first block, or why not."""

    reads: tuple[tuple[ChunkKey, int], ...] = ()
    blocked: bool = False
    no_room: bool = False


def reserve(memory: MemoryTier, load: Load, origin: str) -> Reservation:
    """Pin or reserve everything the load's plan needs, all or nothing.

    On success `load.pinned` and `load.waiting` cover the plan. Otherwise nothing is held; chunks that
    cannot be used are added to `load.absent`.
    """
    assert load.plan is not None and not load.pinned and not load.waiting
    keys = load.plan.keys()
    first_blocks = load.first_blocks = load.plan.first_blocks()
    lacking = {
        key: classify(memory, key, first_blocks.get(key, 0))
        for key in memory.lacking(keys, first_blocks)
    }
    blocked = [key for key, kind in lacking.items() if kind is Need.BLOCKED]
    if blocked:
        load.absent.update(blocked)
        return Reservation(blocked=True)
    held = [key for key in keys if key not in lacking] if lacking else keys
    memory.pin(held)
    reads = [key for key, kind in lacking.items() if kind is Need.READ]
    places = memory.reserve_all(reads, origin, stop=True)
    if None in places:
        for key, place in zip(reads, places, strict=False):
            if place is not None:
                memory.abort(key)
        memory.unpin(held)
        return Reservation(no_room=True)
    load.pinned = held
    load.waiting = set(lacking)
    return Reservation(reads=tuple((key, first_blocks.get(key, 0)) for key in reads))


def batches(
    reads: Sequence[tuple[ChunkKey, int]], size_of: Callable[[ChunkKey], int]
) -> list[list[tuple[ChunkKey, int]]]:
    """Cut reads into jobs: small chunks together, so that a job is worth a thread's attention.

    Args:
        reads: chunks with their first block.
        size_of: payload bytes of a chunk.
    """
    jobs: list[list[tuple[ChunkKey, int]]] = []
    size = JOB_BYTES
    for need in reads:
        if size >= JOB_BYTES or len(jobs[-1]) >= JOB_CHUNKS:
            jobs.append([])
            size = 0
        jobs[-1].append(need)
        size += size_of(need[0])
    return jobs


def stored_tokens(load: Load, computed: int, loaded: int) -> int:
    """How many of a ready load's tokens came from storage for it (not from memory).

    Args:
        load: ready.
        computed: tokens before the load.
        loaded: tokens that the load brings.
    """
    if load.plan is None or not load.promoted:
        return 0
    covered: list[tuple[int, int]] = []
    for part in load.plan.parts:
        chunk = part.geometry.tokens_per_chunk
        covered += [
            (index * chunk, (index + 1) * chunk)
            for index, key in enumerate(part.keys, part.start)
            if key in load.promoted
        ]
    if all(part.geometry.windowed for part in load.plan.parts):
        return loaded  # the end of the prefix stands for all of it
    end = computed + loaded
    return measure_union((max(low, computed), min(high, end)) for low, high in sorted(covered))


def measure_union(ranges: Iterable[tuple[int, int]]) -> int:
    """Length of the union of half-open ranges, given in order of their start."""
    total, reached = 0, 0
    for low, high in ranges:
        total += max(high - max(low, reached), 0)
        reached = max(reached, high)
    return total
