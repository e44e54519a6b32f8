"""Places in the host arena: one contiguous slot a chunk. Pure bookkeeping over offsets.

Groups of a hybrid model have chunks of a few different sizes. Slots of all sizes share one address range,
so memory flows between groups as the mixture of requests changes, and nothing is fixed in advance. Free
ranges are joined when they touch. To keep them useful, a slot goes where it fits exactly, else where what
is left over can still hold another; and sizes are cut from opposite ends of a range, so that slots of one
size lie together.
"""

import bisect
from collections.abc import Iterable, Iterator

from kvstrata.chunks.geometry import SLOT_ALIGNMENT
from kvstrata.errors import ArenaError


class SlotAllocator:
    """Hands out byte offsets of slots.

    Args:
        arena_bytes: bytes of the arena's data area.
        slot_sizes: every size that will be asked for, multiples of 4096.

    Raises:
        ArenaError: the arena cannot hold two chunks of the largest size for each size.
    """

    def __init__(self, arena_bytes: int, slot_sizes: Iterable[int]) -> None:
        sizes = sorted(set(slot_sizes))
        assert sizes and all(size > 0 and size % SLOT_ALIGNMENT == 0 for size in sizes)
        wanted = 1 if len(sizes) == 1 else 2 * len(sizes)
        if arena_bytes < wanted * sizes[-1]:
            raise ArenaError(
                f"memory is {arena_bytes} bytes, but the smallest arena for this model is "
                f"{wanted * sizes[-1]} bytes ({wanted} chunks of {sizes[-1]} bytes): give the option "
                f"'memory' at least that much, or make chunks smaller (blocks_per_chunk)"
            )
        self._arena_bytes = arena_bytes // SLOT_ALIGNMENT * SLOT_ALIGNMENT
        self._smallest = sizes[0]
        self._from_top = {size: bool(index % 2) for index, size in enumerate(sizes)}
        self._taken: dict[int, int] = {}  # start: end
        self._free: dict[int, int] = {}  # start: end
        self._free_ends: dict[int, int] = {}  # end: start
        self._starts: dict[int, dict[int, None]] = {}  # length: starts
        self._lengths: list[int] = []  # in order, those that have starts
        self._add(0, self._arena_bytes)

    def allocate(self, size: int) -> int | None:
        """Offset in bytes of a free slot of `size` bytes, or None when there is none."""
        length = self._fitting(size)
        if length is None:
            return None
        start = next(iter(self._starts[length]))
        end = start + length
        self._remove(start, end)
        offset = end - size if self._from_top[size] else start
        if length > size:
            self._add(*((start, offset) if offset > start else (offset + size, end)))
        self._taken[offset] = offset + size
        return offset

    def allocate_run(self, size: int, count: int) -> list[int]:
        """Offsets of at most `count` slots: those that as many calls of `allocate` would find.

        Returns:
            At least one if there is any; fewer than `count` where one free range has no more of them.
        """
        length = self._fitting(size)
        # While what is left over can hold another slot beside, it is the best fit for the next one too.
        number = 1 if length is None else min((length - self._smallest) // size, count)
        if length is None or number <= 1:
            offset = self.allocate(size)
            return [] if offset is None else [offset]
        start = next(iter(self._starts[length]))
        end = start + length
        self._remove(start, end)
        if self._from_top[size]:
            offsets = [end - size * (index + 1) for index in range(number)]
            end -= size * number
        else:
            offsets = [start + size * index for index in range(number)]
            start += size * number
        if end > start:
            self._add(start, end)
        for offset in offsets:
            self._taken[offset] = offset + size
        return offsets

    def available(self, size: int) -> bool:
        """Whether `allocate` would find a slot of `size` bytes."""
        return bool(self._lengths) and self._lengths[-1] >= size

    def free(self, offset: int) -> None:
        """Give a slot back. `offset` must be taken."""
        start, end = offset, self._taken.pop(offset)
        if end in self._free:
            after = self._free[end]
            self._remove(end, after)
            end = after
        if start in self._free_ends:
            before = self._free_ends[start]
            self._remove(before, start)
            start = before
        self._add(start, end)

    def following(self, offset: int, size: int) -> Iterator[int]:
        """Taken slots from `offset` on that stand in the way of `size` free bytes there.

        Ends early at the arena's end. `offset` is a taken slot's or the start of a free range.
        """
        at = offset
        while at - offset < size and at < self._arena_bytes:
            if at in self._taken:
                yield at
                at = self._taken[at]
            else:
                at = self._free[at]

    def in_the_way(self, holes: Iterable[int], size: int) -> Iterator[list[int]]:
        """For each hole that is one still, the slots behind it that would have to go for `size` bytes there.

        Args:
            holes: offsets that were free; a hole before one may have taken it in.
            size: in bytes.
        """
        for hole in holes:
            start = self.range_start(hole)
            if start is not None:
                yield list(self.following(start, size))

    def range_start(self, offset: int) -> int | None:
        """Start of the free range that begins or ends at `offset`, or None."""
        return offset if offset in self._free else self._free_ends.get(offset)

    def capacity(self, size: int) -> int:
        """Slots of `size` bytes that an otherwise empty arena can hold."""
        return self._arena_bytes // size

    def _fitting(self, size: int) -> int | None:
        """Length of the free range to take a slot from."""
        if size in self._starts:
            return size
        useful = bisect.bisect_left(self._lengths, size + self._smallest)
        if useful < len(self._lengths):
            return self._lengths[useful]
        return self._lengths[-1] if self.available(size) else None

    def _add(self, start: int, end: int) -> None:
        self._free[start] = end
        self._free_ends[end] = start
        length = end - start
        if length not in self._starts:
            self._starts[length] = {}
            bisect.insort(self._lengths, length)
        self._starts[length][start] = None

    def _remove(self, start: int, end: int) -> None:
        del self._free[start]
        del self._free_ends[end]
        length = end - start
        del self._starts[length][start]
        if not self._starts[length]:
            del self._starts[length]
            del self._lengths[bisect.bisect_left(self._lengths, length)]
