"""The hash table below the fleet index: for each (place, block hash) the holders, as bits.

All places share one table, so that one query walks one table: a place's secret salt is mixed into its
hashes. Entries lie in buckets of four, keys before masks, so that a bucket with up to 64 holders is one
cache line; a full bucket continues in the next one. Clearing the last bit of an entry leaves its key in
place ("hollow"), which a later store of the same block finds again; rebuilding the table drops hollow
entries, so memory is bounded by the entries that live.

Only 64 bits of a block hash are known. Two blocks that agree in them are one entry; the harm is a wrong
estimate, never wrong KV, since engines compare whole hashes. Salts and the multiplier are drawn at random
for each table, so that nobody can choose hashes that pile up in one bucket.
"""

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstrata.compiled import compiled, part, prefetch

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

WAYS = 4
"""Entries of a bucket."""
AHEAD = 16
"""Lookups between a prefetch and its use."""
MULTIPLIER, SHIFT, STAND_IN, SALTS = range(4)
"""Entries of `Table.seeds`; the stand-in takes the place of a key of 0, which marks free entries; from
SALTS on, a salt for each place."""
USED, LIVE = 0, 1
"""Entries of `Table.state`: entries with a key, and those of them with a holder."""
_LEAST_BUCKETS = 64
_MOST_LOAD, _GOOD_LOAD = 0.7, 0.5
_LINE = 64
_ONE = np.uint64(1)
_NONE = np.uint64(0)


@part
def home(seeds: Words, key: np.uint64) -> Any:
    """The bucket that a key belongs in."""
    return np.int64((key * seeds[MULTIPLIER]) >> seeds[SHIFT])


@part
def key_of(seeds: Words, place: Any, value: np.uint64) -> Any:
    """A block hash as the table names it."""
    key = value ^ seeds[SALTS + place]
    return key if key != _NONE else seeds[STAND_IN]


@part
def find(rows: Words, seeds: Words, key: np.uint64) -> Any:
    """Index of a key's entry, or -1 - index of the free entry where it would be."""
    bucket = home(seeds, key)
    while True:
        row = rows[bucket]
        # Without branches: which of the four it is cannot be predicted.
        found = (
            np.int64(row[0] == key)
            + np.int64(row[1] == key) * 2
            + np.int64(row[2] == key) * 3
            + np.int64(row[3] == key) * 4
        )
        if found:
            return bucket * WAYS + found - 1
        if row[3] == _NONE:
            taken = (
                np.int64(row[0] != _NONE) + np.int64(row[1] != _NONE) + np.int64(row[2] != _NONE)
            )
            return -1 - (bucket * WAYS + taken)
        bucket = (bucket + 1) & (rows.shape[0] - 1)


@part
def mask_word(rows: Words, entry: Any, words: int, word: int) -> Any:
    """One word of an entry's holders; of no entry (negative), no holder."""
    if entry < 0:
        return _NONE
    return rows[entry >> 2, WAYS + (entry & 3) * words + word]


@part
def _is_hollow(row: Words, start: Any, words: int) -> Any:
    union = _NONE
    for word in range(words):
        union |= row[start + word]
    return union == _NONE


