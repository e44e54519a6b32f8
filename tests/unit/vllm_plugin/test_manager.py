"""The manager over a real arena and real files, called as vLLM's scheduler calls it."""

import copy
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import LookupResult, Medium, ReqContext

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import group_of, make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.record import decode
from kvstrata.clock import ManualClock
from kvstrata.options import Options
from kvstrata.tiering.planner import GroupKeys, RequestShape
from kvstrata.tiers.arena import Arena
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.vllm_plugin import manager as module
from kvstrata.vllm_plugin.manager import KVStrataManager
from kvstrata.vllm_plugin.stats import definitions, tell_endpoints, to_vllm

WINDOW = GroupGeometry(0, GroupKind.WINDOW, 16, 8, (512, 512), window_tokens=64)
FULL = GroupGeometry(1, GroupKind.FULL, 16, 8, (256, 256))
GEOMETRIES = (WINDOW, FULL)
BY_GROUP = {g.group: g for g in GEOMETRIES}
CHUNK_TOKENS = 128


def payload(key: bytes) -> bytes:
    return random.Random(key).randbytes(BY_GROUP[group_of(key)].payload_bytes)


def key_of(name: str, chunk: int, group: int) -> bytes:
    return make_key(f"{name}{chunk}".encode().ljust(32), group)


def keys_of(name: str, chunks: int) -> list[bytes]:
    return [key_of(name, c, g.group) for g in GEOMETRIES for c in range(chunks)]


def shape_of(name: str, chunks: int) -> RequestShape:
    groups = [GroupKeys(g, [key_of(name, c, g.group) for c in range(chunks)]) for g in GEOMETRIES]
    return RequestShape(groups, tokens=chunks * CHUNK_TOKENS + 5, computed=0)


class Engine:
    """One engine's scheduler half, with the device's part played by `store`."""

    made = 0

    def __init__(self, shm: Path, clock: Any = None, **options: Any) -> None:
        Engine.made += 1
        self.options = Options.parse({"memory": "1MiB", "shm_dir": str(shm), **options})
        assert self.options.memory is not None
        self.arena = Arena.attach(str(shm), f"engine {Engine.made}", self.options.memory, 1)
        self.manager = KVStrataManager(self.options, clock)
        self.namespace = Namespace("tiny", {"weights": "abc"})
        self.manager.start(self.arena, GEOMETRIES, self.namespace)
        self.totals: dict[tuple[str, tuple[str, ...]], float] = {}

    def store(
        self, keys: Sequence[bytes], sizes: Sequence[int] = (), indices: Sequence[int] = (0, 0)
    ) -> list[bytes]:
        """Store chunks; `sizes` and `indices` are what vLLM says of the device's blocks."""
        context = ReqContext(req_id="store")
        out = self.manager.prepare_store(keys=keys, req_context=context)
        assert out is not None
        accepted = list(out.keys_to_store)
        whole = [8 * sum(group_of(k) == g.group for k in accepted) for g in GEOMETRIES]
        for key in accepted:
            self.manager.cache.memory.view(key)[:] = payload(key)
        self.manager.check_store(sizes or whole, indices, out.store_spec, set(accepted))
        self.last_spec = out.store_spec
        self.manager.complete_store(set(accepted), context)
        return accepted

    def step(self) -> None:
        self.manager.on_schedule_end(None)

    def idle(self) -> None:
        wait_for(lambda: self.step() or not self.manager.has_pending_work())

    def lookup(self, name: str, chunks: int, request: str = "r") -> list[LookupResult]:
        shape = shape_of(name, chunks)

        def ready() -> bool:
            self.step()
            return self.manager.poll_load(request, shape)

        wait_for(ready)
        context = ReqContext(req_id=request)
        return [self.manager.lookup(key=k, req_context=context) for k in keys_of(name, chunks)]

    def loaded(self, keys: Sequence[bytes], request: str = "r") -> dict[bytes, bytes]:
        """What the device would read for these chunks, from the offsets that it is given."""
        context = ReqContext(req_id=request)
        spec = self.manager.prepare_load(keys=keys, req_context=context)
        offsets = {g.group: list(s.offsets) for g, s in zip(GEOMETRIES, spec.groups, strict=True)}
        found = {}
        for key in keys:
            start = offsets[group_of(key)].pop(0)
            found[key] = bytes(self.arena.data[start : start + len(payload(key))])
        assert not any(offsets.values())
        self.manager.complete_load(keys=set(keys), req_context=context)
        return found

    def count(self, metric: m.Metric, *labels: str) -> float:
        stats = self.manager.get_stats()
        if stats is not None:
            for name, values in stats.data["data"].items():
                for at, value in values.items():
                    if isinstance(value, int | float):
                        self.totals[name, at] = self.totals.get((name, at), 0) + value
        return self.totals.get((f"vllm:{metric.name}", labels), 0)


