"""The spec: options reach the parts that use them, on both sides, as vLLM makes them."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)

from kvstrata.errors import ConfigError
from kvstrata.options import Options
from kvstrata.tiers.arena import Arena
from kvstrata.vllm_plugin import spec as module
from kvstrata.vllm_plugin.copies import GroupSlots
from kvstrata.vllm_plugin.spec import KVStrataSpec, default_memory
from kvstrata.vllm_plugin.worker import ArenaSlots

PAGE = 64
MIB = 1 << 20


def caches(blocks: int = 12) -> CanonicalKVCaches:
    tensor = torch.arange(blocks * PAGE, dtype=torch.int32).to(torch.int8).view(blocks, PAGE)
    return CanonicalKVCaches(
        [CanonicalKVCacheTensor(tensor, PAGE)], [[CanonicalKVCacheRef(0, PAGE)]]
    )


def make_spec(tmp_path: Path, **options: Any) -> KVStrataSpec:
    config = SimpleNamespace(
        groups=(SimpleNamespace(tokens_per_block=16),),
        enable_kv_cache_events=False,
        extra_config={"shm_dir": str(tmp_path), **options},
        engine_id="one engine",
        cache=SimpleNamespace(tokens_per_hash=16, blocks_per_chunk=2),
        parallel=SimpleNamespace(rank=0, world_size=1),
    )
    return KVStrataSpec(config)


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 << 30))
    monkeypatch.setattr(module, "MIN_DEFAULT_MEMORY", 64 * MIB)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"path": "/mnt/kv"}, 64 * MIB),
        ({"path": "/mnt/kv", "memory": "3MiB"}, 3 * MIB),
        ({"memory": "3MiB"}, 3 * MIB),
    ],
    ids=["path alone", "both", "memory alone"],
)
@pytest.mark.usefixtures("plenty")
def test_options_reach_the_parts(tmp_path: Path, options: dict[str, Any], size: int) -> None:
    spec = make_spec(tmp_path, **options)
    spec.layout = {"some": "layout"}
    worker = spec.get_worker(caches())
    scheduler = make_spec(tmp_path, **options)
    # The scheduler's side takes what the worker made, whatever its own options would choose.
    arena = Arena.attach(str(tmp_path), "one engine", scheduler.options.memory or 0, 1)
    assert arena.data_bytes == size
    assert arena.declarations(1) == [{"block_bytes": [PAGE], "layout": {"some": "layout"}}]
    assert scheduler.get_manager().options.path == options.get("path")
    arena.seal()
    arena.close()
    worker.shutdown()


def test_an_unknown_option_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory"):
        make_spec(tmp_path, memori="1GiB")


def room(monkeypatch: pytest.MonkeyPatch, available: int, free: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))


@pytest.mark.parametrize(
    ("device", "ranks", "available", "free", "expected"),
    [
        (10 * MIB, 1, 64 << 30, 64 << 30, 1 << 30),  # never less than 1 GiB where there is room
        (3 << 30, 2, 64 << 30, 64 << 30, 6 << 30),  # as the devices together
        (3 << 30, 1, 8 << 30, 64 << 30, 2 << 30),  # a quarter of what is available
        (3 << 30, 1, 64 << 30, 1 << 30, 512 * MIB),  # half of the memory filesystem
        (3 << 30, 1, 64 << 30, 201 * MIB, 100 * MIB),  # whole huge pages
    ],
)
def test_default_memory(monkeypatch, device, ranks, available, free, expected) -> None:
    room(monkeypatch, available, free)
    assert default_memory(device, ranks, Options.parse({"path": "/mnt/kv"})) == expected


def test_too_little_memory_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 64 << 30, 100 * MIB)
    with pytest.raises(ConfigError, match=r"50 MiB.*/dev/shm.*'memory'"):
        default_memory(1 << 30, 1, Options.parse({"path": "/mnt/kv"}))


def test_a_worker_takes_loads_as_every_release_submits_them(tmp_path: Path) -> None:
    kv = caches()
    tensor = kv.tensors[0].tensor
    original = tensor.clone()
    worker = make_spec(tmp_path, memory="1MiB").get_worker(kv)
    arena_side = ArenaSlots([GroupSlots(np.array([0, 4096]), 2, PAGE, (0,))])
    stored = GPULoadStoreSpec([7, 3, 5], group_sizes=[3], block_indices=[1])
    assert worker.submit_store(1, src_spec=stored, dst_spec=arena_side)
    worker.wait({1})
    for job, more in ((2, {}), (3, {"expedited": True}), (4, {"expedited": False})):
        target = GPULoadStoreSpec([1, 2, 9], group_sizes=[3], block_indices=[1])
        tensor[[1, 2, 9]] = 0
        assert worker.submit_load(job, src_spec=arena_side, dst_spec=target, **more)
        worker.wait({job})
        assert torch.equal(tensor[[1, 2, 9]], original[[7, 3, 5]])
    done = worker.get_finished()
    assert sorted(result.job_id for result in done) == [1, 2, 3, 4]
    assert all(result.success for result in done)
    worker.shutdown()
