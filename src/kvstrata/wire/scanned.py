"""Batches that `scan` has read, as `batches` gives them.

Imported when the first batch is decoded that way: compiled code needs numba, and vLLM's CPU build cannot
start a worker in a process that has it. An engine decodes its own batches with `batches.decode_any`.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import overload

from kvstrata.wire import scan
from kvstrata.wire.batches import Batch, Cleared, Event, EventsOnDemand, Piece, Removed, Stored


def read(payload: bytes) -> Batch | None:
    """One batch; None when it is not plain (see `scan`)."""
    plain = scan.scan_batch(payload)
    if plain is None:
        return None
    return Batch(plain.time, plain.rank, Scanned(payload, plain), 0)


class Scanned(EventsOnDemand):
    """Events of a batch that was read by `scan`: objects only for who asks."""

    def __init__(self, payload: bytes, scanned: scan.Scanned) -> None:
        self.scanned = scanned
        self._payload = payload

    def __len__(self) -> int:
        return len(self.scanned.rows)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self._made[index]

    @property
    def blocks(self) -> int:
        """See `EventsOnDemand.blocks`."""
        return len(self.scanned.hashes)

    def pieces(self) -> Iterator[Piece]:
        """See `EventsOnDemand.pieces`."""
        rows = self.scanned.rows
        for low, high in pairwise(scan.mark_runs(self._payload, rows)):
            first = rows[low].tolist()
            if first[scan.KIND] == scan.CLEARED:
                yield from [None] * (high - low)
                continue
            hashes = self.scanned.hashes[first[scan.HASHES] : int(rows[high - 1, scan.HASHES_END])]
            medium = self._text(first, scan.MEDIUM) or "GPU"
            where = medium, first[scan.GROUP], self._text(first, scan.OWNER)
            yield where, first[scan.KIND] == scan.STORED, hashes

    @cached_property
    def _made(self) -> list[Event]:
        parents = self.scanned.parents.tolist()
        rows = self.scanned.rows.tolist()
        return [self._event(row, parent) for row, parent in zip(rows, parents, strict=True)]

    def _event(self, row: list[int], parent: int) -> Event:
        if row[scan.KIND] == scan.CLEARED:
            return Cleared()
        hashes = self.scanned.hashes[row[scan.HASHES] : row[scan.HASHES_END]].tolist()
        medium = self._text(row, scan.MEDIUM) or "GPU"
        locality, owner = self._text(row, scan.LOCALITY), self._text(row, scan.OWNER)
        if row[scan.KIND] == scan.REMOVED:
            return Removed(hashes, medium, row[scan.GROUP], locality, owner)
        return Stored(
            hashes,
            parent if row[scan.HAS_PARENT] else None,
            row[scan.TOKENS],
            row[scan.BLOCK_TOKENS],
            medium,
            row[scan.GROUP],
            self._text(row, scan.SPEC),
            None if row[scan.WINDOW] < 0 else row[scan.WINDOW],
            self._text(row, scan.LORA),
            locality,
            owner,
        )

    def _text(self, row: list[int], field: int) -> str | None:
        if row[field + 1] < 0:
            return None
        return self._payload[row[field] : row[field] + row[field + 1]].decode("ascii")
