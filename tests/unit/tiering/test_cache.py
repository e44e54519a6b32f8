"""The tiered cache over a scripted storage tier: hits are always true, faults are always misses."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry, GroupKind, ceil_div
from kvstrata.chunks.key import group_of, make_key
from kvstrata.clock import ManualClock
from kvstrata.tiering import reserving
from kvstrata.tiering.cache import RESET_STEPS, TieredCache
from kvstrata.tiering.planner import GroupKeys, RequestShape
from kvstrata.tiering.runner import Runner
from kvstrata.tiers.memory import MemoryTier
from tests.unit.tiering.storage import DictTier

FULL = GroupGeometry(0, GroupKind.FULL, 16, 1, (4096,))
WINDOW = GroupGeometry(1, GroupKind.WINDOW, 16, 1, (4096,), window_tokens=33)
GEOMETRIES = {0: FULL, 1: WINDOW}


def payload(key: bytes) -> bytes:
    return random.Random(key).randbytes(GEOMETRIES[group_of(key)].payload_bytes)


def request(chunks: int, name: str = "a", computed: int = 0) -> RequestShape:
    groups = [
        GroupKeys(
            geometry,
            [make_key(f"{name}{i}".encode().ljust(16), geometry.group) for i in range(chunks)],
        )
        for geometry in GEOMETRIES.values()
    ]
    return RequestShape(groups, tokens=chunks * 16 + 5, computed=computed)


class Bench:
    """A cache with its parts at hand."""

    def __init__(
        self,
        slots: int = 64,
        store_queue: int = 1 << 20,
        geometries: dict[int, GroupGeometry] = GEOMETRIES,
    ) -> None:
        self.clock = ManualClock()
        self.counters = m.Metrics()
        self.arena = bytearray(slots * 4096)
        self.memory = MemoryTier(memoryview(self.arena), geometries)
        self.storage = DictTier(geometries)
        self.runner = Runner(3, self.clock, 10)
        self.cache = TieredCache(
            self.memory,
            self.storage,
            geometries,
            self.runner,
            self.clock,
            read_deadline=10,
            store_queue=store_queue,
            counters=self.counters,
        )
        self.totals: dict[tuple, float] = {}

    def put(self, shape: RequestShape, window_from: int = 0) -> None:
        """Everything of a request into storage; of the window group only from a chunk on."""
        for group in shape.groups:
            start = window_from if group.geometry.windowed else 0
            for key in group.keys[start:]:
                self.storage.held[key] = payload(key), 0

    def settle(self, name: str, shape: RequestShape) -> int:
        """Poll until the load is ready; its boundary in tokens."""
        for _ in range(2000):
            if self.cache.loads.poll(name, shape):
                boundary = self.cache.loads.boundary(name)
                assert boundary is not None
                return boundary
            self.cache.tick()
            time.sleep(0.001)
        raise AssertionError("the load never became ready")

    def idle(self) -> None:
        for _ in range(2000):
            self.cache.tick()
            if not self.cache.busy():
                return
            time.sleep(0.001)
        raise AssertionError("I/O never ended")

    def count(self, metric: m.Metric, *labels: str) -> float:
        for sample in self.counters.take():
            key = (sample.metric.name, sample.labels)
            self.totals[key] = self.totals.get(key, 0) + sample.value
        return self.totals.get((metric.name, labels), 0)

    def store(self, keys: list[bytes]) -> list[bytes]:
        """What the device does: reserve, copy, complete."""
        accepted = [key for key, _ in self.cache.prepare_store(keys)]
        for key in accepted:
            self.memory.view(key)[:] = payload(key)
        self.cache.complete_store(accepted, {}, frozenset())
        return accepted

    def check_hits(self, name: str, shape: RequestShape) -> None:
        """Whatever is called readable has exactly its bytes."""
        for group in shape.groups:
            for key in group.keys:
                if self.cache.loads.readable(name, key):
                    assert bytes(self.memory.view(key)) == payload(key)


@pytest.fixture(autouse=True, params=["at once", "over many steps"])
def places(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads get their places in one step, or three chunks a step."""
    if request.param != "at once":
        monkeypatch.setattr(reserving, "STEP_CHUNKS", 3)


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.storage.gate.set()
    bench.runner.close(1)


def test_a_stored_prefix_is_served_and_only_the_windows_tail_is_read(bench: Bench) -> None:
    shape = request(12)
    bench.put(shape)
    assert bench.settle("r", shape) == 192
    full, window = (set(group.keys) for group in shape.groups)
    read = {key for key, _ in bench.storage.reads}
    assert read & full == full
    assert read & window == set(shape.groups[1].keys[-2:])  # the 32 tokens before the one computed
    bench.check_hits("r", shape)
    assert bench.count(m.HITS, "filesystem") == 14
    assert bench.cache.loads.stored_tokens("r", 0, 192) == 192


