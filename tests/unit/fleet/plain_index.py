"""The fleet index with dictionaries and sets: what the fast one must equal."""

from kvstrata.wire.batches import Cleared, Stored
from kvstrata.wire.snapshot import Place

MEDIA = ("GPU", "CPU", "STORAGE")


class PlainIndex:
    def __init__(self) -> None:
        self.ignored = 0
        self.held: dict[int, dict[Place, dict[int, int]]] = {}
        self.shared: dict[Place, set[int]] = {}
        self.mounts: dict[int, set[str]] = {}

    def add(self, replica) -> None:
        self.held[replica] = {}
        self.mounts[replica] = set()

    def remove(self, replica) -> None:
        self.clear(replica)
        del self.held[replica], self.mounts[replica]

    def clear(self, replica) -> None:
        self.held[replica] = {}
        self.mounts[replica] = set()
        mounted = set().union(*self.mounts.values())
        self.shared = {place: held for place, held in self.shared.items() if place.owner in mounted}

    def mount(self, replica, owner) -> None:
        self.mounts[replica].add(owner)

    def apply(self, replica, batch) -> None:
        for event in batch.events:
            if isinstance(event, Cleared):
                held = self.held[replica]
                self.held[replica] = {p: held[p] for p in held if p.medium != "GPU"}
                continue
            place = Place(event.medium, event.group, event.owner)
            (self._store if isinstance(event, Stored) else self._drop)(replica, place, event.hashes)

    def restore(self, replica, held) -> None:
        self.held[replica] = {}
        for place, (hashes, again) in held.items():
            self._store(replica, place, hashes.tolist())
            if place.medium == "GPU":
                self._store(replica, place, again.tolist())

    def reach(self, replica) -> dict[Place, set[int]]:
        """All that a replica can reach, by place."""
        found = {place: set(counts) for place, counts in self.held[replica].items() if counts}
        for place, blocks in self.shared.items():
            if place.owner in self.mounts[replica] and blocks:
                found[place] = blocks
        return found

    def _store(self, replica, place, hashes) -> None:
        if place.medium not in MEDIA:
            return
        if place.medium == "STORAGE" and place.owner is not None:
            self.mount(replica, place.owner)
            self.shared.setdefault(place, set()).update(hashes)
            return
        counts = self.held[replica].setdefault(Place(place.medium, place.group), {})
        for value in hashes:
            counts[value] = counts.get(value, 0) + 1 if place.medium == "GPU" else 1

    def _drop(self, replica, place, hashes) -> None:
        if place.medium not in MEDIA:
            return
        if place.medium == "STORAGE" and place.owner is not None:
            self.mount(replica, place.owner)
            self.shared.get(place, set()).difference_update(hashes)
            return
        counts = self.held[replica].get(Place(place.medium, place.group), {})
        for value in hashes:
            left = counts.get(value, 0) - 1
            if left > 0:
                counts[value] = left
            else:
                counts.pop(value, None)
