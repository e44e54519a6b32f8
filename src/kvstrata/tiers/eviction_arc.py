"""ARC (Megiddo and Modha, FAST 2003), told of requests in the order in which vLLM tells its own."""

from collections.abc import Iterator

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.eviction import EvictionPolicy, PrefixUse


class AdaptiveReplacement(EvictionPolicy):
    """Two recency lists, of chunks used once and used again, whose sizes follow what was evicted too early.

    As in vLLM a chunk enters the first list, a request that reuses it moves it to the second one, and a
    chunk that is stored anew after its eviction moves the target but enters the first list again. The
    capacity is the largest number of chunks that were ever in memory at once.
    """

    late = True

    def __init__(self) -> None:
        self._once: dict[ChunkKey, None] = {}
        self._again: dict[ChunkKey, None] = {}
        self._away: dict[ChunkKey, bool] = {}  # withdrawn, but still in memory: whether used again
        self._ghosts_once: dict[ChunkKey, None] = {}
        self._ghosts_again: dict[ChunkKey, None] = {}
        self._target = 0.0
        self._capacity = 0

    def offer(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.offer`."""
        assert key not in self._once and key not in self._again
        again = self._away.pop(key, None)
        if again is None:
            self._adapt(key)
            again = False
        (self._again if again else self._once)[key] = None
        self._capacity = max(self._capacity, len(self) + len(self._away))

    def withdraw(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.withdraw`."""
        again = key in self._again
        del (self._again if again else self._once)[key]
        self._away[key] = again

    def gone(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.gone`."""
        again = self._away.pop(key)
        ghosts = self._ghosts_again if again else self._ghosts_once
        ghosts[key] = None
        while len(ghosts) > self._capacity:
            del ghosts[next(iter(ghosts))]

    def used(self, use: PrefixUse) -> None:
        """See `EvictionPolicy.used`."""
        reused: set[ChunkKey] = set()
        if use.resumed is not None and not use.answered:
            reused.update(placed.key for placed in use.chain[: use.resumed.chain])
            reused.update(placed.key for placed in use.resumed.tail)
        for key in reversed(use.order()):
            if key in self._once:
                del self._once[key]
                (self._again if key in reused else self._once)[key] = None
            elif key in self._again:
                del self._again[key]
                self._again[key] = None
            elif key in self._away:
                self._away[key] = self._away[key] or key in reused

    def victims(self) -> Iterator[ChunkKey]:
        """See `EvictionPolicy.victims`."""
        while self._once or self._again:
            first = self._once and (len(self._once) >= int(self._target) or not self._again)
            key = next(iter(self._once if first else self._again))
            yield key
            if key in self._once or key in self._again:
                return

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def ghosts(self) -> int:
        """Chunks remembered after they left; at most twice the capacity."""
        return len(self._ghosts_once) + len(self._ghosts_again)

    def _adapt(self, key: ChunkKey) -> None:
        """A chunk comes that was evicted lately: the list that it fell from deserves more room."""
        once, again = len(self._ghosts_once), len(self._ghosts_again)
        if key in self._ghosts_once:
            self._target = min(self._target + max(1.0, again / once), self._capacity)
            del self._ghosts_once[key]
        elif key in self._ghosts_again:
            self._target = max(self._target - max(1.0, once / again), 0.0)
            del self._ghosts_again[key]
