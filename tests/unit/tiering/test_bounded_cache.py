"""A cache whose storage is bounded: what goes is told, what does not fit is dropped, and serving goes on."""

import contextlib
import random
import time
from pathlib import Path

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.options import Options
from kvstrata.tiering.cache import TieredCache
from kvstrata.tiering.runner import Runner
from kvstrata.tiers.eviction_choice import POLICIES
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import Tier
from kvstrata.vllm_plugin.storage import open_storage

BLOCK = 16_384
GEOMETRIES = {0: GroupGeometry(0, GroupKind.FULL, 16, 1, (BLOCK,))}
BOUND = 64 * BLOCK
PATIENCE = 60.0


def bounded(root: Path, counters: m.Metrics, **options: object) -> Tier:
    given = Options.parse({"path": str(root), "capacity": BOUND, "segment": 0, **options})
    tier = open_storage(given, Namespace("m", {"a": 1}), GEOMETRIES, MonotonicClock(), counters)
    assert tier is not None
    return tier


def held(root: Path) -> int:
    """Bytes of all chunks; what goes meanwhile does not count."""
    total = 0
    for path in root.rglob("*.kv"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def cache_over(storage: Tier, counters: m.Metrics) -> TieredCache:
    clock = MonotonicClock()
    memory = MemoryTier(memoryview(bytearray(32 * BLOCK)), GEOMETRIES, POLICIES["lru"])
    return TieredCache(
        memory,
        storage,
        GEOMETRIES,
        Runner(2, clock, 10.0),
        clock,
        read_deadline=10.0,
        store_queue=16 * BLOCK,
        counters=counters,
        announced=lambda key: True,
    )


def test_a_cache_that_is_written_into_for_long_stays_within_its_bound(tmp_path: Path) -> None:
    counters = m.Metrics()
    storage = bounded(tmp_path, counters)
    cache = cache_over(storage, counters)
    told: set[bytes] = set()
    removed = 0
    chance = random.Random(1)
    end = time.monotonic() + PATIENCE
    while removed < 100 and time.monotonic() < end:
        keys = [make_key(chance.randbytes(32), 0) for _ in range(4)]
        accepted = [key for key, _ in cache.prepare_store(keys)]
        cache.complete_store(accepted, {}, frozenset())
        time.sleep(0.01)
        cache.tick()
        for event in cache.take_events():
            if event.tier != "filesystem":
                continue
            if event.removed:
                removed += len(event.keys)
                told.difference_update(event.keys)
            else:
                told.update(event.keys)
        assert held(tmp_path) <= BOUND
    assert removed >= 100
    while cache.busy() and time.monotonic() < end:
        cache.tick()
        cache.take_events()
    cache.close()
    cache.tick()
    for event in cache.take_events():
        told.difference_update(event.keys)
    # What followers believe is there: all that is, and nothing else.
    assert len(told) > BOUND // BLOCK // 2
    assert storage.probe(sorted(told)).count(False) <= 4


def test_two_engines_keep_one_bound(tmp_path: Path) -> None:
    tiers = [bounded(tmp_path, m.Metrics()) for _ in range(2)]
    payload = memoryview(bytearray(BLOCK))
    chance = random.Random(2)
    end = time.monotonic() + PATIENCE
    stored = 0
    while stored < 300 and time.monotonic() < end:
        for tier in tiers:
            outcome = tier.write(make_key(chance.randbytes(32), 0), payload)
            stored += type(outcome).__name__ == "Stored"
        assert held(tmp_path) <= BOUND
        time.sleep(0.002)
    assert stored >= 300
    for tier in tiers:
        tier.close()


def test_without_a_bound_nobody_looks(tmp_path: Path) -> None:
    storage = bounded(tmp_path, m.Metrics(), capacity=None)
    storage.write(make_key(bytes(32), 0), memoryview(bytearray(BLOCK)))
    assert not (tmp_path / "usage.json").exists()
    storage.close()
