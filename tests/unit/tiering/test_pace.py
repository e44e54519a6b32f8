"""The order of loads: first come among equals, short ones past long ones, and nobody waits without end."""

import itertools
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.clock import ManualClock
from kvstrata.tiering import pace
from kvstrata.tiering.cache import TieredCache
from kvstrata.tiering.loads import JOB_CHUNKS
from kvstrata.tiering.pace import FIRST_RATE, Pace
from kvstrata.tiering.planner import GroupKeys, RequestShape
from kvstrata.tiering.runner import Priority, Runner
from kvstrata.tiering.writes import LEAST_BYTES, WriteBehind
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import ReadOutcome, Transfer, WriteOutcome
from tests.unit.tiering.storage import DictTier

NEVER = 1e9
LOADS = st.lists(
    st.tuples(st.floats(0, 10), st.integers(1, 40)), min_size=1, max_size=12
)  # when each begins, and its jobs of a second each


def serve(loads: list[tuple[float, int]]) -> list[float]:
    """When each load is whole, where one thread takes a second for a job and always the one that is due."""
    pacing = Pace()
    due = [pacing.due(start, round(jobs * pacing.rate), NEVER) for start, jobs in loads]
    left, ended, now = [jobs for _, jobs in loads], [0.0] * len(loads), 0.0
    while any(left):
        ready = [i for i, (start, _) in enumerate(loads) if left[i] and start <= now]
        if not ready:
            now = min(start for i, (start, _) in enumerate(loads) if left[i])
            continue
        first = min(ready, key=lambda i: (due[i], i))
        left[first] -= 1
        now += 1
        ended[first] = now
    return ended


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(1, 40))
def test_equal_loads_come_in_their_order(starts: list[float], jobs: int) -> None:
    starts.sort()
    ended = serve([(start, jobs) for start in starts])
    assert ended == sorted(ended)


@given(LOADS)
def test_a_load_waits_for_none_that_came_after_it_would_have_ended_alone(
    loads: list[tuple[float, int]],
) -> None:
    for (start, jobs), ended in zip(loads, serve(loads), strict=True):
        before = sum(n for other, n in loads if other <= start + jobs)
        # One job that is under way is not interrupted.
        assert ended <= start + before + 1


@given(st.integers(10, 1000), st.floats(0.1, 5))
def test_a_short_load_does_not_wait_for_a_long_one(jobs: int, later: float) -> None:
    _, ended = serve([(0.0, jobs), (later, 1)])
    assert ended <= later + 2


def test_a_deadline_is_the_latest_that_a_load_is_due() -> None:
    assert Pace().due(5.0, round(FIRST_RATE * 100), deadline=15.0) == 15.0
    assert Pace().due(5.0, round(FIRST_RATE), deadline=15.0) == pytest.approx(6.0)


@given(st.floats(1e6, 1e11))
def test_the_rate_is_learned_whatever_it_is(rate: float) -> None:
    pacing = Pace()
    for _ in range(400):
        pacing.took(1 << 20, (1 << 20) / rate)
    pacing.took(0, 100.0)
    assert pacing.rate == pytest.approx(rate, rel=0.01)


class TurnstileTier(DictTier):
    """Each job that reads waits for its turn."""

    def __init__(self, geometries: dict[int, GroupGeometry]) -> None:
        super().__init__(geometries)
        self.turns = threading.Semaphore(0)

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        self.turns.acquire()
        return super().read_many(wanted)


def test_reads_of_a_short_request_go_before_what_is_left_of_a_long_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "FIRST_RATE", 1e6)  # a long one takes a second
    geometries = {0: GroupGeometry(0, GroupKind.FULL, 16, 1, (4096,))}
    storage, clock = TurnstileTier(geometries), ManualClock()
    memory = MemoryTier(memoryview(bytearray(4096 * 1024)), geometries)
    runner = Runner(1, clock, 60)
    cache = TieredCache(
        memory,
        storage,
        geometries,
        runner,
        clock,
        read_deadline=60,
        store_queue=1 << 20,
        counters=m.Metrics(),
    )
    shapes, jobs = {}, 8
    for name, chunks in (("long", jobs * JOB_CHUNKS), ("late", jobs * JOB_CHUNKS), ("short", 2)):
        keys = [make_key(f"{name}{i}".encode().ljust(16), 0) for i in range(chunks)]
        storage.held.update({key: (bytes(4096), 0) for key in keys})
        shapes[name] = RequestShape([GroupKeys(geometries[0], keys)], chunks * 16 + 5, 0)
    for name, shape in shapes.items():
        clock.advance(0.1)
        while not runner.depth(Priority.READ) or memory.entry(shape.groups[0].keys[-1]) is None:
            cache.loads.poll(name, shape)
            if runner.depth(Priority.SURVEY) and runner.depth(Priority.READ):
                storage.turns.release()  # the only thread, so that it gets to the survey
                while runner.depth(Priority.SURVEY):
                    time.sleep(0.001)
    for _ in range(2 * jobs + 1):
        storage.turns.release()
    while runner.busy:
        runner.poll()
    order = [key[:4] for key, _ in storage.reads]
    # Two jobs of the long one let the surveys of the others pass.
    assert order.index(b"shor") <= 3 * JOB_CHUNKS
    assert order.index(b"late") > max(i for i, key in enumerate(order) if key == b"long")
    runner.close(5)


class SlowTier(DictTier):
    """Writes take as long as they are told."""

    def __init__(self, geometries: dict[int, GroupGeometry], clock: ManualClock) -> None:
        super().__init__(geometries)
        self.clock = clock
        self.seconds = 0.0

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        self.clock.advance(self.seconds)
        return super().write_many(given)


def test_what_may_wait_to_be_written_follows_what_storage_takes() -> None:
    size = 1 << 20
    geometries = {0: GroupGeometry(0, GroupKind.FULL, 16, 1, (size,))}
    clock, counters = ManualClock(), m.Metrics()
    storage = SlowTier(geometries, clock)
    memory = MemoryTier(memoryview(bytearray(size * 64)), geometries)
    runner = Runner(1, clock, 1e9)
    most = 60 * size
    writes = WriteBehind(memory, most, counters, lambda *_: None, lambda _: size, clock)
    numbers = itertools.count()

    def store(count: int) -> int:
        """Chunks that are queued, of so many."""
        keys = [make_key(f"{next(numbers)}".encode().ljust(16), 0) for _ in range(count)]
        memory.reserve_all(keys, "device")
        memory.commit_all([(key, 0) for key in keys])
        writes.submit(keys, storage, runner)
        taken = sum(map(writes.active, keys))
        while runner.busy:
            runner.poll()
        return taken

    storage.seconds = 0.001
    for _ in range(50):
        store(4)
    assert writes.limit == most and store(60) == 60
    storage.seconds = 4.0  # 1 MiB a second
    for _ in range(100):
        store(4)
    assert writes.limit == LEAST_BYTES
    assert store(60) == LEAST_BYTES // size
    storage.seconds = 0.001
    for _ in range(100):
        store(16)
    assert store(60) == 60
    runner.close(1)