def test_memory_answers_at_once_without_storage(bench: Bench) -> None:
    shape = request(12)
    bench.put(shape)
    bench.settle("r", shape)
    bench.cache.loads.drop("r")
    bench.storage.gate.clear()
    assert bench.cache.loads.poll("again", shape)
    assert bench.cache.loads.boundary("again") == 192
    assert bench.cache.loads.stored_tokens("again", 0, 192) == 0


def test_nothing_known_is_a_miss(bench: Bench) -> None:
    assert bench.settle("r", request(5)) == 0
    assert bench.storage.reads == []


def test_a_missing_window_starts_no_reads(bench: Bench) -> None:
    shape = request(12)
    bench.put(shape, window_from=99)
    assert bench.settle("r", shape) == 0
    assert bench.storage.reads == []


def test_what_the_device_holds_is_not_read(bench: Bench) -> None:
    shape = request(12, computed=96)
    bench.put(shape)
    assert bench.settle("r", shape) == 192
    assert {key for key, _ in bench.storage.reads} == {
        *shape.groups[0].keys[6:],
        *shape.groups[1].keys[-2:],
    }


@pytest.mark.parametrize("how", ["bad", "vanishing", "held"])
def test_a_chunk_that_does_not_come_shortens_the_hit(bench: Bench, how: str) -> None:
    shape = request(12)
    bench.put(shape)
    victim = shape.groups[0].keys[7]
    if how == "bad":
        bench.storage.bad.add(victim)
    else:
        del bench.storage.held[victim]
        if how == "vanishing":
            bench.storage.vanishing.add(victim)
    assert bench.settle("r", shape) == 112
    assert not bench.cache.loads.readable("r", victim)
    bench.check_hits("r", shape)


def test_a_bad_window_tail_falls_back_to_an_earlier_window(bench: Bench) -> None:
    shape = request(12)
    bench.put(shape)
    bench.storage.bad.add(shape.groups[1].keys[10])
    assert bench.settle("r", shape) == 160
    bench.check_hits("r", shape)


def test_a_hung_read_is_a_miss_after_the_deadline_and_harms_nobody_later(bench: Bench) -> None:
    shape = request(6)
    bench.put(shape)
    bench.storage.gate.clear()
    assert not bench.cache.loads.poll("r", shape)
    bench.clock.advance(11)
    assert bench.cache.loads.poll("r", shape)
    assert bench.cache.loads.boundary("r") == 0
    assert bench.count(m.READ_DEADLINES) == 1
    bench.storage.gate.set()
    bench.idle()
    assert bench.settle("again", shape) == 96
    bench.check_hits("again", shape)


def test_a_slot_under_a_hung_read_is_not_given_away(bench: Bench) -> None:
    shape = request(6)
    bench.put(shape)
    entered = bench.storage.read

    def hang(key, into, first_block=0):
        bench.storage.gate.wait()
        return entered(key, into, first_block)

    bench.storage.read = hang
    assert not bench.cache.loads.poll("r", shape)
    while bench.cache.loads.boundary("r") is None:
        bench.cache.tick()
    bench.storage.gate.clear()
    bench.cache.loads.poll("r", shape)
    bench.cache.loads.poll("r", shape)
    bench.clock.advance(11)
    assert bench.cache.loads.poll("r", shape)
    others = [make_key(i.to_bytes(16, "big"), 0) for i in range(64)]
    stored = bench.store(others)
    held = {key for group in shape.groups for key in group.keys if bench.memory.entry(key)}
    assert held and len(stored) <= 64 - len(held)
    bench.storage.gate.set()
    bench.idle()
    for key in stored:
        if bench.memory.readable(key):
            assert bytes(bench.memory.view(key)) == payload(key)


def test_two_requests_share_one_read(bench: Bench) -> None:
    shape = request(8)
    bench.put(shape)
    bench.storage.gate.clear()
    bench.cache.loads.poll("one", shape)
    bench.cache.loads.poll("two", shape)
    bench.storage.gate.set()
    assert bench.settle("one", shape) == bench.settle("two", shape) == 128
    keys = [key for key, _ in bench.storage.reads]
    assert len(keys) == len(set(keys))


def test_a_request_that_goes_away_frees_what_it_held(bench: Bench) -> None:
    shape = request(8)
    bench.put(shape)
    bench.storage.gate.clear()
    bench.cache.loads.poll("r", shape)
    bench.cache.loads.drop("r")
    bench.storage.gate.set()
    bench.idle()
    assert not bench.memory.in_use


def test_a_prefix_larger_than_the_arena_is_served_in_part() -> None:
    bench = Bench(slots=16)
    shape = RequestShape([request(40).groups[0]], tokens=645, computed=0)
    for key in shape.groups[0].keys:
        bench.storage.held[key] = payload(key), 0
    boundary = bench.settle("r", shape)
    assert 0 < boundary <= 16 * 16
    bench.check_hits("r", shape)
    bench.runner.close(1)


