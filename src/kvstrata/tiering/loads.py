"""One request's way to its cached chunks: survey, reserve, read, ready. A state machine without I/O.

A *survey* finds the boundary that memory and storage together allow. Places for what memory lacks are
*reserved*, some in each step (see `kvstrata.tiering.reserving`), and the chunks *read*, by as many threads
as are free, and pinned as they arrive. When all are there the load is *ready*; when some did not come it is
planned again without them. Past its deadline it is ready with what memory
holds. Only a ready load answers lookups, so a hit is always bytes in memory, verified.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvstrata.chunks.key import ChunkKey
from kvstrata.clock import Clock
from kvstrata.tiering.planner import LoadPlan, RequestShape
from kvstrata.tiering.runner import Job
from kvstrata.tiers.tier import Loaded, ReadOutcome, Tier, Transfer

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
        todo: chunks of the plan that have no place yet; None before the first is reserved.
        pinned: chunks that this load keeps in memory.
        waiting: chunks that are being written into memory, by this load or by somebody else.
        absent: chunks that were promised and did not come; planned around.
        promoted: chunks that came from storage for this load.
        first_blocks: needed block of chunks that are not needed whole; see `LoadPlan.needs`.
        jobs: I/O under way for this load, with the chunks that each job brings (none for a survey).
        rounds: surveys made.
        due: see `Pace.due`.
        shared: see `LoadPlan.shared`; the largest of all plans.
    """

    shape: RequestShape
    deadline: float
    started: float
    phase: Phase = Phase.SURVEYING
    plan: LoadPlan | None = None
    todo: list[ChunkKey] | None = None
    pinned: list[ChunkKey] = field(default_factory=list)
    waiting: set[ChunkKey] = field(default_factory=set)
    absent: set[ChunkKey] = field(default_factory=set)
    promoted: set[ChunkKey] = field(default_factory=set)
    first_blocks: dict[ChunkKey, int] = field(default_factory=dict)
    jobs: list[tuple[Job, frozenset[ChunkKey]]] = field(default_factory=list)
    rounds: int = 0
    due: float = 0.0
    shared: int = 0

    def same_request(self, shape: RequestShape) -> bool:
        """Whether `shape` asks for the same chunks as this load was planned for."""
        return self.shape.computed == shape.computed and self.shape.tokens == shape.tokens


@dataclass(frozen=True, slots=True)
class Read:
    """What a job that reads has led to.

    Attributes:
        outcomes: of its chunks.
        seconds: that it took.
    """

    outcomes: Sequence[ReadOutcome]
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes that were loaded."""
        return sum(one.nbytes for one in self.outcomes if isinstance(one, Loaded))


def timed_read(storage: Tier, targets: Sequence[Transfer], clock: Clock) -> Read:
    """Read a job's chunks; by one of the runner's threads."""
    begun = clock.now()
    outcomes = storage.read_many(targets)
    return Read(outcomes, clock.now() - begun)


def batches(
    chunks: Sequence[tuple[ChunkKey, int]], sizes: Sequence[int]
) -> list[list[tuple[ChunkKey, int]]]:
    """Cut reads or writes into jobs: small chunks together, so that a job is worth a thread's attention.

    Args:
        chunks: each with something that its job needs to know.
        sizes: payload bytes of each.
    """
    jobs: list[list[tuple[ChunkKey, int]]] = []
    size = JOB_BYTES
    for chunk, nbytes in zip(chunks, sizes, strict=True):
        if size >= JOB_BYTES or len(jobs[-1]) >= JOB_CHUNKS:
            jobs.append([])
            size = 0
        jobs[-1].append(chunk)
        size += nbytes
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
