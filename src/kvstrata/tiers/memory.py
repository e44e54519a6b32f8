"""The memory tier: a real cache in the host arena, and the hub through which all storage traffic passes.

Besides the plain `Tier` interface (copy in, copy out) it hands out the places themselves, so that the
device and the other tiers move bytes straight into and out of the arena: reserve, fill, commit; pin, read,
unpin.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import GROUP_BYTES, ChunkKey, group_of, make_key
from kvstrata.tiers.entry import Entry, census
from kvstrata.tiers.eviction import PrefixUse
from kvstrata.tiers.eviction_boundary import BoundaryKeeping
from kvstrata.tiers.eviction_choice import PolicyMaker
from kvstrata.tiers.lifecycle import Event, State, advance
from kvstrata.tiers.slots import SlotAllocator
from kvstrata.tiers.tier import (
    Failed,
    Loaded,
    Missing,
    Present,
    ReadOutcome,
    Stored,
    Tier,
    WriteOutcome,
)

_WRITING = advance(State.ABSENT, Event.RESERVE)
_READY = State.READY
_PINNED = State.PINNED
_HELD = (_READY, _PINNED)
HOLES = 4
"""Times the size of a wanted slot that is evicted in holes before one of them is widened."""


class MemoryTier(Tier):
    """Chunks in host memory.

    All methods may be called from any thread; each holds one lock for microseconds (copies of the plain
    interface are done outside it, under a pin).

    Attributes:
        largest_slot: bytes of a slot of the group with the largest chunks.

    Args:
        arena: writable uint8 view of the arena's data area.
        geometries: geometry by group index.
        policy: makes the eviction policy from what tells a chunk's slot size in bytes; one for all groups,
            since a boundary spans them.

    Raises:
        ArenaError: the arena is too small for the model's chunks.
    """

    name = "memory"

    def __init__(
        self,
        arena: memoryview,
        geometries: Mapping[int, GroupGeometry],
        policy: PolicyMaker = BoundaryKeeping,
    ) -> None:
        sizes = {geometry.slot_bytes for geometry in geometries.values()}
        self.largest_slot = max(sizes)
        self._arena = arena
        self._geometries = dict(geometries)
        self._slot_sizes = {make_key(b"", g.group): g.slot_bytes for g in geometries.values()}
        self._payload_sizes = {make_key(b"", g.group): g.payload_bytes for g in geometries.values()}
        self._slots = SlotAllocator(len(arena), sizes)
        self._entries: dict[ChunkKey, Entry] = {}
        self._at: dict[int, ChunkKey] = {}
        self._policy = policy(self._slot_bytes)
        self._lock = threading.RLock()
        self._evicted: list[ChunkKey] = []

    # The hub: places.

    def entry(self, key: ChunkKey) -> Entry | None:
        """The chunk's place, in any state, or None when absent. Not to be changed by the caller."""
        return self._entries.get(key)

    def readable(self, key: ChunkKey, first_block: int = 0) -> bool:
        """Whether blocks from `first_block` on are here, whole and verified."""
        entry = self._entries.get(key)
        return entry is not None and entry.state in _HELD and entry.first_block <= first_block

    def held_all(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """`held` for each key."""
        entries = map(self._entries.get, keys)
        return [entry is not None and entry.state in _HELD for entry in entries]

    def lacking(
        self, keys: Sequence[ChunkKey], first_blocks: Mapping[ChunkKey, int]
    ) -> list[ChunkKey]:
        """The keys, in order, that are not readable from the block on that is needed; see `readable`.

        Args:
            keys: chunks that are needed.
            first_blocks: where the needed bytes begin; 0 for keys that it lacks.
        """
        doubtful = [
            key
            for key, entry in zip(keys, map(self._entries.get, keys), strict=True)
            if entry is None or entry.first_block or entry.state not in _HELD
        ]
        return [key for key in doubtful if not self.readable(key, first_blocks.get(key, 0))]

    def held(self, key: ChunkKey) -> bool:
        """Whether at least the chunk's last blocks are here, whole and verified."""
        return self.held_all([key])[0]

    def view(self, key: ChunkKey) -> memoryview:
        """Writable uint8 view of the chunk's place, `payload_bytes` long."""
        return self.view_at(key, self._entries[key].offset)

    def view_at(self, key: ChunkKey, offset: int) -> memoryview:
        """See `view`, for who knows the offset of the chunk's slot."""
        return self._arena[offset : offset + self._payload_sizes[key[-GROUP_BYTES:]]]

    def reserve(self, key: ChunkKey, origin: str) -> Entry | None:
        """`reserve_all` of one chunk: its entry in state WRITING, or None when no place can be freed now."""
        return self.reserve_all([key], origin)[0]

    def reserve_all(
        self, keys: Sequence[ChunkKey], origin: str, *, stop: bool = False
    ) -> list[Entry | None]:
        """Find places for chunks that are absent, evicting others if needed.

        Args:
            keys: all absent, each once.
            origin: see `Entry`.
            stop: end with the first chunk that finds no place.

        Returns:
            For each its entry in state WRITING, or None when no place could be freed for it.
        """
        entries, at, slots = self._entries, self._at, self._slots
        found: list[Entry | None] = []
        with self._lock:
            victims = self._policy.victims()
            for size, run in itertools.groupby(keys, self._slot_bytes):
                last = len(found) + len(list(run))
                while len(found) < last:
                    count = last - len(found)
                    offsets = slots.allocate_run(size, count) or self._take(size, count, victims)
                    if not offsets:
                        found.extend([None] * count)
                        if stop:
                            return found
                        victims = self._policy.victims()
                        break
                    for place, offset in enumerate(offsets, len(found)):
                        key = keys[place]
                        assert key not in entries
                        entries[key] = entry = Entry(offset, _WRITING, origin=origin)
                        at[offset] = key
                        found.append(entry)
        return found

    def commit(self, key: ChunkKey, first_block: int = 0) -> None:
        """The chunk's bytes from `first_block` on are whole and verified: it becomes readable."""
        self.commit_all([(key, first_block)])

    def commit_all(self, chunks: Sequence[tuple[ChunkKey, int]]) -> None:
        """`commit` for each key and its first block, in order."""
        entries, ready = self._entries, advance(_WRITING, Event.COMMIT)
        with self._lock:
            for key, first_block in chunks:
                entry = entries[key]
                assert entry.state is _WRITING
                entry.state = ready
                entry.first_block = first_block
            self._policy.offer_all([key for key, _ in chunks])

    def abort(self, key: ChunkKey) -> None:
        """The chunk's bytes did not come and nobody writes into its place any more."""
        with self._lock:
            self._step(key, Event.ABORT)
            self._forget(key)

    def abandon(self, key: ChunkKey) -> None:
        """Make the chunk unreadable for good but keep its place until `release`. Pins are void."""
        with self._lock:
            known = self._entries[key].state is State.PINNED
            entry = self._step(key, Event.ABANDON)
            entry.pins = 0
            if known:
                self._policy.gone(key)

    def release(self, key: ChunkKey) -> None:
        """Free the place of an abandoned chunk: nobody can touch it any more."""
        with self._lock:
            self._step(key, Event.RELEASE)
            self._forget(key)

    def pin(self, keys: Iterable[ChunkKey]) -> list[int]:
        """Keep readable chunks in place. Pins are counted.

        Returns:
            Byte offset of each chunk's slot in the arena.
        """
        entries, pinned = self._entries, advance(_READY, Event.PIN)
        first = []
        offsets = []
        with self._lock:
            for key in keys:
                entry = entries[key]
                if entry.state is not _PINNED:
                    assert entry.state is _READY
                    entry.state = pinned
                    first.append(key)
                entry.pins += 1
                offsets.append(entry.offset)
            self._policy.withdraw_all(first)
        return offsets

    def unpin(self, keys: Sequence[ChunkKey]) -> None:
        """Take one pin from each; pinned keys only, but abandoned ones are passed over.

        Later keys of the sequence become the first to be evicted, so pass a prefix in its order: it is
        dropped from its end.
        """
        entries, ready = self._entries, advance(_PINNED, Event.UNPIN)
        last = []
        with self._lock:
            for key in reversed(keys):
                entry = entries.get(key)
                if entry is None or entry.state is not _PINNED:
                    continue
                entry.pins -= 1
                if entry.pins == 0:
                    entry.state = ready
                    last.append(key)
            self._policy.offer_all(last)

    def touch(self, keys: Sequence[ChunkKey]) -> None:
        """These chunks were just used. A prefix passed in order is later dropped from its end."""
        with self._lock:
            for key in reversed(keys):
                entry = self._entries.get(key)
                if entry is not None and entry.state is State.READY:
                    self._policy.withdraw(key)
                    self._policy.offer(key)

    @property
    def late_uses(self) -> bool:
        """When `used` is to be called; see `EvictionPolicy.late`."""
        return self._policy.late

    def used(self, use: PrefixUse) -> None:
        """A request used a prefix; tells eviction which chunks belong together, here or on their way."""
        with self._lock:
            self._policy.used(use)

    def clear(self) -> list[ChunkKey]:
        """Forget every chunk that is ready; returns the keys of all others, which keep their places."""
        with self._lock:
            for key in [k for k, e in self._entries.items() if e.state is State.READY]:
                self._evict(key)
            return list(self._entries)

    def take_evicted(self) -> list[ChunkKey]:
        """Keys evicted or removed since the last call."""
        with self._lock:
            evicted, self._evicted = self._evicted, []
        return evicted

    def census(self) -> dict[State, tuple[int, int]]:
        """For each state (ABSENT aside): chunks and bytes of their slots. Walks all entries."""
        with self._lock:
            return census((entry, self._slot_bytes(key)) for key, entry in self._entries.items())

    @property
    def in_use(self) -> int:
        """Chunks that are being written, pinned or evicting, so that their places may come free."""
        return len(self._entries) - len(self._policy)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the data area."""
        return len(self._arena)

    # The plain interface: copies.

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`; exact here."""
        return self.held_all(keys)

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        geometry = self._geometries[group_of(key)]
        with self._lock:
            if not self.readable(key, first_block):
                return Missing()
            self.pin([key])
            source = self.view(key)
        start = first_block * geometry.block_bytes
        into[start : geometry.payload_bytes] = source[start:]
        self.unpin([key])
        return Loaded(geometry.payload_bytes - start)

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        geometry = self._geometries[group_of(key)]
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                if self.readable(key, first_block):
                    return Present()
                if entry.state is not State.READY:
                    return Failed("busy", "the chunk is being written or read")
                self._evict(key)
            if self.reserve(key, "device") is None:
                return Failed("full", "every slot is in use")
            target = self.view(key)
        start = first_block * geometry.block_bytes
        target[start:] = payload[start : geometry.payload_bytes]
        self.commit(key, first_block)
        return Stored(geometry.payload_bytes - start)

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`; a chunk in use stays."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.state is not State.READY:
                return False
            self._evict(key)
            return True

    def scan(self) -> Iterator[ChunkKey]:
        """See `Tier.scan`."""
        with self._lock:
            return iter([key for key in self._entries if self.held(key)])

    # Inner workings; all under the lock.

    def _slot_bytes(self, key: ChunkKey) -> int:
        return self._slot_sizes[key[-GROUP_BYTES:]]

    def _step(self, key: ChunkKey, event: Event) -> Entry:
        entry = self._entries[key]
        entry.state = advance(entry.state, event)
        return entry

    def _forget(self, key: ChunkKey) -> None:
        entry = self._entries.pop(key)
        del self._at[entry.offset]
        self._slots.free(entry.offset)

    def _evict(self, key: ChunkKey) -> None:
        self._slots.free(self._vacate(key))

    def _vacate(self, key: ChunkKey) -> int:
        """Evict a chunk; its slot, whose offset is returned, stays taken."""
        entry = self._step(key, Event.EVICT)
        self._policy.withdraw(key)
        self._policy.gone(key)
        del self._entries[key], self._at[entry.offset]
        self._evicted.append(key)
        return entry.offset

    def _take(self, size: int, count: int, victims: Iterator[ChunkKey]) -> list[int]:
        """Offsets of at most `count` slots of `size` bytes from evicted chunks; none if all are in use.

        No such slot is free. While the least worthy chunk has one of the size that is wanted, that is taken
        as it is. Else the least worthy chunks go, of whatever size, until there is a place; where they only
        leave holes that are too small, the chunks beside one of them go too.
        """
        freed = 0
        offsets: list[int] = []
        holes: list[int] = []
        for key in victims:
            nbytes, offset = self._slot_bytes(key), self._vacate(key)
            if nbytes == size and not holes:
                offsets.append(offset)
                if len(offsets) == count:
                    break
                continue
            self._slots.free(offset)
            if self._slots.available(size):
                break
            holes.append(offset)
            freed += nbytes
            if freed >= HOLES * size:
                if self._widen(holes, size):
                    break
                freed, holes = 0, []
        return offsets or self._slots.allocate_run(size, count)

    def _widen(self, holes: Iterable[int], size: int) -> bool:
        """Make one of these holes large enough, by evicting as few of the chunks behind it as possible."""
        ways = [[self._at[offset] for offset in way] for way in self._slots.in_the_way(holes, size)]
        idle = [way for way in ways if all(self._entries[key].state is _READY for key in way)]
        for key in min(idle, key=len, default=[]):
            self._evict(key)
        return self._slots.available(size)
