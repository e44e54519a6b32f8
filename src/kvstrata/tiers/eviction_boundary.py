"""Eviction by boundaries: what only a worthless boundary needs goes first, and goes whole.

A *mark* is a boundary that some request resumed at or left behind. Each chunk counts the marks that need
it: for a full group's chunk all marks at or behind it, for a windowed group's chunk those whose window it
lies in. When room is wanted, the mark of least worth is dropped (see `eviction_worth`), and the chunks
that no mark needs any more are the next victims: its tail, then the prefix from its end. So

- a chunk is a victim only when no mark needs it: a tail never goes while a prefix is kept for its sake;
- a chunk that several prompts share stays as long as any of their marks does;
- a boundary that a longer one replaced loses its tail, which nobody else needs, and nothing else.

A dropped mark is remembered for a while, without its chunks, so that one that was dropped too early counts
in what is learned. Chunks that no use has named are *loose*: each is as a mark of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.eviction import Boundary, EvictionPolicy, Placed, PrefixUse
from kvstrata.tiers.eviction_worth import Standing, Worth, standing

SLACK = 64
"""Marks, chunks and memories that are allowed beyond what the number of chunks held would allow."""

_CURRENT = 1e9
"""Added to the worth of what the latest use names: its chunks are still on their way here."""


@dataclass(slots=True, eq=False)
class _Chunk:
    """What is known of a chunk.

    `parent` is the chunk before it in its chain; stale when nobody needs the chunk.
    `owners` are the marks whose tail it belongs to; a chain's chunks only count them, in `needs`.
    """

    key: ChunkKey
    parent: "_Chunk | None" = None
    needs: int = 0
    held: bool = False
    free: bool = False
    named: bool = False
    owners: list["_Mark"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Mark:
    """A boundary. `generation` and `superseded`: see `eviction_worth.standing`."""

    key: ChunkKey
    leaf: _Chunk | None
    tail: list[_Chunk]
    used_at: int
    uses: int
    generation: int
    superseded: bool = False
    standing: Standing = Standing.FRESH


@dataclass(frozen=True, slots=True)
class _Memory:
    """A mark that was dropped at time `since`."""

    standing: Standing
    used_at: int
    since: int
    uses: int
    generation: int


class BoundaryKeeping(EvictionPolicy):
    """See the module."""

    def __init__(self) -> None:
        self._chunks: dict[ChunkKey, _Chunk] = {}
        self._marks: dict[ChunkKey, _Mark] = {}
        self._queues: tuple[dict[ChunkKey, _Mark], ...] = tuple({} for _ in Standing)
        self._memories: dict[ChunkKey, _Memory] = {}
        self._useless: dict[ChunkKey, None] = {}
        self._loose: dict[ChunkKey, int] = {}
        self._worth = Worth()
        self._now = 0
        self._held = 0
        self._free = 0

    def offer(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.offer`."""
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = _Chunk(key)
        assert not chunk.free
        if not chunk.held:
            chunk.held = True
            self._held += 1
        chunk.free = True
        self._free += 1
        if not chunk.needs:
            self._shelve(chunk)

    def withdraw(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.withdraw`."""
        chunk = self._chunks[key]
        assert chunk.free
        chunk.free = False
        self._free -= 1
        if not chunk.needs:
            self._useless.pop(key, None)
            self._loose.pop(key, None)

    def gone(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.gone`."""
        chunk = self._chunks[key]
        assert chunk.held and not chunk.free
        chunk.held = False
        self._held -= 1
        for mark in list(chunk.owners):
            self._drop(mark)
        if not chunk.needs:
            self._chunks.pop(key, None)

    def used(self, use: PrefixUse) -> None:
        """See `EvictionPolicy.used`."""
        self._now += 1
        recalled = self._recall_furthest(use)
        resumed = None
        if use.resumed is not None:
            resumed = self._resume(use, use.resumed, recalled)
        junctions, end = use.kept[:-1], use.kept[-1:]
        for boundary in junctions:
            self._keep(use, boundary, recalled, uses=1, generation=0)
        for boundary in end:
            mark = self._keep(use, boundary, recalled, 0, _generation(resumed, recalled))
            if resumed is not None and mark is not resumed and resumed.uses == 1:
                resumed.superseded = True
                self._enqueue(resumed)
        self._bound(len(use.chain))

    def victims(self) -> Iterator[ChunkKey]:
        """See `EvictionPolicy.victims`."""
        while True:
            if self._useless:
                key = next(iter(self._useless))
                yield key
                if key in self._useless:
                    return
                continue
            mark, worth = self._least()
            loose = next(iter(self._loose), None)
            if loose is not None and worth >= self._worth.of(
                Standing.FRESH, self._now - self._loose[loose]
            ):
                yield loose
                if loose in self._loose:
                    return
            elif mark is not None:
                self._drop(mark)
            else:
                return

    def __len__(self) -> int:
        return self._free

    def footprint(self) -> int:
        """Chunks, marks and memories that are kept in mind, held or not."""
        return len(self._chunks) + len(self._marks) + len(self._memories)

    # Uses.

    def _recall(self, key: ChunkKey) -> _Memory | None:
        """Take the memory of a mark that was dropped; counts as used, since keeping it would have paid."""
        memory = self._memories.pop(key, None)
        if memory is not None:
            self._worth.ended(
                memory.standing,
                self._now - memory.used_at,
                used=True,
                since=memory.since - memory.used_at,
            )
        return memory

    def _recall_furthest(self, use: PrefixUse) -> dict[ChunkKey, _Memory]:
        """The dropped mark where the request would have resumed with room for everything, if there is one."""
        start = use.resumed.chain if use.resumed is not None else 0
        stop = use.kept[-1].chain if use.kept else start
        for placed in reversed(use.chain[start:stop]):
            if placed.key in self._marks:
                break
            memory = self._recall(placed.key)
            if memory is not None:
                return {placed.key: memory}
        return {}

    def _resume(
        self, use: PrefixUse, boundary: Boundary, recalled: Mapping[ChunkKey, _Memory]
    ) -> _Mark | None:
        key = _name(use, boundary)
        mark = self._marks.get(key)
        if mark is not None:
            self._use(mark, boundary)
            return mark
        if recalled and not boundary.tail:
            return None  # where an evicted chain happens to break off is no place of its own
        memory = self._recall(key)
        uses = 1 + (memory.uses if memory is not None else 0)
        return self._make(use, boundary, uses, memory.generation if memory is not None else 0)

    def _keep(
        self,
        use: PrefixUse,
        boundary: Boundary,
        recalled: Mapping[ChunkKey, _Memory],
        uses: int,
        generation: int,
    ) -> _Mark:
        key = _name(use, boundary)
        mark = self._marks.get(key)
        if mark is not None:
            if mark.used_at < self._now:  # else it is where the request resumed
                self._use(mark, boundary)
            return mark
        memory = recalled.get(key) or self._recall(key)
        if memory is not None:
            uses, generation = memory.uses + 1, memory.generation
        return self._make(use, boundary, uses, generation)

    def _use(self, mark: _Mark, boundary: Boundary) -> None:
        self._worth.ended(mark.standing, self._now - mark.used_at, used=True)
        mark.uses += 1
        mark.used_at = self._now
        mark.superseded = False
        self._extend(mark, boundary.tail)
        self._enqueue(mark)

    def _make(self, use: PrefixUse, boundary: Boundary, uses: int, generation: int) -> _Mark:
        parent: _Chunk | None = None
        for placed in use.chain[: boundary.chain]:
            chunk = self._named(placed.key)
            chunk.parent = parent
            self._need(chunk)
            parent = chunk
        mark = _Mark(_name(use, boundary), parent, [], self._now, uses, generation)
        self._marks[mark.key] = mark
        self._extend(mark, boundary.tail)
        self._enqueue(mark)
        return mark

    def _extend(self, mark: _Mark, tail: Iterable[Placed]) -> None:
        """Let the mark need these chunks too."""
        for placed in tail:
            chunk = self._named(placed.key)
            if mark not in chunk.owners:
                self._need(chunk)
                chunk.owners.append(mark)
                mark.tail.append(chunk)

    def _named(self, key: ChunkKey) -> _Chunk:
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = _Chunk(key)
        chunk.named = True
        return chunk

    def _need(self, chunk: _Chunk) -> None:
        if not chunk.needs and chunk.free:
            self._useless.pop(chunk.key, None)
            self._loose.pop(chunk.key, None)
        chunk.needs += 1

    def _enqueue(self, mark: _Mark) -> None:
        self._queues[mark.standing].pop(mark.key, None)
        mark.standing = standing(mark.uses, mark.generation, mark.superseded)
        self._queues[mark.standing][mark.key] = mark

    # Giving up.

    def _least(self) -> tuple[_Mark | None, float]:
        """The mark that is worth least, and its worth; of one standing the longest unused is."""
        least, worth = None, float("inf")
        for index, queue in enumerate(self._queues):
            for mark in queue.values():
                value = self._worth.of(Standing(index), self._now - mark.used_at)
                if mark.used_at == self._now:
                    value += _CURRENT
                if value < worth:
                    least, worth = mark, value
                break
        return least, worth

    def _drop(self, mark: _Mark) -> None:
        """Give a mark up; what only it needed is useless from now on, its chain's end first."""
        del self._marks[mark.key]
        del self._queues[mark.standing][mark.key]
        age = self._now - mark.used_at
        self._worth.ended(mark.standing, age, used=False)
        self._memories[mark.key] = _Memory(
            mark.standing, mark.used_at, self._now, mark.uses, mark.generation
        )
        for chunk in mark.tail:
            chunk.owners.remove(mark)
            self._release(chunk)
        leaf = mark.leaf
        while leaf is not None:
            self._release(leaf)
            leaf = leaf.parent
        while len(self._memories) > 2 * len(self._marks) + SLACK:
            self._forget_one()

    def _release(self, chunk: _Chunk) -> None:
        chunk.needs -= 1
        if chunk.needs:
            return
        if chunk.free:
            self._shelve(chunk)
        elif not chunk.held:
            del self._chunks[chunk.key]

    def _shelve(self, chunk: _Chunk) -> None:
        if chunk.named:
            self._useless[chunk.key] = None
        else:
            self._loose[chunk.key] = self._now

    def _forget_one(self) -> None:
        memory = self._memories.pop(next(iter(self._memories)))
        self._worth.ended(
            memory.standing,
            self._now - memory.used_at,
            used=False,
            since=memory.since - memory.used_at,
        )

    def _bound(self, chunks: int) -> None:
        """Marks whose chunks never came, or went, must not pile up."""
        while len(self._marks) > self._held + SLACK or (
            len(self._chunks) > 2 * self._held + chunks + SLACK
        ):
            mark, _ = self._least()
            if mark is None:
                return
            self._drop(mark)


def _name(use: PrefixUse, boundary: Boundary) -> ChunkKey:
    """What tells boundaries apart: the last chunk of the chain, or of the tail where there is no chain."""
    if boundary.chain:
        return use.chain[boundary.chain - 1].key
    return max(boundary.tail).key


def _generation(resumed: _Mark | None, recalled: Mapping[ChunkKey, _Memory]) -> int:
    """Generation of the boundary that a request leaves at its prompt's end."""
    for memory in recalled.values():
        return memory.generation + 1 if memory.uses == 0 else 0
    return resumed.generation + 1 if resumed is not None and resumed.uses == 1 else 0