def test_two_loads_that_need_the_whole_arena_follow_each_other() -> None:
    bench = Bench(slots=16)
    shapes = [RequestShape([request(14, name).groups[0]], tokens=229, computed=0) for name in "ab"]
    for shape in shapes:
        for key in shape.groups[0].keys:
            bench.storage.held[key] = payload(key), 0
    ready: dict[int, int] = {}
    for _ in range(2000):
        for number, shape in enumerate(shapes):
            if number not in ready and bench.cache.loads.poll(str(number), shape):
                bench.check_hits(str(number), shape)
                ready[number] = bench.cache.loads.boundary(str(number))
                bench.cache.loads.drop(str(number))
        bench.cache.tick()
        if len(ready) == 2:
            break
        time.sleep(0.001)
    assert ready == {0: 224, 1: 224}
    bench.idle()
    assert not bench.memory.in_use
    bench.runner.close(1)


def test_a_load_that_fits_passes_one_that_waits_for_room() -> None:
    bench = Bench(slots=16)
    large = RequestShape([request(14).groups[0]], tokens=229, computed=0)
    small = RequestShape([request(2, "b").groups[0]], tokens=37, computed=0)
    for shape in (large, small):
        for key in shape.groups[0].keys:
            bench.storage.held[key] = payload(key), 0
    taken = [key for key, _ in bench.cache.prepare_store(request(3, "c").groups[0].keys)]
    for _ in range(50):
        assert not bench.cache.loads.poll("large", large)
        bench.cache.tick()
        time.sleep(0.001)
    assert bench.settle("small", small) in (
        0,
        32,
    )  # what the large one holds already may be too much
    bench.cache.loads.drop("small")
    bench.cache.complete_store(taken, {}, frozenset())
    bench.idle()
    assert bench.settle("large", large) == 224
    bench.check_hits("large", large)
    bench.runner.close(1)


def test_a_load_that_goes_away_half_reserved_lets_others_begin() -> None:
    bench = Bench(slots=16)
    first = RequestShape([request(14).groups[0]], tokens=229, computed=0)
    other = RequestShape([request(12, "b").groups[0]], tokens=197, computed=0)
    for shape in (first, other):
        for key in shape.groups[0].keys:
            bench.storage.held[key] = payload(key), 0
    for _ in range(200):  # until the first has a part of its places, or all
        bench.cache.loads.poll("first", first)
        if bench.memory.in_use:
            break
        time.sleep(0.001)
    bench.cache.loads.drop("first")
    assert bench.settle("other", other) == 192
    bench.cache.loads.drop("other")
    bench.idle()
    assert not bench.memory.in_use
    bench.runner.close(1)


def test_stores_are_written_behind_in_order_and_unpinned(bench: Bench) -> None:
    keys = list(request(10).groups[0].keys)
    assert bench.store(keys) == keys
    bench.idle()
    assert list(bench.storage.held) == keys
    assert bench.storage.held[keys[3]] == (payload(keys[3]), 0)
    assert not bench.memory.in_use


def test_a_full_write_queue_drops_and_counts(bench: Bench) -> None:
    small = Bench(store_queue=3 * 4096)
    small.storage.gate.clear()
    keys = list(request(10).groups[0].keys)
    small.store(keys)
    assert small.count(m.WRITES_DROPPED, "queue_full") == 7
    assert all(small.memory.readable(key) for key in keys)
    small.storage.gate.set()
    small.idle()
    assert list(small.storage.held) == keys[:3]
    small.runner.close(1)


def test_a_write_error_is_counted_and_memory_still_serves(bench: Bench) -> None:
    bench.storage.failing = True
    keys = list(request(4).groups[0].keys)
    bench.store(keys)
    bench.idle()
    assert bench.count(m.WRITES_DROPPED, "ENOSPC") == 4
    assert all(bench.memory.readable(key) for key in keys) and not bench.memory.in_use


def test_a_torn_chunk_is_never_readable_nor_stored(bench: Bench) -> None:
    keys = list(request(3).groups[0].keys)
    accepted = [key for key, _ in bench.cache.prepare_store(keys)]
    bench.cache.complete_store(accepted, {}, frozenset([keys[1]]))
    bench.idle()
    assert bench.memory.entry(keys[1]) is None and keys[1] not in bench.storage.held
    assert bench.count(m.WRITES_DROPPED, "torn") == 1


def test_when_every_slot_is_pinned_stores_are_dropped(bench: Bench) -> None:
    small = Bench(slots=4)
    small.storage.gate.clear()
    keys = [make_key(bytes([i]) * 16, 0) for i in range(6)]
    assert small.store(keys) == keys[:4]
    assert small.count(m.WRITES_DROPPED, "no_slot") == 2
    small.storage.gate.set()
    small.runner.close(1)


