"""Places in the host arena: fixed-size slots, cut from slabs on demand. Pure bookkeeping over offsets.

Groups of a hybrid model have chunks of different sizes. Each distinct size is a *class*; the arena is cut
into equal slabs, and a slab serves one class as long as any of its slots is taken. So memory flows between
groups as the mixture of requests changes, and nothing is fixed in advance.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kvstrata.chunks.geometry import SLOT_ALIGNMENT
from kvstrata.errors import ArenaError

SLABS_WANTED = 64
"""Slabs that a mixed arena is cut into at least, if its slots are small enough."""
WASTE = 1 / 32
"""Part of a slab that may be left over beside its slots, of any class. Slabs are as small as this allows,
since a slab changes its class only when all of it is free."""


@dataclass(slots=True)
class _Slab:
    start: int
    size: int = 0
    free: list[int] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)


class SlotAllocator:
    """Hands out byte offsets of slots.

    Args:
        arena_bytes: bytes of the arena's data area.
        slot_sizes: every size that will be asked for, multiples of 4096.

    Raises:
        ArenaError: the arena cannot hold two slabs of each class.
    """

    def __init__(self, arena_bytes: int, slot_sizes: Iterable[int]) -> None:
        sizes = sorted(set(slot_sizes))
        assert sizes and all(size > 0 and size % SLOT_ALIGNMENT == 0 for size in sizes)
        self.slab_bytes = _slab_bytes(arena_bytes, sizes)
        count = arena_bytes // self.slab_bytes if self.slab_bytes else 0
        wanted = 1 if len(sizes) == 1 else 2 * len(sizes)
        if count < wanted:
            raise ArenaError(
                f"memory is {arena_bytes} bytes, but the smallest arena for this model is "
                f"{wanted * sizes[-1]} bytes ({wanted} chunks of {sizes[-1]} bytes): give the option "
                f"'memory' at least that much, or make chunks smaller (blocks_per_chunk)"
            )
        self._slabs = [_Slab(index * self.slab_bytes) for index in range(count)]
        self._idle = list(reversed(range(count)))
        self._open: dict[int, dict[int, None]] = {size: {} for size in sizes}

    def allocate(self, size: int) -> int | None:
        """Offset in bytes of a free slot of `size` bytes, or None when there is none."""
        usable = self._open[size]
        if usable:
            index = next(iter(usable))
        elif self._idle:
            index = self._idle.pop()
            slab = self._slabs[index]
            slab.size = size
            slab.free = [
                slab.start + position * size
                for position in reversed(range(self.slab_bytes // size))
            ]
            usable[index] = None
        else:
            return None
        slab = self._slabs[index]
        offset = slab.free.pop()
        slab.taken.add(offset)
        if not slab.free:
            del usable[index]
        return offset

    def available(self, size: int) -> bool:
        """Whether `allocate` would find a slot of `size` bytes."""
        return bool(self._open[size] or self._idle)

    def free(self, offset: int) -> None:
        """Give a slot back. `offset` must be taken."""
        index = offset // self.slab_bytes
        slab = self._slabs[index]
        slab.taken.remove(offset)
        slab.free.append(offset)
        if not slab.taken:
            self._open[slab.size].pop(index, None)
            slab.free = []
            self._idle.append(index)
        else:
            self._open[slab.size][index] = None

    def neighbours(self, offset: int) -> Iterator[int]:
        """Every taken slot of the slab that holds `offset`: what must go before the slab changes class."""
        return iter(tuple(self._slabs[offset // self.slab_bytes].taken))

    def capacity(self, size: int) -> int:
        """Slots of `size` bytes that an otherwise empty arena can hold."""
        return len(self._slabs) * (self.slab_bytes // size)

    @property
    def free_slabs(self) -> int:
        """Slabs that serve no class at the moment."""
        return len(self._idle)


def _slab_bytes(arena_bytes: int, sizes: list[int]) -> int:
    largest = sizes[-1]
    if len(sizes) == 1:
        return largest
    limit = max(min(arena_bytes // SLABS_WANTED, 64 << 20), largest)
    choices = range(largest, limit + 1, largest)
    for slab in choices:
        if all(slab % size <= slab * WASTE for size in sizes):
            return slab
    return choices[-1]
