"""The tiered cache of one engine: what the scheduler asks, answered from memory and storage.

Everything here runs in the scheduler's thread and returns at once; files are touched only by the runner's
threads. `tick` delivers what they finished.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import GROUP_BYTES, ChunkKey, make_key
from kvstrata.clock import Clock
from kvstrata.tiering.admitting import OPTED_OUT, Admitting, Keep
from kvstrata.tiering.announcements import Announcements, TierEvent
from kvstrata.tiering.planner import RequestShape
from kvstrata.tiering.promotions import Promotions
from kvstrata.tiering.runner import Priority, Runner
from kvstrata.tiering.usage import describe_answer, describe_use
from kvstrata.tiering.writes import WriteBehind
from kvstrata.tiers.admission import Admission, Always
from kvstrata.tiers.eviction import PrefixUse
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import Tier

RESET_STEPS = 32
"""Scheduler steps after a reset in which a device copy may still be under way; far more than any engine
schedules ahead, since a place that comes free too early would be written by two."""


class TieredCache:
    """Memory in front of at most one storage tier.

    Attributes:
        memory: the hub.
        loads: requests' loads; see `Promotions`.

    Args:
        memory: the hub.
        storage: a persistent tier, or None for a memory-only cache.
        geometries: by group index.
        runner: does the I/O; None only without storage.
        clock: for deadlines.
        read_deadline: seconds that a request waits for storage.
        store_queue: payload bytes that may wait to be written at most; see `WriteBehind.limit`.
        counters: where everything is counted.
        announced: see `Announcements`; None when nobody follows the events.
        admission: which chunks are written to storage; None for all.
    """

    def __init__(
        self,
        memory: MemoryTier,
        storage: Tier | None,
        geometries: Mapping[int, GroupGeometry],
        runner: Runner | None,
        clock: Clock,
        *,
        read_deadline: float,
        store_queue: int,
        counters: m.Metrics,
        announced: Callable[[ChunkKey], bool] | None = None,
        admission: Admission | None = None,
    ) -> None:
        assert (storage is None) == (runner is None)
        self.memory = memory
        self._storage = storage
        self._sizes = {make_key(b"", g.group): g.payload_bytes for g in geometries.values()}
        self._runner = runner
        self._counters = counters
        self._storing: dict[ChunkKey, int] = {}
        self._condemned: dict[ChunkKey, int] = {}
        self._order = itertools.count()
        self._followed = announced is not None
        full = [geometry.group for geometry in geometries.values() if not geometry.windowed]
        self._events = Announcements(memory, storage, full, announced)
        self._uses: dict[str, PrefixUse] = {}
        self.loads = Promotions(
            memory, storage, runner, clock, read_deadline, counters, self._size, self._events
        )
        self._admitting = Admitting(memory, admission or Always(), counters)
        self._writes = WriteBehind(
            memory, store_queue, counters, self._events.written, self._size, clock
        )

    @property
    def storage_owner(self) -> str | None:
        """See `Tier.owner`; None without storage, too."""
        return self._storage.owner if self._storage is not None else None

    # Device reads.

    def offset(self, key: ChunkKey) -> int:
        """Byte offset of a chunk's slot in the arena."""
        entry = self.memory.entry(key)
        assert entry is not None
        return entry.offset

    def pin_for_device(self, keys: Sequence[ChunkKey]) -> list[int]:
        """Keep chunks in place while the device reads them; `device_read` ends it.

        Returns:
            Byte offset of each chunk's slot in the arena.
        """
        return self.memory.pin(keys)

    def device_read(self, keys: Sequence[ChunkKey]) -> None:
        """The device has read these chunks."""
        self.memory.unpin(keys)

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        """These chunks were used, though not loaded (the device holds them)."""
        self.memory.touch(keys)

    # Uses, for eviction and admission.

    def used(
        self,
        request: str,
        shape: RequestShape,
        resumed: int,
        junctions: Iterable[int] = (),
        keep: Keep = Keep.EVERYWHERE,
    ) -> None:
        """A request is scheduled.

        Args:
            request: its id.
            shape: what it is.
            resumed: tokens that it need not compute.
            junctions: tokens before which it also leaves its windowed groups' states.
            keep: where its chunks may be kept.
        """
        if keep is Keep.EVERYWHERE and self._storage is not None and self._runner is not None:
            held = max(resumed, self.loads.shared(request))
            due = self._admitting.saw(request, shape, held)
            if due:
                self._writes.submit(due, self._storage, self._runner)
        use = describe_use(shape, resumed, junctions)
        if use is None:
            return
        if self.memory.late_uses:
            self._uses[request] = use
        else:
            self.memory.used(use)

    def answered(self, request: str, shape: RequestShape, prompt_tokens: int) -> None:
        """A request ends, and its answer is kept too.

        Args:
            request: its id.
            shape: what it is, its answer included.
            prompt_tokens: tokens of the prompt alone.
        """
        use = describe_answer(shape, prompt_tokens)
        if use is None:
            return
        if not self.memory.late_uses:
            self.memory.used(use)
        elif request in self._uses:
            self._uses[request] = replace(self._uses[request], chain=use.chain, kept=use.kept)

    def ended(self, request: str) -> None:
        """The request is gone: so is its load."""
        self.loads.drop(request)
        self._admitting.ended(request)
        use = self._uses.pop(request, None)
        if use is not None:
            self.memory.used(use)

    # Stores.

    def prepare_store(
        self, keys: Iterable[ChunkKey], mark: bytes | None = None, keep: Keep = Keep.EVERYWHERE
    ) -> list[tuple[ChunkKey, int]]:
        """Find places for chunks that the device is about to give.

        Args:
            keys: of the chunks.
            mark: of the tenant that they belong to, 8 bytes; None for nobody's.
            keep: where they may be kept.

        Returns:
            Those that are new and got a place, in order, with the byte offset of their slot.
        """
        wanted = list(dict.fromkeys(keys))
        if keep is Keep.NOWHERE:
            self._counters.count(m.NOT_ADMITTED, len(wanted), (OPTED_OUT,))
            return []
        entry_of = self.memory.entry
        accepted: list[tuple[ChunkKey, int]] = []
        start = 0
        while start < len(wanted):
            if entry_of(wanted[start]) is not None:
                start += 1
                continue
            end = start + 1  # what is known behind these may be evicted for them, and is new then
            while end < len(wanted) and entry_of(wanted[end]) is None:
                end += 1
            new = wanted[start:end]
            places = self.memory.reserve_all(new, "device")
            if mark is not None:
                for place in places:
                    if place is not None:
                        place.owner = mark
            got = [(k, e.offset) for k, e in zip(new, places, strict=True) if e is not None]
            if len(got) < len(new):
                self._counters.count(m.WRITES_DROPPED, len(new) - len(got), ("no_slot",))
            accepted += got
            start = end
        for (key, _), number in zip(accepted, self._order, strict=False):
            self._storing[key] = number
        if self._storage is not None:
            if keep is Keep.EVERYWHERE:
                self._admitting.offered(wanted)
            else:
                self._admitting.keep_from_storage([key for key, _ in accepted])
        return accepted

    def complete_store(
        self,
        keys: Iterable[ChunkKey],
        first_blocks: Mapping[ChunkKey, int],
        torn: frozenset[ChunkKey],
    ) -> None:
        """The device has written these chunks into their places.

        Args:
            keys: in any order.
            first_blocks: first valid block of chunks that are not whole.
            torn: chunks whose bytes are not usable.
        """
        ended = self._stores_ended(keys)
        lost = [key for key in ended if key in torn] if torn else []
        for key in lost:
            self.memory.abort(key)
        if lost:
            self.loads.arrived(lost, readable=False)
            self._admitting.forget(lost)
            self._counters.count(m.WRITES_DROPPED, len(lost), ("torn",))
        stored = [key for key in ended if key not in torn] if torn else ended
        self.memory.commit_all([(key, first_blocks.get(key, 0)) for key in stored])
        self.loads.arrived(stored, readable=True)
        if stored:
            self._events.stored(stored)
            if self._storage is not None and self._runner is not None:
                admitted = self._admitting.admit(stored)
                self._writes.submit(admitted, self._storage, self._runner)

    # Housekeeping.

    def tick(self) -> None:
        """Once a step: deliver finished I/O, look after stuck threads."""
        if self._storage is not None:
            self._events.removed(self._storage)
        if self._runner is not None:
            self._runner.poll()
            self._counters.level(m.STUCK_THREADS, self._runner.tend())
        self._events.evicted()
        self._release_condemned()

    def busy(self) -> bool:
        """Whether something is under way, or has ended, that somebody should notice: I/O, or an event."""
        waiting = self._followed and self._events.waiting
        return waiting or (self._runner is not None and self._runner.busy)

    def take_events(self) -> list[TierEvent]:
        """Events since the last call."""
        return self._events.take()

    def reset(self, storage: Tier | None) -> None:
        """Forget all chunks in memory, and use another storage tier from now on.

        What is being read, written or copied just now becomes unreadable at once; its places come free
        when nobody can touch them any more.
        """
        self.loads.drop_all()
        device = set(self._storing)
        self._admitting.forget(list(device))
        self._storing.clear()
        unreadable = []
        for key in self.memory.clear():
            entry = self.memory.entry(key)
            assert entry is not None
            if entry.state is State.EVICTING:
                continue
            if entry.state is not State.WRITING:
                unreadable.append(key)
            from_storage = entry.state is State.WRITING and key not in device
            self.memory.abandon(key)
            if not from_storage:  # else the end of its read releases it
                self._condemned[key] = 0
        self._events.evicted(unreadable)
        self._events.reset(storage)
        self.close()
        self._storage = self.loads.storage = storage

    def close(self) -> None:
        """Storage is used no more."""
        if self._storage is not None:
            self._storage.close()

    def measure(self) -> None:
        """Set the gauges."""
        for state, (chunks, nbytes) in self.memory.census().items():
            self._counters.level(m.CHUNKS, chunks, (self.memory.name, state.value))
            self._counters.level(m.ARENA_BYTES, nbytes, (state.value,))
        for priority in Priority:
            depth = self._runner.depth(priority) if self._runner is not None else 0
            self._counters.level(m.QUEUE_DEPTH, depth, (priority.name.lower(),))

    # Inner workings.

    def _size(self, key: ChunkKey) -> int:
        return self._sizes[key[-GROUP_BYTES:]]

    def _stores_ended(self, keys: Iterable[ChunkKey]) -> list[ChunkKey]:
        """Those that were under way, in the order of `prepare_store`; they no longer are."""
        storing = self._storing
        ended = storing.keys() & keys
        if len(ended) == len(storing):
            ordered = list(storing)
            storing.clear()
            return ordered
        ordered = sorted(ended, key=storing.__getitem__)
        for key in ordered:
            del storing[key]
        return ordered

    def _release_condemned(self) -> None:
        """Free places that only a device copy from before a reset could still touch.

        vLLM flushes such copies in the step after the reset and does not report their end.
        """
        for key in list(self._condemned):
            self._condemned[key] += 1
            if self._condemned[key] > RESET_STEPS and not self._writes.active(key):
                del self._condemned[key]
                self.memory.release(key)