def wait_for(condition: Any) -> None:
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came true")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    shm = tmp_path / "shm"
    shm.mkdir()
    engines: list[Engine] = []

    def begin(path: Path | None = tmp_path / "kv", clock: Any = None, **options: Any) -> Engine:
        if path is not None:
            options["path"] = str(path)
        engines.append(Engine(shm, clock, **options))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.manager.shutdown()
        engine.arena.close()
    assert list(shm.iterdir()) == []


def files(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*.kv")}


HIT, MISS = LookupResult.HIT, LookupResult.MISS


def test_stored_chunks_are_hits_and_load_from_where_they_lie(start) -> None:
    engine = start()
    keys = keys_of("a", 3)
    assert engine.store(keys) == keys
    assert engine.store(keys) == []  # known already
    # The window needs only the last chunk; whatever else is in memory may be a hit as well.
    assert engine.lookup("a", 3) == [HIT] * 6
    wanted = [key_of("a", 2, 0), *keys[3:]]
    assert engine.loaded(wanted) == {key: payload(key) for key in wanted}


def test_slots_name_every_rank_and_group(start) -> None:
    engine = start()
    engine.store([key_of("a", 0, 1)])
    window, full = engine.last_spec.groups
    assert len(window.offsets) == 0 and len(full.offsets) == 1
    assert (full.rank_offsets, full.block_bytes, full.blocks_per_chunk) == ((0, 256), 512, 8)
    assert (window.rank_offsets, window.block_bytes) == ((0, 512), 1024)
    assert full.offsets.dtype == np.int64


def test_the_next_engine_loads_from_files(start, tmp_path: Path) -> None:
    first = start()
    first.store(keys_of("a", 3))
    first.idle()
    assert len(files(tmp_path / "kv")) == 6
    second = start()
    results = second.lookup("a", 3)
    assert results[2:] == [HIT] * 4 and results[:2] == [MISS] * 2  # only the window's end was read
    full = [key_of("a", c, 1) for c in range(3)]
    assert second.loaded(full) == {key: payload(key) for key in full}
    tail = second.loaded([key_of("a", 2, 0)])[key_of("a", 2, 0)]
    reach = 4 * WINDOW.block_bytes  # 63 tokens before the boundary begin in block 4
    assert tail[reach:] == payload(key_of("a", 2, 0))[reach:]
    assert second.count(m.BYTES, "filesystem", "read") == 3 * FULL.payload_bytes + reach


def test_events_name_the_medium(start) -> None:
    engine = start()
    engine.store(keys_of("a", 1))
    engine.idle()
    events = list(engine.manager.take_events())
    assert {event.medium for event in events} == {Medium.CPU, Medium.STORAGE}
    for medium in (Medium.CPU, Medium.STORAGE):
        named = [key for e in events if e.medium is medium and not e.removed for key in e.keys]
        assert sorted(named) == sorted(keys_of("a", 1))
    assert list(engine.manager.take_events()) == []


def test_a_torn_group_is_withheld_and_the_other_is_stored(start, tmp_path: Path) -> None:
    engine = start()
    torn, good = key_of("a", 1, 0), key_of("a", 1, 1)
    assert engine.store([torn, good], sizes=[6, 8], indices=[8, 8]) == [torn, good]
    assert len(engine.last_spec.groups[0].offsets) == 0  # the worker copies nothing of it
    assert len(engine.last_spec.groups[1].offsets) == 1
    engine.idle()
    assert engine.manager.cache.memory.entry(torn) is None
    assert engine.manager.cache.memory.readable(good)
    assert {path.name for path in files(tmp_path / "kv")} == {Path(relative_path(good)).name}
    assert engine.count(m.WRITES_DROPPED, "torn") == 1
    engine.store([torn])  # a later, whole copy is welcome
    assert engine.manager.cache.memory.readable(torn)


def test_a_start_inside_a_chunk_is_stored_from_there(start, tmp_path: Path) -> None:
    engine = start()
    late, whole = key_of("a", 1, 0), key_of("a", 1, 1)
    engine.store([late, whole], sizes=[7, 8], indices=[9, 8])
    engine.idle()
    entry = engine.manager.cache.memory.entry(late)
    assert entry is not None and entry.first_block == 1
    root = tmp_path / "kv" / engine.namespace.directory_name
    header = decode((root / relative_path(late)).read_bytes())
    assert (header.first_block, header.blocks) == (1, 8)
    assert decode((root / relative_path(whole)).read_bytes()).first_block == 0
    assert engine.count(m.WRITES_DROPPED, "torn") == 0


@pytest.mark.parametrize(("sizes", "indices"), [([15, 0], [9, 0]), ([16, 0], [9, 0])])
def test_several_chunks_of_which_the_first_is_not_whole(start, sizes, indices) -> None:
    engine = start()
    keys = [key_of("a", 1, 0), key_of("a", 2, 0)]
    engine.store(keys, sizes=sizes, indices=indices)
    found = [engine.manager.cache.memory.entry(key) for key in keys]
    if sizes[0] == 15:
        assert [entry.first_block for entry in found if entry] == [1, 0]
    else:
        assert found == [None, None]  # one block too many: nobody knows which


def test_a_failed_store_is_not_readable(start, tmp_path: Path) -> None:
    engine = start()
    key = key_of("a", 0, 1)
    context = ReqContext(req_id="s")
    engine.manager.prepare_store([key], context)
    engine.manager.complete_store({key}, context, success=False)
    engine.idle()
    assert engine.manager.cache.memory.entry(key) is None
    assert files(tmp_path / "kv") == set()


def test_reset_turns_to_a_fresh_namespace(start, tmp_path: Path) -> None:
    engine = start()
    engine.store(keys_of("a", 2))
    engine.idle()
    before = files(tmp_path / "kv")
    under_way = engine.manager.prepare_store([key_of("b", 0, 1)], ReqContext(req_id="s"))
    assert under_way is not None
    engine.manager.reset_cache()
    assert engine.lookup("a", 2) == [MISS] * 4
    engine.manager.complete_store(set(under_way.keys_to_store), ReqContext(req_id="s"))  # late
    assert not engine.manager.cache.memory.held(key_of("b", 0, 1))
    assert len(list((tmp_path / "kv").iterdir())) == 2
    engine.idle()
    assert len(engine.store(keys_of("a", 2))) == 4
    engine.idle()
    after = files(tmp_path / "kv")
    assert before < after and len(after) == 2 * len(before)
    assert engine.lookup("a", 2)[1:] == [HIT] * 3
    assert start().lookup("a", 2)[1:] == [HIT] * 3  # other engines keep what was there
    engine.manager.reset_cache()
    assert engine.lookup("a", 2) == [MISS] * 4  # and the second reset is as good as the first


def test_engines_that_were_reset_do_not_meet(start) -> None:
    """Each may have got other weights, and nothing says which."""
    first, second = start(), start()
    first.manager.reset_cache()
    second.manager.reset_cache()
    first.store(keys_of("a", 2))
    first.idle()
    assert second.lookup("a", 2) == [MISS] * 4


def test_tokens_are_counted_by_where_they_came_from(start) -> None:
    first = start()
    first.store(keys_of("a", 2))
    first.idle()
    second = start()
    second.store(keys_of("b", 2))
    second.lookup("a", 2, "cold")
    second.manager.scheduled("cold", 0, 256, 261)
    second.lookup("b", 2, "warm")
    second.manager.scheduled("warm", 32, 224, 261)
    found = {
        tier: second.count(m.TOKENS, tier)
        for tier in ("device", "memory", "filesystem", "computed")
    }
    assert found == {"device": 32, "memory": 224, "filesystem": 256, "computed": 10}


def test_memory_alone_has_no_files_and_no_threads(start, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    engine = start(path=None)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)  # one takes the arena's pages, and ends
        assert not thread.is_alive(), thread.name
    engine.store(keys_of("a", 2))
    assert not engine.manager.has_pending_work()
    assert engine.lookup("a", 2) == [HIT] * 4
    engine.manager.reset_cache()
    assert engine.lookup("a", 2) == [MISS] * 4
    assert not (tmp_path / "kv").exists()


def test_a_read_that_hangs_is_a_miss_after_the_deadline(start, monkeypatch) -> None:
    first = start()
    first.store(keys_of("a", 2))
    first.idle()
    gate = threading.Event()
    read = FilesystemTier.read_many
    monkeypatch.setattr(FilesystemTier, "read_many", lambda *a: (gate.wait(), read(*a))[1])
    clock = ManualClock()
    second = start(clock=clock, read_deadline=5)
    shape = shape_of("a", 2)
    for _ in range(50):
        assert not second.manager.poll_load("r", shape)
        second.step()
        second.manager.wait()
    clock.advance(5.1)
    wait_for(lambda: second.step() or second.manager.poll_load("r", shape))
    context = ReqContext(req_id="r")
    assert {second.manager.lookup(k, context) for k in keys_of("a", 2)} == {MISS}
    assert second.count(m.READ_DEADLINES) == 1
    gate.set()
    second.idle()


def test_shutdown_writes_what_is_queued(start, tmp_path: Path, monkeypatch) -> None:
    gate = threading.Event()
    write = FilesystemTier.write_many
    monkeypatch.setattr(FilesystemTier, "write_many", lambda *a: (gate.wait(), write(*a))[1])
    engine = start()
    engine.store(keys_of("a", 4))
    assert files(tmp_path / "kv") == set()
    threading.Timer(0.05, gate.set).start()
    engine.manager.shutdown()
    assert len(files(tmp_path / "kv")) == 8


def test_shutdown_leaves_a_hung_write_behind(start, tmp_path: Path, monkeypatch, caplog) -> None:
    gate = threading.Event()
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(FilesystemTier, "write_many", lambda *a: gate.wait())
    engine = start()
    engine.store(keys_of("a", 2))
    stopped = threading.Thread(target=engine.manager.shutdown, daemon=True)
    stopped.start()
    stopped.join(30)
    assert not stopped.is_alive()
    gate.set()
    assert not engine.arena.path.exists()


def test_definitions_are_those_of_our_metrics() -> None:
    found = definitions()
    assert set(found) == {f"vllm:{metric.name}" for metric in m.ALL}
    kinds = {m.Kind.COUNTER: "Counter", m.Kind.GAUGE: "Gauge", m.Kind.HISTOGRAM: "Histogram"}
    for metric in m.ALL:
        definition = found[f"vllm:{metric.name}"]
        assert kinds[metric.kind] in type(definition).__name__
        assert tuple(definition.labelnames) == metric.labels
        assert definition.documentation == metric.help
        if metric.kind is m.Kind.HISTOGRAM:
            assert definition.buckets == metric.buckets


@pytest.mark.parametrize("metric", m.ALL, ids=lambda metric: metric.name)
def test_every_sample_reaches_vllm(metric: m.Metric) -> None:
    counters = m.Metrics()
    labels = tuple(f"some {label}" for label in metric.labels)
    record = {
        m.Kind.COUNTER: lambda: counters.count(metric, 2.5, labels),
        m.Kind.GAUGE: lambda: counters.level(metric, 2.5, labels),
        m.Kind.HISTOGRAM: lambda: counters.observe(metric, 2.5, labels),
    }[metric.kind]
    record()
    record()
    stats = to_vllm(counters.take())
    assert isinstance(stats, OffloadingConnectorStats) and not stats.is_empty()
    # As vLLM does it: through another process, and joined with what was there.
    joined = OffloadingConnectorStats()
    for _ in range(2):
        joined = joined.aggregate(OffloadingConnectorStats(data=copy.deepcopy(stats.data)))
    value = joined.data["data"][f"vllm:{metric.name}"][labels]
    expected = {m.Kind.COUNTER: 10.0, m.Kind.GAUGE: 2.5, m.Kind.HISTOGRAM: [2.5] * 4}
    assert value == expected[metric.kind]
    assert to_vllm(counters.take()) is None


def test_everything_that_an_engine_reports_is_defined(start) -> None:
    engine = start()
    engine.store(keys_of("a", 2))
    engine.idle()
    engine.lookup("a", 2)
    stats = engine.manager.get_stats()
    assert stats is not None
    assert set(stats.data["data"]) <= set(definitions())
    for name, values in stats.data["data"].items():
        for labels in values:
            assert len(labels) == len(definitions()[name].labelnames)


def test_endpoints_are_told_before_the_first_step() -> None:
    told: dict[int, Any] = {}
    metrics = SimpleNamespace(observe=lambda data, engine: told.update({engine: data}))
    events = SimpleNamespace(
        enable_kv_cache_events=True,
        publisher="zmq",
        endpoint="tcp://*:5557",
        replay_endpoint="tcp://*:5657",
    )
    tell_endpoints(metrics, events, [0, 1])
    assert [list(told[rank]["data"]["vllm:kvstrata_endpoints"]) for rank in (0, 1)] == [
        [("tcp://*:5557", "tcp://*:5657")],
        [("tcp://*:5558", "tcp://*:5658")],
    ]
    told.clear()
    for nothing in (None, SimpleNamespace(enable_kv_cache_events=False)):
        tell_endpoints(metrics, nothing, [0])
    assert not told
