"""Whose the chunks are that are about to be written; for several threads at once."""

from collections.abc import Mapping

from kvstrata.chunks.key import ChunkKey
from kvstrata.chunks.record import NO_TENANT


class Attribution:
    """Marks of tenants by chunk. Costs nothing as long as nobody has a mark."""

    def __init__(self) -> None:
        self._marks: dict[ChunkKey, bytes] = {}

    def set(self, marks: Mapping[ChunkKey, bytes]) -> None:
        """Remember whose these chunks are; `NO_TENANT` forgets it."""
        for key, mark in marks.items():
            if mark == NO_TENANT:
                self._marks.pop(key, None)
            else:
                self._marks[key] = mark

    def of(self, key: ChunkKey) -> bytes:
        """The mark of a chunk's tenant, 8 bytes; zeros where there is none."""
        return self._marks.get(key, NO_TENANT) if self._marks else NO_TENANT
