"""What one engine holds, as its own events tell it: the plain form, one dictionary a place."""

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import numpy as np

from kvstrata.wire.batches import Batch, Cleared, Removed, Stored
from kvstrata.wire.snapshot import Hashes, Place

DEVICE = "GPU"


class Contents:
    """Blocks by place, counted: an engine may hold a block more than once, and says so each time.

    Attributes:
        held: for each place, how often each hash is there.
    """

    def __init__(self) -> None:
        self.held: dict[Place, dict[int, int]] = {}

    def apply(self, batch: Batch) -> None:
        """Follow one batch of events."""
        for event in batch.events:
            if isinstance(event, Stored):
                self._store(Place(event.medium, event.group, event.owner), event.hashes)
            elif isinstance(event, Removed):
                self._remove(Place(event.medium, event.group, event.owner), event.hashes)
            else:
                assert isinstance(event, Cleared)
                for place in [place for place in self.held if place.medium == DEVICE]:
                    del self.held[place]

    def parts(self) -> Iterator[tuple[Place, Hashes, Hashes]]:
        """For each place its hashes, each once, and those that are there again."""
        for place, counts in self.held.items():
            again = list(
                chain.from_iterable(
                    repeat(value, count - 1) for value, count in counts.items() if count > 1
                )
            )
            yield place, np.array(list(counts), np.uint64), np.array(again, np.uint64)

    def _store(self, place: Place, hashes: Iterable[int]) -> None:
        counts = self.held.setdefault(place, {})
        # Only the device counts: a tier holds a chunk once, however often it is announced.
        counted = place.medium == DEVICE
        for value in hashes:
            counts[value] = counts.get(value, 0) + 1 if counted else 1

    def _remove(self, place: Place, hashes: Iterable[int]) -> None:
        counts = self.held.get(place)
        if counts is None:
            return
        for value in hashes:
            count = counts.get(value, 0)
            if count > 1:
                counts[value] = count - 1
            else:
                counts.pop(value, None)
        if not counts:
            del self.held[place]
