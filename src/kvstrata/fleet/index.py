"""One index for a whole fleet: which replicas hold which blocks, in which tier."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from kvstrata.wire.batches import Batch, Cleared, Removed, Stored
from kvstrata.wire.snapshot import Place

Hashes = npt.NDArray[np.uint64]
DEVICE, MEMORY, STORAGE = "GPU", "CPU", "STORAGE"


class FleetIndex:
    """Blocks of all replicas, by place."""

    def __init__(self) -> None:
        self.ignored = 0
        self._held: dict[int, dict[Place, dict[int, int]]] = {}
        self._shared: dict[Place, set[int]] = {}
        self._mounts: dict[int, set[str]] = {}

    def add(self, name: str) -> int:
        """A replica, by any name; returns the number that stands for it from now on."""
        replica = next(i for i in range(len(self._held) + 1) if i not in self._held)
        self._held[replica] = {}
        self._mounts[replica] = set()
        return replica

    def remove(self, replica: int) -> None:
        """The replica is gone for good, and its number may stand for another."""
        self.clear(replica)
        del self._held[replica], self._mounts[replica]

    def clear(self, replica: int) -> None:
        """Forget all that the replica itself holds, and what it mounts: its engine restarted."""
        self._held[replica] = {}
        self._mounts[replica] = set()
        self._drop_unmounted()

    def mount(self, replica: int, owner: str) -> None:
        """The replica reads what `owner` (see `wire.batches.Stored`) holds."""
        self._mounts[replica].add(owner)

    def apply(self, replica: int, batch: Batch) -> None:
        """Follow one batch of a replica's events."""
        for event in batch.events:
            if isinstance(event, Cleared):
                held = self._held[replica]
                for place in [place for place in held if place.medium == DEVICE]:
                    del held[place]
                continue
            place = Place(event.medium, event.group, event.owner)
            if isinstance(event, Stored):
                self._store(replica, place, event.hashes)
            else:
                assert isinstance(event, Removed)
                self._drop(replica, place, event.hashes)

    def restore(self, replica: int, held: Mapping[Place, tuple[Hashes, Hashes]]) -> None:
        """Replace all that the replica itself holds by a snapshot's content."""
        self._held[replica] = {}
        for place, (hashes, again) in held.items():
            self._store(replica, place, hashes.tolist())
            if place.medium == DEVICE:
                self._store(replica, place, again.tolist())

    def counts(self, replica: int) -> dict[Place, int]:
        """Distinct blocks by place; those of mounted owners included."""
        found = {place: len(counts) for place, counts in self._held[replica].items() if counts}
        for place, blocks in self._shared.items():
            if place.owner in self._mounts[replica] and blocks:
                found[place] = len(blocks)
        return found

    def _store(self, replica: int, place: Place, hashes: Iterable[int]) -> None:
        if place.medium not in (DEVICE, MEMORY, STORAGE):
            self.ignored += 1
            return
        if place.medium == STORAGE and place.owner is not None:
            self.mount(replica, place.owner)
            self._shared.setdefault(place, set()).update(hashes)
            return
        counts = self._held[replica].setdefault(Place(place.medium, place.group), {})
        for value in hashes:
            counts[value] = counts.get(value, 0) + 1 if place.medium == DEVICE else 1

    def _drop(self, replica: int, place: Place, hashes: Iterable[int]) -> None:
        if place.medium == STORAGE and place.owner is not None:
            self._shared.get(place, set()).difference_update(hashes)
            return
        counts = self._held[replica].get(Place(place.medium, place.group), {})
        for value in hashes:
            left = counts.get(value, 0) - 1
            if left > 0:
                counts[value] = left
            else:
                counts.pop(value, None)

    def _drop_unmounted(self) -> None:
        mounted = set().union(*self._mounts.values())
        for place in [place for place in self._shared if place.owner not in mounted]:
            del self._shared[place]
