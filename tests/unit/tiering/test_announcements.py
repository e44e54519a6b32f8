"""What a cache tells of its tiers, followed as a router follows it, against what the tiers hold."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey, group_of, hash_of
from kvstrata.tiering.cache import TieredCache
from kvstrata.tiering.planner import RequestShape
from kvstrata.tiers.tier import Present, Stored, WriteOutcome
from kvstrata.wire import batches as wire
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import Place
from tests.unit.tiering.storage import DictTier
from tests.unit.tiering.test_cache import GEOMETRIES, Bench, payload, request

MEDIA = {"memory": "CPU", "filesystem": "STORAGE"}
NAMES = "abc"
CHUNKS = 10


def number(key: ChunkKey) -> int:
    return int.from_bytes(hash_of(key)[:8], "big")  # where these keys differ


class Noting(DictTier):
    """Notes what was written, and lets answers of a probe wait after they were found."""

    def __init__(self, geometries: dict[int, GroupGeometry]) -> None:
        super().__init__(geometries)
        self.written: set[ChunkKey] = set()
        self.late = threading.Event()
        self.late.set()
        self.probed = threading.Event()

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        found = super().probe(keys)
        self.probed.set()
        self.late.wait()
        return found

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        outcome = super().write(key, payload, first_block)
        if isinstance(outcome, Stored | Present):
            self.written.add(key)
        return outcome


class Followed(Bench):
    """A cache whose events are followed as they come."""

    def __init__(self, slots: int = 64) -> None:
        super().__init__(slots)
        self.storage = Noting(GEOMETRIES)
        self.contents = Contents()
        self.cache = TieredCache(
            self.memory,
            self.storage,
            GEOMETRIES,
            self.runner,
            self.clock,
            read_deadline=10,
            store_queue=1 << 20,
            counters=self.counters,
            announced=lambda key: self.believed("filesystem", key),
        )

    def believed(self, tier: str, key: ChunkKey) -> bool:
        place = Place(MEDIA[tier], group_of(key))
        return number(key) in self.contents.held.get(place, {})

    def follow(self) -> None:
        for event in self.cache.take_events():
            by_group: dict[int, list[int]] = {}
            for key in event.keys:
                by_group.setdefault(group_of(key), []).append(number(key))
            for group, hashes in by_group.items():
                medium = MEDIA[event.tier]
                told: wire.Event = (
                    wire.Removed(hashes, medium, group)
                    if event.removed
                    else wire.Stored(hashes, None, 0, 0, medium, group)
                )
                self.contents.apply(wire.Batch(0.0, 0, [told], 0))

    def claimed(self, tier: str) -> set[tuple[int, int]]:
        return {
            (place.group, value)
            for place, hashes in self.contents.held.items()
            if place.medium == MEDIA[tier]
            for value in hashes
        }

    def idle(self) -> None:
        """Step, with events taken in each step, until there is nothing left to do."""
        for _ in range(2000):
            self.cache.tick()
            self.follow()
            if not self.cache.busy():
                return
            time.sleep(0.001)
        raise AssertionError("I/O never ended")

    def finish(self) -> None:
        self.storage.gate.set()
        self.storage.late.set()
        self.runner.close(1)


def named(keys: Iterator[ChunkKey] | set[ChunkKey]) -> set[tuple[int, int]]:
    return {(group_of(key), number(key)) for key in keys}


@pytest.fixture
def bench() -> Iterator[Followed]:
    bench = Followed()
    yield bench
    bench.finish()


class Following(RuleBasedStateMachine):
    """Random stores, loads, evictions, resets, and others who write to and delete from storage."""

    @initialize(slots=st.sampled_from([6, 24]))
    def begin(self, slots: int) -> None:
        self.bench = Followed(slots)
        self.undiscovered: set[ChunkKey] = set()

    @rule(name=st.sampled_from(NAMES), low=st.integers(0, 8), count=st.integers(1, 6))
    def store(self, name: str, low: int, count: int) -> None:
        shape = request(CHUNKS, name)
        self.bench.store([key for g in shape.groups for key in g.keys[low : low + count]])

    @rule(name=st.sampled_from(NAMES), chunks=st.integers(2, CHUNKS))
    def load(self, name: str, chunks: int) -> None:
        """Once a request was answered, nobody expects more of the prefix than there is."""
        shape = request(chunks, name)
        self.bench.idle()
        self.bench.follow()
        self.bench.settle(name, shape)
        self.bench.cache.loads.drop(name)
        self.bench.idle()
        self.bench.follow()
        self.undiscovered = {key for key in self.undiscovered if self.claims(key)}
        if not self.settled_by_memory(shape):
            keys = shape.groups[0].keys
            assert self.run(keys, self.claims) <= self.run(keys, self.holds)

    @rule(name=st.sampled_from(NAMES), index=st.integers(0, CHUNKS - 1), group=st.integers(0, 1))
    def another_deletes(self, name: str, index: int, group: int) -> None:
        self.bench.idle()
        self.bench.follow()
        key = request(CHUNKS, name).groups[group].keys[index]
        if self.bench.storage.remove(key) and self.bench.believed("filesystem", key):
            self.undiscovered.add(key)
        self.bench.storage.written.discard(key)

    @rule(name=st.sampled_from(NAMES), index=st.integers(0, CHUNKS - 1), group=st.integers(0, 1))
    def another_writes(self, name: str, index: int, group: int) -> None:
        key = request(CHUNKS, name).groups[group].keys[index]
        self.bench.storage.held[key] = payload(key), 0
        self.undiscovered.discard(key)

    @rule(failing=st.booleans())
    def disk_full(self, failing: bool) -> None:
        self.bench.storage.failing = failing

    @rule()
    def step(self) -> None:
        self.bench.cache.tick()

    @rule()
    def reset(self) -> None:
        self.bench.idle()
        self.bench.cache.reset(fresh := Noting(GEOMETRIES))
        self.bench.follow()
        assert not self.bench.claimed("memory")
        self.bench.storage = fresh
        for place in [p for p in self.bench.contents.held if p.medium == "STORAGE"]:
            del self.bench.contents.held[place]  # another owner's from now on
        self.undiscovered.clear()

    @invariant()
    def memory_is_as_told(self) -> None:
        if hasattr(self, "bench"):
            self.bench.follow()
            assert self.bench.claimed("memory") == named(self.bench.memory.scan())

    @invariant()
    def storage_is_as_told(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.bench.idle()
        self.bench.follow()
        storage, claimed = self.bench.storage, self.bench.claimed("filesystem")
        assert named(storage.written) <= claimed
        assert claimed <= named(set(storage.held)) | named(self.undiscovered)

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.finish()

    def claims(self, key: ChunkKey) -> bool:
        return any(self.bench.believed(tier, key) for tier in MEDIA)

    def holds(self, key: ChunkKey) -> bool:
        return self.bench.memory.held(key) or key in self.bench.storage.held

    def settled_by_memory(self, shape: RequestShape) -> bool:
        """Nobody looked into storage, or only for a part."""
        memory = self.bench.memory
        return any(memory.held(key) for group in shape.groups for key in group.keys)

    @staticmethod
    def run(keys: Sequence[ChunkKey], has) -> int:
        return next((i for i, key in enumerate(keys) if not has(key)), len(keys))


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_store_that_overtakes_a_survey_is_not_taken_back(bench: Followed) -> None:
    shape = request(4)
    bench.storage.late.clear()
    assert not bench.cache.loads.poll("r", shape)
    assert bench.storage.probed.wait(10)
    bench.store([shape.groups[0].keys[0], shape.groups[1].keys[0]])
    while len(bench.storage.written) < 2:
        bench.cache.tick()
    bench.storage.late.set()
    bench.settle("r", shape)
    bench.idle()
    bench.follow()
    assert named(bench.storage.written) <= bench.claimed("filesystem")


def test_a_deleted_prefix_is_taken_back_when_a_request_misses_it(bench: Followed) -> None:
    shape = request(6)
    bench.store([key for group in shape.groups for key in group.keys])
    bench.idle()
    bench.follow()
    assert len(bench.claimed("filesystem")) == 12
    bench.cache.reset(bench.storage)
    bench.storage.held.clear()
    assert bench.settle("r", shape) == 0
    bench.follow()
    keys = [key for key in shape.groups[0].keys if bench.believed("filesystem", key)]
    assert keys == []


def test_a_chunk_whose_bytes_are_bad_is_taken_back(bench: Followed) -> None:
    shape = request(6)
    bench.put(shape)
    bench.settle("warm", shape)
    bench.cache.loads.drop("warm")
    bench.follow()
    bad = shape.groups[0].keys[3]
    assert bench.believed("filesystem", bad)  # what is loaded is told, whoever wrote it
    bench.cache.reset(bench.storage)
    bench.storage.bad.add(bad)
    bench.settle("r", shape)
    bench.follow()
    assert not bench.believed("filesystem", bad)
    assert bench.believed("filesystem", shape.groups[0].keys[2])


def test_of_a_new_prompt_only_the_hole_is_told(bench: Followed) -> None:
    shape = request(40, "new")
    bench.settle("r", shape)
    told = [event for event in bench.cache.take_events() if event.removed]
    assert [event.keys for event in told] == [(shape.groups[0].keys[0],)]


def test_nobody_is_told_what_is_missing_when_nobody_follows() -> None:
    bench = Bench()
    try:
        bench.settle("r", request(6))
        assert bench.cache.take_events() == []
    finally:
        bench.runner.close(1)


def test_a_reset_is_told_at_once_and_keeps_the_engine_stepping(bench: Followed) -> None:
    shape = request(3)
    bench.store([key for group in shape.groups for key in group.keys])
    pinned = bench.cache.pin_for_device([shape.groups[0].keys[1]])
    assert pinned
    bench.idle()
    bench.follow()
    assert not bench.cache.busy()
    bench.cache.reset(Noting(GEOMETRIES))
    assert bench.cache.busy()
    bench.follow()
    assert not bench.claimed("memory") and not bench.cache.busy()
