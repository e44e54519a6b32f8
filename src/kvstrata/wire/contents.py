"""What one engine holds, as its own events tell it: the plain form, one dictionary a place."""

from collections.abc import Iterable, Iterator

import numpy as np

from kvstrata.wire.batches import Batch, Cleared, Removed, Stored
from kvstrata.wire.snapshot import Hashes, Place

DEVICE = "GPU"
SLICE = 1 << 14
"""Hashes of one slice of `Contents.parts`."""


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
        """For each place its hashes, each once, and those that are there again.

        A place comes in slices: an engine that shares the interpreter must not wait for all of it. Nothing
        may be applied before the last one was taken.
        """
        for place, counts in self.held.items():
            values, often = iter(counts), iter(counts.values())
            for low in range(0, len(counts), SLICE):
                size = min(SLICE, len(counts) - low)
                hashes = np.fromiter(values, np.uint64, size)
                yield place, hashes, np.repeat(hashes, np.fromiter(often, np.int64, size) - 1)

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
