"""Processes that write into a bounded root at full speed, and others that check every byte they load."""

import contextlib
import hashlib
import itertools
import multiprocessing.connection
import multiprocessing.synchronize
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, group_of, make_key, parse_file_name
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.record import PAGE
from kvstrata.clock import MonotonicClock
from kvstrata.tiers.bounded import CAPACITY, BoundedTier
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Done
from kvstrata.tiers.shares import HIGH, Bound
from kvstrata.tiers.tier import Bad, Failed, Loaded, Stored, Tier, Transfer

KIB = 1024
GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 4, (16 * KIB,)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 4, (32 * KIB,), window_tokens=33),
    2: GroupGeometry(2, GroupKind.STATE, 64, 1, (256 * KIB,)),
}
"""A hybrid with chunks of 64, 128 and 256 KiB; the smallest are stored together."""
NAMESPACE = Namespace(
    "soak",
    {"groups": [{"group": one.group, "kind": one.kind.value} for one in GEOMETRIES.values()]},
)
LARGEST = max(one.payload_bytes for one in GEOMETRIES.values())
MEAN = 110 * KIB
"""Bytes of a boundary, about."""
AT_ONCE = 8
"""Boundaries that are written together; their small chunks are a segment."""
STEPS = 3
"""Every so many boundaries one has windows and a state too."""
LAG = 0.2
"""Of what a writer writes, what another one has written, or is writing just now."""
KEEPER_SECONDS = 10.0
"""In which a keeper that was told to stop is gone."""


@dataclass(slots=True)
class Found:
    """What one process did and saw.

    Attributes:
        stored: keys that it wrote.
        refused: writes for which there was no room.
        failed: writes that failed for another reason, by reason.
        loaded: chunks that it read and compared.
        missing: chunks that were gone, or never there.
        wrong: what was loaded and was not what is stored under that key, or could not be used.
        removed: names of chunks that it unlinked.
        announced: keys that its tier said it had removed.
        looks: at the root, that its keeper told of.
    """

    stored: set[ChunkKey] = field(default_factory=set)
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    loaded: int = 0
    missing: int = 0
    wrong: list[str] = field(default_factory=list)
    removed: Counter[ChunkKey] = field(default_factory=Counter)
    announced: Counter[ChunkKey] = field(default_factory=Counter)
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """What all processes know.

    Attributes:
        root: that they share.
        capacity: bytes that it may hold.
        seed: of keys, and of what each process chooses.
        progress: boundaries that each writer has begun to write.
        stop: set when all are to end.
    """

    root: Path
    capacity: int
    seed: int
    progress: MutableSequence[int]
    stop: multiprocessing.synchronize.Event


def keys_of(seed: int, writer: int, number: int) -> list[ChunkKey]:
    """Chunks of a boundary: its full group's, and of some the windows.

    Hashes take one of sixteen values in their second byte, so that there are few enough directories for
    what stands in them to be counted again and again.
    """
    digest = bytearray(hashlib.blake2b(f"{seed}/{writer}/{number}".encode()).digest()[:32])
    digest[1] &= 0x0F
    groups = GEOMETRIES if number % STEPS == 0 else [0]
    return [make_key(bytes(digest), group) for group in groups]


def payload_of(key: ChunkKey) -> bytearray:
    """The bytes that belong to a key."""
    chance = np.random.Generator(np.random.SFC64(int.from_bytes(key)))
    return bytearray(chance.bytes(GEOMETRIES[group_of(key)].payload_bytes))


def first_block_of(key: ChunkKey) -> int:
    """The first block of a chunk that is stored: some of the window's chunks are stored in part."""
    return 2 if group_of(key) == 1 and key[5] % 2 else 0


@contextlib.contextmanager
def witnessing(removed: Counter[ChunkKey]) -> Iterator[None]:
    """Count the names of chunks that this process unlinks, whoever in it does."""
    unlink = os.unlink

    def witness(path: str, **options: int) -> None:
        unlink(path, **options)
        key = parse_file_name(Path(path).name)
        if key is not None:
            removed[key] += 1

    with mock.patch.object(os, "unlink", witness):
        yield


