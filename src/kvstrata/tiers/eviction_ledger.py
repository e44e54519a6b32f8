"""Which chunks the boundary-keeping policy knows, and which of them nobody needs."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.eviction import Placed
from kvstrata.tiers.eviction_marks import Chunk


class ChunkLedger:
    """Chunks by key; those that may be evicted and that no mark needs stand in one of two orders.

    Attributes:
        chunks: all that are held or needed.
        useless: named by a use, needed by none any more; the first goes first.
        loose: never named, with the time since when.
        held: how many chunks are in memory.
        free: how many of these may be evicted.

    Args:
        size_of: bytes that a chunk takes.
    """

    def __init__(self, size_of: Callable[[ChunkKey], int]) -> None:
        self._size_of = size_of
        self.chunks: dict[ChunkKey, Chunk] = {}
        self.useless: dict[ChunkKey, None] = {}
        self.loose: dict[ChunkKey, int] = {}
        self.held = 0
        self.free = 0

    def offer(self, keys: Iterable[ChunkKey], now: int) -> None:
        """Chunks that may be evicted from now on; see `EvictionPolicy.offer`."""
        chunks, useless, loose = self.chunks, self.useless, self.loose
        new = count = 0
        for key in keys:
            chunk = chunks.get(key)
            if chunk is None:
                chunk = chunks[key] = Chunk(key)
            assert not chunk.free
            if not chunk.held:
                chunk.held = True
                new += 1
            chunk.free = True
            count += 1
            if not chunk.needs:
                if chunk.named:
                    useless[key] = None
                else:
                    loose[key] = now
        self.held += new
        self.free += count

    def withdraw(self, keys: Iterable[ChunkKey]) -> None:
        """Chunks that may not be evicted any more; see `EvictionPolicy.withdraw`."""
        chunks, count = self.chunks, 0
        for key in keys:
            chunk = chunks[key]
            assert chunk.free
            chunk.free = False
            count += 1
            if not chunk.needs:
                self.useless.pop(key, None)
                self.loose.pop(key, None)
        self.free -= count

    def gone(self, key: ChunkKey) -> Chunk:
        """A chunk that was not free has left memory; `forget` it when its marks are dropped."""
        chunk = self.chunks[key]
        assert chunk.held and not chunk.free
        chunk.held = False
        self.held -= 1
        return chunk

    def forget(self, chunk: Chunk) -> None:
        """Nobody holds it; it is known on only while somebody needs it."""
        if not chunk.needs:
            self.chunks.pop(chunk.key, None)

    def need_chain(self, leaf: Chunk | None, chain: Sequence[Placed]) -> Chunk | None:
        """Let one more mark need these chunks, which follow `leaf`; returns the last one."""
        chunks, size_of = self.chunks, self._size_of
        total = leaf.total if leaf is not None else 0
        for _, key in chain:
            chunk = chunks.get(key)
            if chunk is None:
                chunk = chunks[key] = Chunk(key)
            chunk.named = True
            total += size_of(key)
            chunk.total = total
            chunk.parent = leaf.key if leaf is not None else None
            if not chunk.needs and chunk.free:
                self.useless.pop(key, None)
                self.loose.pop(key, None)
            chunk.needs += 1
            leaf = chunk
        return leaf

    def chain(self, leaf: Chunk | None) -> Iterator[Chunk]:
        """A chunk that a mark needs and all before it, from the end; each may be released when it comes."""
        while leaf is not None:
            before = leaf.parent
            yield leaf
            leaf = self.chunks[before] if before is not None else None

    def named(self, key: ChunkKey) -> Chunk:
        """The chunk, which a use has named."""
        chunk = self.chunks.get(key)
        if chunk is None:
            chunk = self.chunks[key] = Chunk(key)
        chunk.named = True
        return chunk

    def need(self, chunk: Chunk) -> None:
        """One more mark needs it."""
        if not chunk.needs and chunk.free:
            self.useless.pop(chunk.key, None)
            self.loose.pop(chunk.key, None)
        chunk.needs += 1

    def release(self, chunk: Chunk, now: int) -> None:
        """One mark fewer needs it."""
        chunk.needs -= 1
        if chunk.needs:
            return
        if chunk.free:
            self._shelve(chunk, now)
        elif not chunk.held:
            del self.chunks[chunk.key]

    def _shelve(self, chunk: Chunk, now: int) -> None:
        if chunk.named:
            self.useless[chunk.key] = None
        else:
            self.loose[chunk.key] = now
