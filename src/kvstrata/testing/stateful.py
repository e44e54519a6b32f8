"""Any tier against a dictionary: hypothesis chooses the operations, the dictionary knows the answers."""

from collections.abc import Mapping

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, group_of, make_key
from kvstrata.tiers.tier import Loaded, Missing, Present, ReadOutcome, Stored, Tier

GEOMETRIES: Mapping[int, GroupGeometry] = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 4, (64,)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 4, (33, 20), window_tokens=32),
    2: GroupGeometry(2, GroupKind.STATE, 16, 1, (777,)),
}
"""Geometries that the machine's tiers are made for."""

ARENA_BYTES = 4 << 20
"""A tier of bounded size needs this much, so that nothing is evicted."""

_KEYS = tuple(make_key(bytes([i, i * 7]) * 8, group) for i in range(3) for group in GEOMETRIES)
_SENTINEL = 0xEE

keys = st.sampled_from(_KEYS)


class TierMachine(RuleBasedStateMachine):
    """Operations on a tier; after each, the tier and the dictionary must agree.

    Subclass it with `make_tier` and `persistent`, and let `Machine.TestCase` be collected.

    Attributes:
        persistent: whether a tier made again must see what was stored.
        model: first stored block of each chunk that is held.
    """

    persistent = False

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[ChunkKey, int] = {}
        self.tier = self.make_tier()

    def make_tier(self) -> Tier:
        """A tier for `GEOMETRIES`: empty at first, at the same place when it is made again."""
        raise NotImplementedError

    @rule(chunks=st.lists(keys, min_size=1, max_size=6, unique=True), data=st.data())
    def write(self, chunks: list[ChunkKey], data: st.DataObject) -> None:
        """Stored when nothing at least as complete is there."""
        firsts = [self._first_block(key, data) for key in chunks]
        given = list(zip(chunks, firsts, strict=True))
        if len(given) == 1:
            key, first = given[0]
            outcomes = [self.tier.write(key, memoryview(_payload(key)), first)]
        else:
            outcomes = self.tier.write_many(
                [(key, memoryview(_payload(key)), first) for key, first in given]
            )
        for (key, first), outcome in zip(given, outcomes, strict=True):
            geometry = GEOMETRIES[group_of(key)]
            if self.model.get(key, geometry.blocks_per_chunk) <= first:
                assert outcome == Present()
            else:
                stored = (geometry.blocks_per_chunk - first) * geometry.block_bytes
                assert outcome == Stored(stored)
                self.model[key] = first

    @rule(chunks=st.lists(keys, min_size=1, max_size=6), data=st.data())
    def read(self, chunks: list[ChunkKey], data: st.DataObject) -> None:
        """Loaded when every block asked for is there; nothing but these blocks is touched."""
        firsts = [self._first_block(key, data) for key in chunks]
        buffers = [
            bytearray([_SENTINEL]) * GEOMETRIES[group_of(key)].payload_bytes for key in chunks
        ]
        if len(chunks) == 1:
            outcomes = [self.tier.read(chunks[0], memoryview(buffers[0]), firsts[0])]
        else:
            views = [memoryview(into) for into in buffers]
            outcomes = self.tier.read_many(list(zip(chunks, views, firsts, strict=True)))
        for key, first, into, outcome in zip(chunks, firsts, buffers, outcomes, strict=True):
            self._check_read(key, first, into, outcome)

    def _check_read(self, key: ChunkKey, first: int, into: bytearray, outcome: ReadOutcome) -> None:
        geometry = GEOMETRIES[group_of(key)]
        start = first * geometry.block_bytes
        if self.model.get(key, geometry.blocks_per_chunk) <= first:
            assert outcome == Loaded(geometry.payload_bytes - start)
            assert into[start:] == _payload(key)[start:]
        else:
            assert outcome == Missing()
            start = len(into)
        assert into[:start] == bytes([_SENTINEL]) * start

    @staticmethod
    def _first_block(key: ChunkKey, data: st.DataObject) -> int:
        blocks = GEOMETRIES[group_of(key)].blocks_per_chunk
        return data.draw(st.integers(0, blocks - 1), label="first block")

    @rule(key=keys)
    def remove(self, key: ChunkKey) -> None:
        """Answers whether it was there."""
        assert self.tier.remove(key) == (self.model.pop(key, None) is not None)

    @precondition(lambda self: self.persistent)
    @rule()
    def reopen(self) -> None:
        """A tier made again sees what was stored."""
        self.tier.close()
        self.tier = self.make_tier()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        """Probe and scan agree with the dictionary."""
        assert self.tier.probe(_KEYS) == [key in self.model for key in _KEYS]
        assert sorted(self.tier.scan()) == sorted(self.model)

    def teardown(self) -> None:
        """Close the tier."""
        self.tier.close()


def _payload(key: ChunkKey) -> bytes:
    size = GEOMETRIES[group_of(key)].payload_bytes
    return bytes((key[0] * 31 + key[-1] * 17 + i * 3) % 251 for i in range(size))
