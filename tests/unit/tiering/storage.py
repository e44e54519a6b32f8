"""A storage tier in a dictionary, whose every misbehaviour is scripted."""

import threading
from collections.abc import Iterator, Sequence

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey, group_of
from kvstrata.errors import BadReason
from kvstrata.tiers.tier import (
    Bad,
    Failed,
    Loaded,
    Missing,
    Present,
    ReadOutcome,
    Stored,
    Tier,
    WriteOutcome,
)


class DictTier(Tier):
    """Chunks in a dictionary.

    Attributes:
        held: payload and first block by key.
        bad: keys that answer Bad.
        vanishing: keys that are probed but not found.
        gate: reads and writes wait for it.
        failing: writes answer Failed.
        reads: what was read, with its first block.
    """

    name = "filesystem"

    def __init__(self, geometries: dict[int, GroupGeometry]) -> None:
        self.geometries = geometries
        self.held: dict[ChunkKey, tuple[bytes, int]] = {}
        self.bad: set[ChunkKey] = set()
        self.vanishing: set[ChunkKey] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.failing = False
        self.reads: list[tuple[ChunkKey, int]] = []

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        self.gate.wait()
        return [key in self.held or key in self.vanishing for key in keys]

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        self.gate.wait()
        self.reads.append((key, first_block))
        if key in self.bad:
            return Bad(BadReason.CHECKSUM, "scripted")
        if key not in self.held or self.held[key][1] > first_block:
            return Missing()
        start = first_block * self.geometries[group_of(key)].block_bytes
        into[start:] = self.held[key][0][start:]
        return Loaded(len(into) - start)

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        self.gate.wait()
        if self.failing:
            return Failed("ENOSPC", "scripted")
        if key in self.held:
            return Present()
        self.held[key] = bytes(payload), first_block
        return Stored(len(payload))

    def remove(self, key: ChunkKey) -> bool:
        return self.held.pop(key, None) is not None

    def scan(self) -> Iterator[ChunkKey]:
        return iter(list(self.held))
