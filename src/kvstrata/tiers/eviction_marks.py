"""What the boundary-keeping policy knows: chunks, marks, and the order in which marks are worth keeping."""

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.eviction_worth import Standing, Worth, standing


class Chunk(msgspec.Struct, gc=False, eq=False):
    """What is known of a chunk.

    Python's garbage collector does not walk these, see `kvstrata.tiers.entry`: a chunk and a mark refer to
    each other only as long as the mark is kept, and who drops it takes it from the chunk. No chunk refers to
    another, since a chain of a million would end in as many nested calls when it is let go.

    Attributes:
        key: its key.
        parent: key of the chunk before it in its chain; see `ChunkLedger.chain`.
        total: bytes of the chain up to this chunk.
        needs: marks that need it; stations need no chain (see `Mark`).
        held: in memory.
        free: in memory and evictable.
        named: some use has named it.
        owners: the marks whose tail it belongs to.
    """

    key: ChunkKey
    parent: ChunkKey | None = None
    total: int = 0
    needs: int = 0
    held: bool = False
    free: bool = False
    named: bool = False
    owners: tuple["Mark", ...] = ()


@dataclass(slots=True, eq=False)
class Line:
    """A conversation; see `Mark`. `last` is its last mark, the only one that is no station."""

    last: "Mark"


@dataclass(slots=True, eq=False)
class Mark:
    """A boundary.

    The marks that a conversation leaves behind are a *line*: each but the last is a *station*, whose only
    user went on to the next. The last one keeps the chain for all of them, a station only its tail. So a
    station can go alone, and when the last mark goes, the station before it takes its place.

    Attributes:
        key: what tells it from others.
        tokens: before it.
        leaf: last chunk of its chain, None without one.
        tail: chunks of its windows.
        tail_bytes: of these.
        used_at: time of the last use.
        uses: see `eviction_worth.standing`.
        generation: see `eviction_worth.standing`.
        base: the shared mark that its line starts from, if it is known and not dropped.
        before: the station before it.
        after: for a station, the mark after it.
        line: that it belongs to.
        dropped: nobody looks at it any more.
        standing: as of the last time it was queued.
        ticket: of its valid place in the queues.
    """

    key: ChunkKey
    tokens: int
    used_at: int
    uses: int
    generation: int
    leaf: Chunk | None = None
    tail: list[Chunk] = field(default_factory=list)
    tail_bytes: int = 0
    base: "Mark | None" = None
    before: "Mark | None" = None
    after: "Mark | None" = None
    line: Line = field(init=False)
    dropped: bool = False
    standing: Standing = Standing.FRESH
    ticket: int = -1

    def __post_init__(self) -> None:
        self.line = Line(self)

    def level(self) -> int:
        """Binary logarithm of the tokens that it saves per byte that it alone needs, rounded."""
        below = self.before or (self.base if self.base and not self.base.dropped else None)
        tokens, nbytes = self.tokens, self.tail_bytes
        if below is not None:
            tokens -= below.tokens
        if self.after is None and self.leaf is not None:
            start = below.leaf.total if below is not None and below.leaf is not None else 0
            nbytes += self.leaf.total - start
        return round(math.log2(max(tokens, 1) / max(nbytes, 1)))


@dataclass(frozen=True, slots=True)
class Memory:
    """A mark that was dropped at time `since`."""

    standing: Standing
    used_at: int
    since: int
    uses: int
    generation: int


class Queues:
    """Marks by standing and level, and in each queue by their last use."""

    def __init__(self) -> None:
        self._heaps: dict[tuple[Standing, int], list[tuple[int, int, Mark]]] = {}
        self._tickets = itertools.count()

    def put(self, mark: Mark) -> None:
        """Give a mark its place, or its new one."""
        mark.standing = standing(mark.uses, mark.generation, mark.after is not None)
        mark.ticket = next(self._tickets)
        heap = self._heaps.setdefault((mark.standing, mark.level()), [])
        heapq.heappush(heap, (mark.line.last.used_at, mark.ticket, mark))

    def least(self, worth: Worth, now: int, fallbacks: float) -> tuple[Mark | None, float]:
        """The mark that is worth least, but not one of `now` while there are others; and its worth.

        Args:
            worth: what was learned.
            now: time.
            fallbacks: share of requests whose boundary had been dropped: so often a station serves in its
                line's stead.
        """
        least, lowest = None, math.inf
        for (rank, level), mark in self._heads():
            rate = worth.of(rank, now - mark.used_at)
            last = mark.line.last
            if last is not mark:
                rate += fallbacks * worth.of(last.standing, now - last.used_at)
            value = rate * 2.0**level
            if mark.used_at == now:
                value += _CURRENT
            if value < lowest:
                least, lowest = mark, value
        return least, lowest

    def trim(self, marks: int) -> None:
        """Forget places that are not valid any more, when they are more than the `marks` there are."""
        if sum(map(len, self._heaps.values())) > 2 * marks + 256:
            for key, heap in list(self._heaps.items()):
                heap[:] = [item for item in heap if item[1] == item[2].ticket]
                heapq.heapify(heap)
                if not heap:
                    del self._heaps[key]

    def _heads(self) -> Iterator[tuple[tuple[Standing, int], Mark]]:
        for key, heap in list(self._heaps.items()):
            while heap:
                used_at, ticket, mark = heap[0]
                if ticket != mark.ticket:
                    heapq.heappop(heap)
                elif used_at != mark.line.last.used_at:  # a station whose line went on
                    heapq.heapreplace(heap, (mark.line.last.used_at, ticket, mark))
                else:
                    break
            if heap:
                yield key, heap[0][2]
            else:
                del self._heaps[key]


_CURRENT = 1e9
"""Added to the worth of what the latest use names: its chunks are still on their way."""
