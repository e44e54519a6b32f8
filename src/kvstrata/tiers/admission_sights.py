"""Which prefixes were seen before: a table of 8 bytes a prefix that never grows. Pure.

An entry is 54 bits of a mixed prefix and 10 bits for whoever notes it; some of the 54 bits choose the
bucket. A bucket has eight places that are taken in turn, so that the oldest prefix of a bucket is forgotten
first. A prefix that was never noted is taken for a known one with a probability of at most
8 / 2 ** (54 - log2(buckets)): 2e-10 for a million prefixes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvstrata.chunks.key import GROUP_BYTES, ChunkKey

Prefixes = NDArray[np.uint64]
"""Identities of prefixes, shape (n,): the last 8 bytes of the block hash that each ends with."""

WAYS = 8
NOTE_BITS = 10
MAX_NOTE = (1 << NOTE_BITS) - 1
ENTRIES = 1 << 20
"""Prefixes that an engine remembers, in 8 MiB: 134 million tokens where a chunk has 128."""

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 / golden ratio: spreads what differs in few bits
_NOTE = np.uint64(MAX_NOTE)
_TAG = ~_NOTE
_PLACE_BYTES = 8


def prefixes_of(keys: Sequence[ChunkKey]) -> Prefixes:
    """What each chunk's prefix is known by, whatever the chunk's group."""
    places = slice(-GROUP_BYTES - _PLACE_BYTES, -GROUP_BYTES)
    joined = b"".join([key[places] for key in keys])
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64)


class Sights:
    """Notes about prefixes.

    Args:
        entries: prefixes that it has room for; a power of two, at least 8.
    """

    def __init__(self, entries: int = ENTRIES) -> None:
        assert entries >= WAYS and entries & (entries - 1) == 0
        buckets = entries // WAYS
        self._shift = np.uint64(64 - buckets.bit_length() + 1) if buckets > 1 else None
        self._table = np.zeros((buckets, WAYS), dtype=np.uint64)
        self._next = np.zeros(buckets, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of the table, whatever it holds."""
        return self._table.nbytes + self._next.nbytes

    def find(self, prefixes: Prefixes) -> NDArray[np.int64]:
        """Where each prefix is noted, for `notes` and `note`; -1 for those that are not. Shape (n,)."""
        tags, buckets = self._split(prefixes)
        entries = self._table[buckets]
        same = (entries & _TAG == tags[:, None]) & (entries & _NOTE != 0)
        found = same.any(axis=1)
        places: NDArray[np.int64] = np.where(found, buckets * WAYS + same.argmax(axis=1), -1)
        return places

    def notes(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Notes at places that were found, shape (n,)."""
        return (self._table.reshape(-1)[places] & _NOTE).astype(np.int64)

    def note(self, places: NDArray[np.int64], notes: NDArray[np.int64]) -> None:
        """Change notes at places that were found.

        Args:
            places: as `find` gave them; none of them -1. Shape (n,).
            notes: 1 to `MAX_NOTE`, shape (n,).
        """
        flat = self._table.reshape(-1)
        flat[places] = (flat[places] & _TAG) | notes.astype(np.uint64)

    def add(self, prefixes: Prefixes, notes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Note prefixes that are not there yet, instead of the oldest ones where a bucket is full.

        Args:
            prefixes: each once.
            notes: of each, 1 to `MAX_NOTE`, shape (n,).

        Returns:
            Notes of what was forgotten for them.
        """
        if not len(prefixes):
            return np.zeros(0, dtype=np.int64)
        tags, buckets = self._split(prefixes)
        order = np.argsort(buckets, kind="stable")
        tags, buckets, notes = tags[order], buckets[order], notes[order]
        starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
        counts = np.diff(np.r_[starts, len(buckets)])
        rank = np.arange(len(buckets)) - np.repeat(starts, counts)
        ways = (self._next[buckets] + rank) % WAYS
        forgotten = self._table[buckets, ways] & _NOTE
        self._table[buckets, ways] = tags | notes.astype(np.uint64)
        self._next[buckets[starts]] = (self._next[buckets[starts]] + counts) % WAYS
        found: NDArray[np.int64] = forgotten[forgotten != 0].astype(np.int64)
        return found

    def _split(self, prefixes: Prefixes) -> tuple[Prefixes, NDArray[np.int64]]:
        mixed = prefixes * _MIX
        mixed ^= mixed >> np.uint64(32)
        mixed *= _MIX
        if self._shift is None:
            return mixed & _TAG, np.zeros(len(mixed), dtype=np.int64)
        return mixed & _TAG, (mixed >> self._shift).astype(np.int64)