def test_after_a_reset_nothing_old_is_readable_and_all_places_come_back(bench: Bench) -> None:
    shape = request(8)
    bench.put(shape)
    bench.settle("r", shape)
    bench.cache.pin_for_device(shape.groups[0].keys[:3])
    storing = [key for key, _ in bench.cache.prepare_store(request(2, "b").groups[0].keys)]
    fresh = DictTier(GEOMETRIES)
    bench.cache.reset(fresh)
    assert not any(bench.memory.held(key) for group in shape.groups for key in group.keys)
    bench.cache.complete_store(storing, {}, frozenset())  # late word from before the reset
    assert not any(bench.memory.held(key) for key in storing)
    assert bench.settle("again", shape) == 0
    for _ in range(RESET_STEPS + 1):
        bench.cache.tick()
    bench.idle()
    assert not bench.memory.in_use and fresh.held == {}


def test_events_tell_what_came_and_went(bench: Bench) -> None:
    keys = list(request(2).groups[0].keys)
    bench.store(keys)
    bench.idle()
    events = [(e.tier, set(e.keys), e.removed) for e in bench.cache.take_events()]
    assert events == [("memory", set(keys), False), ("filesystem", set(keys), False)]
    bench.memory.remove(keys[0])
    bench.cache.tick()
    assert [(e.tier, e.keys, e.removed) for e in bench.cache.take_events()] == [
        ("memory", (keys[0],), True)
    ]


def test_a_chunk_entered_in_its_middle_serves_only_the_planned_boundary() -> None:
    full = GroupGeometry(0, GroupKind.FULL, 16, 4, (1024,))
    window = GroupGeometry(1, GroupKind.WINDOW, 16, 4, (1024,), window_tokens=33)
    bench = Bench(geometries={0: full, 1: window})
    groups = [
        GroupKeys(g, [make_key(bytes([i]) * 16, g.group) for i in range(5)]) for g in (full, window)
    ]
    shape = RequestShape(groups, tokens=325, computed=0)
    for group in groups:
        for key in group.keys:
            bench.storage.held[key] = random.Random(key).randbytes(4096), 0
    tail = groups[1].keys[4]
    bench.storage.held[tail] = bench.storage.held[tail][0], 2
    assert bench.settle("r", shape) == 320
    assert (tail, 2) in bench.storage.reads
    assert bench.cache.loads.readable("r", tail)
    assert bench.cache.loads.covers("r", 320) and not bench.cache.loads.covers("r", 300)
    assert not bench.memory.readable(tail)
    bench.runner.close(1)


def bytes_of(group: GroupKeys, computed: int, boundary: int) -> int:
    """The formula: whole blocks from the first token that a resume at `boundary` reads up to it."""
    geometry = group.geometry
    first = max(computed, geometry.first_token(boundary)) // geometry.tokens_per_block
    return (ceil_div(boundary, geometry.tokens_per_block) - first) * geometry.block_bytes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bytes_read_are_exactly_those_that_the_boundary_needs(data) -> None:
    """Whatever storage holds: nothing for a boundary that is not reached, no block before a window."""
    per_chunk = data.draw(st.sampled_from([1, 2, 4]))
    window = data.draw(st.integers(2, 150))
    geometries = {
        0: GroupGeometry(0, GroupKind.FULL, 16, per_chunk, (256,)),
        1: GroupGeometry(1, GroupKind.WINDOW, 16, per_chunk, (512,), window_tokens=window),
        2: GroupGeometry(2, GroupKind.LOCAL, 16, per_chunk, (128,), window_tokens=64),
    }
    bench = Bench(128, geometries=geometries)
    chunks = data.draw(st.integers(1, 12))
    computed = data.draw(st.integers(0, chunks * per_chunk)) * 16
    groups = [
        GroupKeys(g, [make_key(f"a{i}".encode().ljust(16), g.group) for i in range(chunks)])
        for g in geometries.values()
    ]
    shape = RequestShape(groups, tokens=chunks * per_chunk * 16 + 5, computed=computed)
    prefix = data.draw(st.integers(0, chunks))
    for group in groups:
        size = group.geometry.payload_bytes
        for index, key in enumerate(group.keys):
            kept = index < prefix if group.geometry is geometries[0] else data.draw(st.booleans())
            if kept:
                bench.storage.held[key] = bytes(size), 0
    try:
        boundary = bench.settle("r", shape)
        expected = 0
        if boundary > computed:
            expected = sum(bytes_of(group, computed, boundary) for group in groups)
        read = sum(
            geometries[group_of(key)].payload_bytes - first * geometries[group_of(key)].block_bytes
            for key, first in bench.storage.reads
        )
        assert read == expected
    finally:
        bench.runner.close(1)
