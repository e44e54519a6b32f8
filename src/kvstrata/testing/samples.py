"""Chunks that the suites store and read: keys, payloads that follow from them, and what a read brought."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, group_of, make_key
from kvstrata.tiers.tier import Loaded, Missing, ReadOutcome, Tier, WriteOutcome

PLAIN, SMALL, LARGE, MANY, SINGLE = range(5)
"""Groups of the suite."""

GEOMETRIES: Mapping[int, GroupGeometry] = MappingProxyType(
    {
        PLAIN: GroupGeometry(PLAIN, GroupKind.FULL, 16, 8, (4096,)),
        # A block that ends nowhere near a page or a word, of two ranks.
        SMALL: GroupGeometry(SMALL, GroupKind.WINDOW, 16, 8, (150, 51), window_tokens=64),
        LARGE: GroupGeometry(LARGE, GroupKind.FULL, 128, 8, (393216, 131072)),
        # So many blocks that their checksums need a second page of header.
        MANY: GroupGeometry(MANY, GroupKind.FULL, 1, 300, (96,)),
        SINGLE: GroupGeometry(SINGLE, GroupKind.STATE, 64, 1, (700000,)),
    }
)
"""Geometries that the suite's tiers are made for: 5 MiB for one chunk of each."""

ARENA_BYTES = 64 << 20
"""A tier of bounded size needs this much, so that nothing that the suite stores is evicted."""

SENTINEL = 0xA5


def key_of(label: str, group: int) -> ChunkKey:
    """A key with a 32-byte hash, spread as real ones are."""
    return make_key(hashlib.sha256(label.encode()).digest(), group)


@functools.lru_cache(maxsize=8)
def payload_of(key: ChunkKey, geometry: GroupGeometry) -> memoryview:
    """The bytes of a key's chunk: read-only, a function of the key, and different for every block."""
    return memoryview(hashlib.shake_128(key).digest(geometry.payload_bytes))


class Reading:
    """One read into a buffer that lies between guards and holds sentinels.

    Attributes:
        key: the chunk.
        outcome: what the tier answered.

    Args:
        tier: to read from; None for nothing yet.
        key: the chunk.
        first_block: where to start.
    """

    def __init__(self, tier: Tier | None, key: ChunkKey, first_block: int = 0) -> None:
        self._geometry = GEOMETRIES[group_of(key)]
        self.key = key
        self._start = first_block * self._geometry.block_bytes
        size = self._geometry.payload_bytes
        self._around = bytearray([SENTINEL]) * (size + 128)
        self._into = memoryview(self._around)[64 : 64 + size]
        self.outcome: ReadOutcome = Missing()
        if tier is not None:
            self.outcome = tier.read(key, self._into, first_block)

    @classmethod
    def of_many(cls, tier: Tier, wanted: Sequence[tuple[ChunkKey, int]]) -> list["Reading"]:
        """Several chunks from their first blocks on, with one call."""
        readings = [cls(None, key, first_block) for key, first_block in wanted]
        arguments = [
            (key, one._into, first_block)
            for (key, first_block), one in zip(wanted, readings, strict=True)
        ]
        for one, outcome in zip(readings, tier.read_many(arguments), strict=True):
            one.outcome = outcome
        return readings

    def check_loaded(self) -> None:
        """The blocks asked for are here, and nothing else was touched."""
        expected = payload_of(self.key, self._geometry)[self._start :]
        assert self.outcome == Loaded(len(expected))
        assert self._into[self._start :] == expected, "other bytes than were stored"
        self._check_sentinels(64 + self._start)

    def check_missing(self) -> None:
        """Nothing was found and nothing was touched."""
        assert self.outcome == Missing()
        self._check_sentinels(len(self._around) - 64)

    def _check_sentinels(self, until: int) -> None:
        assert set(self._around[:until]) == {SENTINEL}, "bytes before the blocks were touched"
        assert set(self._around[-64:]) == {SENTINEL}, "bytes behind the buffer were touched"


def store(tier: Tier, key: ChunkKey, first_block: int = 0) -> WriteOutcome:
    """Write a key's chunk; what stands before `first_block` in the buffer is not its content."""
    return tier.write(key, _given(key, first_block), first_block)


def store_many(tier: Tier, given: Sequence[tuple[ChunkKey, int]]) -> list[WriteOutcome]:
    """The same for several chunks from their first blocks on, with one call."""
    return tier.write_many([(key, _given(key, first), first) for key, first in given])


def _given(key: ChunkKey, first_block: int) -> memoryview:
    geometry = GEOMETRIES[group_of(key)]
    payload = bytearray(payload_of(key, geometry))
    start = first_block * geometry.block_bytes
    payload[:start] = bytes([SENTINEL]) * start
    return memoryview(payload).toreadonly()
