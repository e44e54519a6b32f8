"""Places in memory for a load's chunks, reserved some in each of the scheduler's steps.

A load gets all its places at once, or none. A large one gets them over several steps, so that no step takes
long, and its first chunks are read meanwhile; but only where there is room for certain, and one load at a
time (it has the *turn*): two that hold a part of what they need could each wait for what the other holds.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiering.loads import Load
from kvstrata.tiering.planner import LoadPlan, RequestShape, plan_load
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier

STEP_CHUNKS = 512
"""Places that are reserved in one step; about a millisecond of the scheduler's time."""
MAX_PLANS = 4
"""Plans for one request, each without the chunks that the one before found to be too short."""


def plan_in_memory(memory: MemoryTier, shape: RequestShape) -> LoadPlan:
    """What memory alone allows; every chunk that the plan needs is readable.

    Args:
        memory: the hub.
        shape: of the request.
    """
    short: set[ChunkKey] = set()  # chunks that hold fewer blocks than the plan needs

    def presence(keys: Sequence[ChunkKey]) -> list[bool]:
        held = memory.held_all(keys)
        if not short:
            return held
        return [here and key not in short for key, here in zip(keys, held, strict=True)]

    for _ in range(MAX_PLANS):
        plan = plan_load(shape, presence, exact=True)
        lacking = memory.lacking(plan.keys(), plan.first_blocks())
        if not lacking:
            return plan
        short.update(lacking)
    return LoadPlan(shape.computed, ())


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
    """Result of `Reserving.reserve`.

    Attributes:
        reads: chunks to read, with the first block that is needed.
        waits: chunks that are being written: those to read, and those that others bring.
        blocked: some cannot be had now; they are in `Load.absent`.
        no_room: nothing was reserved in this step.
    """

    reads: Sequence[tuple[ChunkKey, int]] = ()
    waits: Sequence[ChunkKey] = ()
    blocked: bool = False
    no_room: bool = False


class Reserving:
    """Whose turn it is, and the reserving itself; only for the scheduler's thread.

    Args:
        memory: the hub.
    """

    def __init__(self, memory: MemoryTier) -> None:
        self._memory = memory
        self._turn: Load | None = None
        self._full = False

    @property
    def under_way(self) -> bool:
        """Whether a load has got some of its places and will get more in the next step."""
        return self._turn is not None and bool(self._turn.todo) and not self._full

    def begin(self, load: Load) -> None:
        """Set `todo` and `first_blocks` of a load that has a plan."""
        assert load.plan is not None
        load.todo = load.plan.keys()
        load.first_blocks = load.plan.first_blocks()
        if self._turn is None and len(load.todo) > STEP_CHUNKS:
            chunks = self._memory.in_use + len(load.todo)
            if chunks * self._memory.largest_slot <= self._memory.arena_bytes:
                self._turn = load

    def end(self, load: Load) -> None:
        """The load has all its places, or needs none any more."""
        load.todo = None
        if self._turn is load:
            self._turn = None

    def reserve(self, load: Load, origin: str) -> Reservation:
        """Pin or reserve what the load needs, or what it gets in this step: all of that or none.

        On success `load.pinned` and `load.waiting` cover these too, and `load.todo` is what is left.

        Args:
            load: that has begun.
            origin: name of the tier that the bytes come from.
        """
        assert load.todo
        memory, count = self._memory, STEP_CHUNKS if self._turn is load else len(load.todo)
        keys = load.todo[:count]
        first_blocks = load.first_blocks
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
        self._full = None in places
        if self._full:
            for key, place in zip(reads, places, strict=False):
                if place is not None:
                    memory.abort(key)
            memory.unpin(held)
            return Reservation(no_room=True)
        load.pinned = [*load.pinned, *held]
        load.waiting.update(lacking)
        load.todo = load.todo[count:]
        return Reservation(
            reads=tuple((key, first_blocks.get(key, 0)) for key in reads),
            waits=tuple(lacking),
        )

    def hopeless(self, load: Load) -> bool:
        """Whether waiting brings no room: whatever is in use is in use for this load."""
        return self._memory.in_use <= len(load.pinned) + len(load.waiting)
