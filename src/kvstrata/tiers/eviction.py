"""Which chunk to give up. Pure policies behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from kvstrata.chunks.key import ChunkKey


class EvictionPolicy(ABC):
    """Orders the chunks that may be evicted.

    The caller offers a chunk when it becomes evictable and withdraws it when it is pinned or gone; the
    policy holds no other chunks. Every method costs O(1) or O(log n), except walking `victims`.
    """

    @abstractmethod
    def offer(self, key: ChunkKey) -> None:
        """`key` was just used and may be evicted from now on. It must not be held already."""

    @abstractmethod
    def withdraw(self, key: ChunkKey) -> None:
        """`key` may not be evicted any more. It must be held."""

    @abstractmethod
    def victims(self) -> Iterator[ChunkKey]:
        """Held chunks, the least worth keeping first. The caller may withdraw what was yielded."""

    @abstractmethod
    def __len__(self) -> int:
        """Chunks held."""


class LeastRecentlyUsed(EvictionPolicy):
    """Evicts what was used longest ago."""

    def __init__(self) -> None:
        self._order: dict[ChunkKey, None] = {}

    def offer(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.offer`."""
        assert key not in self._order
        self._order[key] = None

    def withdraw(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.withdraw`."""
        del self._order[key]

    def victims(self) -> Iterator[ChunkKey]:
        """See `EvictionPolicy.victims`."""
        while self._order:
            key = next(iter(self._order))
            yield key
            if next(iter(self._order), None) == key:
                return  # the caller wants no more

    def __len__(self) -> int:
        return len(self._order)