@contextlib.contextmanager
def bounded(task: Task, found: Found) -> Iterator[BoundedTier]:
    """The shared root as one engine has it; what its keeper removes is compared with what it says."""

    def looked(done: Done) -> None:
        found.looks += 1

    inner = FilesystemTier(task.root, NAMESPACE, GEOMETRIES)
    inner.prepare()
    with witnessing(found.removed):
        clock = MonotonicClock()
        bound = Bound(capacity=task.capacity)
        tier = BoundedTier(inner, inner.directory, bound, LARGEST, clock, looked)
        try:
            yield tier
        finally:
            tier.close()
            # A keeper that was in the middle of something ends it, and tells.
            for thread in threading.enumerate():
                if thread.name == "kvstrata-keeper":
                    thread.join(KEEPER_SECONDS)
            found.announced.update(tier.take_removed())


def fill(task: Task) -> Found:
    """Write as much as fits, before anybody else does, so that room has to be made from the start on."""
    found = Found()
    inner = FilesystemTier(task.root, NAMESPACE, GEOMETRIES)
    inner.prepare()
    left = task.capacity * HIGH
    for begin in itertools.count(0, AT_ONCE):
        # Of a writer whom there is not.
        keys = _boundaries(task, len(task.progress), begin)
        left -= sum(GEOMETRIES[group_of(key)].payload_bytes + PAGE for key in keys)
        if left < 0:
            return found
        _write(inner, keys, found)
    raise AssertionError


def write(task: Task, number: int, says: "multiprocessing.connection.Connection") -> None:
    """Write boundaries until all are to end.

    Args:
        task: for all.
        number: of this writer.
        says: is sent a `Found`.
    """
    chance = random.Random(f"{task.seed}/writer/{number}")
    found = Found()
    with bounded(task, found) as tier:
        while not task.stop.is_set():
            begin = task.progress[number]
            task.progress[number] = begin + AT_ONCE
            whose = number
            if chance.random() < LAG:
                whose = chance.randrange(len(task.progress))
                begin = max(task.progress[whose] - AT_ONCE, 0)
            keys = _boundaries(task, whose, begin)
            _write(tier, keys, found)
            found.announced.update(tier.take_removed())
    says.send(found)


def _boundaries(task: Task, writer: int, begin: int) -> list[ChunkKey]:
    numbers = range(begin, begin + AT_ONCE)
    return [key for one in numbers for key in keys_of(task.seed, writer, one)]


def _write(tier: Tier, keys: list[ChunkKey], found: Found) -> None:
    given: list[Transfer] = [
        (key, memoryview(payload_of(key)), first_block_of(key)) for key in keys
    ]
    refused = 0
    for key, outcome in zip(keys, tier.write_many(given), strict=True):
        if isinstance(outcome, Stored):
            found.stored.add(key)
        elif isinstance(outcome, Failed) and outcome.reason == CAPACITY:
            refused += 1
        elif isinstance(outcome, Failed):
            found.failed[outcome.reason] += 1
    found.refused += refused
    if refused == len(keys):
        time.sleep(0.001)


def read(task: Task, number: int, says: "multiprocessing.connection.Connection") -> None:
    """Load what was written lately, and compare every byte, until all are to end.

    Args:
        task: for all.
        number: of this reader.
        says: is sent a `Found`.
    """
    chance = random.Random(f"{task.seed}/reader/{number}")
    found = Found()
    # As far back as there can be something left, and a little more.
    reach = 2 * task.capacity // MEAN // len(task.progress)
    with bounded(task, found) as tier:
        while not task.stop.is_set():
            writer = chance.randrange(len(task.progress))
            last = task.progress[writer]
            begin = max(last - chance.randrange(1, reach), 0)
            keys = _boundaries(task, writer, begin)
            _read(tier, keys, found)
            found.announced.update(tier.take_removed())
    says.send(found)


def _read(tier: Tier, keys: list[ChunkKey], found: Found) -> None:
    wanted: list[tuple[ChunkKey, bytearray, int]] = [
        (key, bytearray(GEOMETRIES[group_of(key)].payload_bytes), first_block_of(key))
        for key in keys
    ]
    outcomes = tier.read_many([(key, memoryview(into), first) for key, into, first in wanted])
    for (key, into, first), outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, Bad):
            found.wrong.append(f"{key.hex()}: {outcome}")
        elif isinstance(outcome, Loaded):
            found.loaded += 1
            start = first * GEOMETRIES[group_of(key)].block_bytes
            # What was not asked for is left alone.
            if into[start:] != payload_of(key)[start:] or any(into[:start]):
                found.wrong.append(f"{key.hex()}: other bytes than were stored")
        else:
            found.missing += 1