@compiled
def _put(
    rows: Words,
    tags: npt.NDArray[np.uint8],
    state: Numbers,
    seeds: Words,
    hashes: Words,
    place: int,
    holder: int,
    again: Words,
) -> tuple[int, int]:
    words = rows.shape[1] // WAYS - 1
    word, bit = holder // 64, _ONE << np.uint64(holder % 64)
    fresh = repeated = 0
    for index in range(len(hashes)):
        if index + AHEAD < len(hashes):
            prefetch(rows, home(seeds, key_of(seeds, place, hashes[index + AHEAD])), 0)
        key = key_of(seeds, place, hashes[index])
        entry = find(rows, seeds, key)
        if entry < 0:
            entry = -1 - entry
            rows[entry // WAYS, entry % WAYS] = key
            tags[entry] = place
            state[USED] += 1
        row, start = rows[entry // WAYS], WAYS + entry % WAYS * words
        before = row[start + word]
        if before & bit:
            again[repeated] = hashes[index]
            repeated += 1
            continue
        if before == _NONE and _is_hollow(row, start, words):
            state[LIVE] += 1
        row[start + word] = before | bit
        fresh += 1
    return fresh, repeated


@compiled
def _take(rows: Words, state: Numbers, seeds: Words, hashes: Words, place: int, holder: int) -> int:
    words = rows.shape[1] // WAYS - 1
    word, bit = holder // 64, _ONE << np.uint64(holder % 64)
    gone = 0
    for index in range(len(hashes)):
        if index + AHEAD < len(hashes):
            prefetch(rows, home(seeds, key_of(seeds, place, hashes[index + AHEAD])), 0)
        entry = find(rows, seeds, key_of(seeds, place, hashes[index]))
        if entry < 0:
            continue
        row, start = rows[entry // WAYS], WAYS + entry % WAYS * words
        before = row[start + word]
        if before & bit:
            row[start + word] = before & ~bit
            gone += 1
            if before == bit and _is_hollow(row, start, words):
                state[LIVE] -= 1
    return gone


@compiled
def _take_all(
    rows: Words,
    tags: npt.NDArray[np.uint8],
    state: Numbers,
    chosen: npt.NDArray[np.bool_],
    holder: int,
) -> None:
    words = rows.shape[1] // WAYS - 1
    word, bit = holder // 64, _ONE << np.uint64(holder % 64)
    for bucket in range(rows.shape[0]):
        row = rows[bucket]
        for way in range(WAYS):
            start = WAYS + way * words
            before = row[start + word]
            if before & bit and chosen[tags[bucket * WAYS + way]]:
                row[start + word] = before & ~bit
                if before == bit and _is_hollow(row, start, words):
                    state[LIVE] -= 1


@compiled
def _move(
    rows: Words,
    tags: npt.NDArray[np.uint8],
    into: Words,
    into_tags: npt.NDArray[np.uint8],
    seeds: Words,
) -> int:
    """Bring every entry that lives into an empty table, with as many mask words or more."""
    words, wide = rows.shape[1] // WAYS - 1, into.shape[1] // WAYS - 1
    moved = 0
    for bucket in range(rows.shape[0]):
        row = rows[bucket]
        for way in range(WAYS):
            start = WAYS + way * words
            if row[way] == _NONE or _is_hollow(row, start, words):
                continue
            entry = -1 - find(into, seeds, row[way])
            into[entry // WAYS, entry % WAYS] = row[way]
            into_tags[entry] = tags[bucket * WAYS + way]
            for word in range(words):
                into[entry // WAYS, WAYS + entry % WAYS * wide + word] = row[start + word]
            moved += 1
    return moved


class Table:
    """Holders by (place, block hash).

    Args:
        places: how many there may be, at most 255.

    Attributes:
        rows: uint64[buckets, 4 + 4 * words]: a bucket's four keys, then each entry's mask.
        seeds: uint64[3 + places], the random values; see `MULTIPLIER` and what follows it.
        words: uint64 words of a mask: 64 holders each.
    """

    def __init__(self, places: int) -> None:
        assert 0 < places <= 255
        self.words = 1
        self.seeds: Words = np.array(
            [secrets.randbits(64) | 1 for _ in range(SALTS + places)], np.uint64
        )
        self._state = np.zeros(2, np.int64)
        self._again = np.empty(0, np.uint64)
        self.rows, self._tags = self._vacant(_LEAST_BUCKETS)

    @property
    def live(self) -> int:
        """Entries with a holder."""
        return int(self._state[LIVE])

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.rows.nbytes + self._tags.nbytes + self._again.nbytes

    def put(self, place: int, holder: int, hashes: Words) -> tuple[int, Words]:
        """Add a holder to blocks.

        Returns:
            To how many it was new, and the hashes that it held already: valid until the next call.
        """
        self._reserve(len(hashes))
        if len(self._again) < len(hashes):
            self._again = np.empty(len(hashes), np.uint64)
        fresh, repeated = _put(
            self.rows,
            self._tags,
            self._state,
            self.seeds,
            hashes,
            place,
            holder,
            self._again,
        )
        return fresh, self._again[:repeated]

    def take(self, place: int, holder: int, hashes: Words) -> int:
        """Take a holder from blocks; returns how many it held."""
        return _take(self.rows, self._state, self.seeds, hashes, place, holder)

    def take_all(self, places: npt.NDArray[np.bool_], holder: int) -> None:
        """Take a holder from all blocks of some places: one pass over the whole table.

        Args:
            places: bool[256], by place.
        """
        _take_all(self.rows, self._tags, self._state, places, holder)
        if self.live < self._capacity * _GOOD_LOAD / 8:
            self._rebuild(self.live)

    def widen(self, words: int) -> None:
        """Make room for `64 * words` holders."""
        if words > self.words:
            self.words = words
            self._rebuild(self.live)

    @property
    def _capacity(self) -> int:
        return int(self.rows.shape[0]) * WAYS

    def _reserve(self, more: int) -> None:
        if int(self._state[USED]) + more > self._capacity * _MOST_LOAD:
            self._rebuild(self.live + more)

    def _rebuild(self, entries: int) -> None:
        buckets = _LEAST_BUCKETS
        while buckets * WAYS * _GOOD_LOAD < entries:
            buckets *= 2
        old = self.rows, self._tags
        if old[0].shape != (buckets, WAYS * (self.words + 1)) or self._state[USED] > self.live:
            self.rows, self._tags = self._vacant(buckets)
            self._state[USED] = _move(*old, self.rows, self._tags, self.seeds)

    def _vacant(self, buckets: int) -> tuple[Words, npt.NDArray[np.uint8]]:
        self.seeds[SHIFT] = 64 - (buckets.bit_length() - 1)
        width = WAYS * (self.words + 1)
        memory = np.zeros(buckets * width + _LINE // 8, np.uint64)
        skip = -memory.ctypes.data % _LINE // 8
        rows = memory[skip : skip + buckets * width].reshape(buckets, width)
        return rows, np.zeros(buckets * WAYS, np.uint8)
