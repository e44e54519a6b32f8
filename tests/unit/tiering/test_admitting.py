"""Which chunks reach storage: what the policy admits, now or later, and what requests allow."""

import hashlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.clock import ManualClock
from kvstrata.tiering.admitting import NOT_WORTH_IT, OPTED_OUT, Keep, read_keep
from kvstrata.tiering.cache import TieredCache
from kvstrata.tiering.planner import GroupKeys, RequestShape
from kvstrata.tiering.runner import Runner
from kvstrata.tiers.admission import Admission, Always, SecondSight
from kvstrata.tiers.memory import MemoryTier
from tests.unit.tiering.storage import DictTier

GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 1, (4096,)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 1, (4096,), window_tokens=16),
}


class Engine:
    """A cache over a storage in a dictionary, and requests that are computed and stored."""

    def __init__(self, admission: Admission) -> None:
        self.storage = DictTier(GEOMETRIES)
        self.counters = m.Metrics()
        clock = ManualClock()
        self.memory = MemoryTier(memoryview(bytearray(4096 * 256)), GEOMETRIES)
        self.runner = Runner(1, clock, 60)
        self.cache = TieredCache(
            self.memory,
            self.storage,
            GEOMETRIES,
            self.runner,
            clock,
            read_deadline=60,
            store_queue=1 << 20,
            counters=self.counters,
            admission=admission,
        )
        self.number = 0
        self.totals: dict[str, float] = {}

    def ask(self, prompt: str, chunks: int = 4, keep: Keep = Keep.EVERYWHERE) -> list[ChunkKey]:
        """One request whose chunks are stored as far as they are new; all its keys."""
        self.number += 1
        request = f"r{self.number}"
        keys = [hashlib.sha256(f"{prompt}{i}".encode()).digest() for i in range(chunks)]
        groups = [GroupKeys(g, [make_key(k, g.group) for k in keys]) for g in GEOMETRIES.values()]
        shape = RequestShape(groups, chunks * 16 + 1, 0)
        while not self.cache.loads.poll(request, shape):
            self.cache.tick()
            time.sleep(0.0005)
        loaded = self.cache.loads.boundary(request) or 0
        self.cache.used(request, shape, loaded, keep=keep)
        self.cache.loads.drop(request)
        every = [key for group in groups for key in group.keys]
        stored = [key for key, _ in self.cache.prepare_store(every, keep=keep)]
        self.cache.complete_store(stored, {}, frozenset())
        self.cache.ended(request)
        while self.cache.busy():
            self.cache.tick()
        return every

    def counted(self, reason: str) -> float:
        """Chunks that were not admitted for a reason."""
        for sample in self.counters.take():
            if sample.metric is m.NOT_ADMITTED:
                (label,) = sample.labels
                self.totals[label] = self.totals.get(label, 0) + sample.value
        return self.totals.get(reason, 0)

    def close(self) -> None:
        self.runner.close(5)


def test_everything_is_written_at_once_by_default() -> None:
    engine = Engine(Always())
    assert set(engine.ask("a")) <= engine.storage.held.keys()
    assert not engine.counted(NOT_WORTH_IT)
    engine.close()


def test_what_was_withheld_is_written_when_it_is_used_again() -> None:
    engine = Engine(SecondSight())
    keys = engine.ask("a")
    assert not engine.storage.held and engine.counted(NOT_WORTH_IT) == len(keys)
    assert all(map(engine.memory.readable, keys)), "memory has it all the same"
    assert set(engine.ask("a")) <= engine.storage.held.keys()
    engine.close()


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_second_sight_stores_what_was_asked_twice_and_nothing_else(prompts: list[str]) -> None:
    engine = Engine(SecondSight())
    keys = {prompt: set(engine.ask(prompt)) for prompt in prompts}
    expected = {key for p, found in keys.items() if prompts.count(p) > 1 for key in found}
    assert engine.storage.held.keys() == expected
    engine.close()


def test_who_wants_memory_alone_stays_out_of_storage_until_somebody_else_asks() -> None:
    engine = Engine(Always())
    keys = engine.ask("a", keep=Keep.MEMORY)
    assert not engine.storage.held and all(map(engine.memory.readable, keys))
    assert engine.counted(OPTED_OUT) == len(keys)
    engine.ask("a", keep=Keep.MEMORY)
    assert not engine.storage.held
    engine.ask("a")
    assert set(keys) <= engine.storage.held.keys()
    engine.close()


def test_who_wants_nothing_kept_leaves_nothing() -> None:
    engine = Engine(Always())
    keys = engine.ask("a", keep=Keep.NOWHERE)
    assert not engine.storage.held and not any(map(engine.memory.readable, keys))
    assert engine.counted(OPTED_OUT) == len(keys)
    engine.close()


@pytest.mark.parametrize(
    ("value", "keep"),
    [
        (None, Keep.EVERYWHERE),
        (True, Keep.EVERYWHERE),
        ("memory", Keep.MEMORY),
        (False, Keep.NOWHERE),
        ("disk", Keep.NOWHERE),
        (1, Keep.NOWHERE),
        ([], Keep.NOWHERE),
    ],
)
def test_what_is_not_understood_keeps_less_and_not_more(value: Any, keep: Keep) -> None:
    assert read_keep(value) is keep
