"""Whom `bench-manager` asks: our scheduler half and vLLM's own manager, called as vLLM's scheduler does."""

import gc
import shutil
import time
import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager
from vllm.v1.kv_offload.tiering.manager import (
    CPUPrimaryTierOffloadingManager,
    TieringOffloadingManager,
)

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.options import Options
from kvstrata.tiering.planner import GroupKeys, RequestShape
from kvstrata.tiers.arena import Arena
from kvstrata.vllm_plugin.manager import KVStrataManager

KEYS = 8192
"""Keys of one request, over all groups."""
BLOCK_TOKENS, CHUNK_BYTES = 16, 4096
REST = 0.002
"""Seconds between two steps, which an engine spends computing."""
PATIENCE = 120.0
STEP_END = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
MODELS: dict[str, tuple[tuple[GroupKind, int], ...]] = {
    "one group": ((GroupKind.FULL, 0),),
    "three groups": ((GroupKind.FULL, 0), (GroupKind.WINDOW, 1024), (GroupKind.WINDOW, 1024)),
}
"""Kind and window of each group."""


def geometries_of(model: str) -> tuple[GroupGeometry, ...]:
    """The groups of a model, chunks of one block of 4 KiB."""
    return tuple(
        GroupGeometry(group, kind, BLOCK_TOKENS, 1, (CHUNK_BYTES,), window_tokens=window)
        for group, (kind, window) in enumerate(MODELS[model])
    )


def clock(work: Callable[[], Any]) -> float:
    """Seconds that a call takes, seen by the scheduler's thread."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Prompt:
    """One request with `KEYS` chunks over all groups.

    Attributes:
        shape: as our connector describes it.
        keys: all of them, group by group.
        asked: those that vLLM's lookup asks for when everything is there.
        context: vLLM's; a new one for every request with this prompt.
    """

    def __init__(self, geometries: Sequence[GroupGeometry], seed: int) -> None:
        each = KEYS // len(geometries)
        random = np.random.default_rng(seed)
        hashes = [random.bytes(32) for _ in range(each)]
        groups = [GroupKeys(g, [make_key(h, g.group) for h in hashes]) for g in geometries]
        self.shape = RequestShape(groups, tokens=each * BLOCK_TOKENS + 1, computed=0)
        self.keys = [key for group in groups for key in group.keys]
        self.asked = [
            key
            for group in groups
            for key in (
                group.keys[-group.geometry.window_chunks(each * BLOCK_TOKENS) :]
                if group.geometry.windowed
                else group.keys
            )
        ]

    def context(self, request: str) -> ReqContext:
        """A request with this prompt."""
        context = ReqContext(req_id=request)
        for group in self.shape.groups:
            for index, key in enumerate(group.keys):
                context.set_offload_key_position(key, (index + 1) * BLOCK_TOKENS)
        return context


class Side(ABC):
    """A manager with its memory and its files.

    Attributes:
        manager: answers `prepare_store` and the like.
    """

    manager: Any

    def store(self, prompt: Prompt, context: ReqContext) -> tuple[float, float]:
        """Store a prompt's chunks; seconds of `prepare_store` and of `complete_store`."""
        begun = time.perf_counter()
        out = self.manager.prepare_store(prompt.keys, context)
        prepared = time.perf_counter() - begun
        assert out is not None and len(out.keys_to_store) == KEYS // len(prompt.shape.groups) * len(
            prompt.shape.groups
        )
        keys = set(out.keys_to_store)  # vLLM hands over a set
        return prepared, clock(lambda: self.manager.complete_store(keys, context))

    def load(self, prompt: Prompt, context: ReqContext) -> tuple[float, float]:
        """Load what the prompt needs; seconds of `prepare_load` and of `complete_load`."""
        prepared = clock(lambda: self.manager.prepare_load(prompt.asked, context))
        keys = set(prompt.asked)
        return prepared, clock(lambda: self.manager.complete_load(keys, context))

    def holds(self, prompt: Prompt, context: ReqContext) -> bool:
        """Whether a request that was answered was told to have all that it asked for."""
        lookup = self.manager.lookup
        return all(lookup(key, context) is LookupResult.HIT for key in prompt.asked)

    def tick(self) -> None:
        """The end of a step."""
        self.manager.on_schedule_end(STEP_END)

    def settle(self) -> None:
        """Steps until no file is read or written."""
        begun = time.perf_counter()
        while self.manager.has_pending_work():
            self.tick()
            time.sleep(REST)
            assert time.perf_counter() - begun < PATIENCE
        self.tick()

    def begin(self, context: ReqContext) -> None:
        """A request comes."""
        self.manager.on_new_request(context)

    def finish(self, context: ReqContext) -> None:
        """A request has ended."""
        self.manager.on_request_finished(context)

    @abstractmethod
    def look(self, prompt: Prompt, context: ReqContext, keys: Sequence[ChunkKey]) -> bool:
        """One step's questions about a request; whether they were answered for good."""

    @abstractmethod
    def forget(self) -> None:
        """Empty the memory; files stay."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


class Ours(Side):
    """See `Side`.

    Args:
        geometries: of the model.
        chunks: that fit the memory.
        directory: of the files; None for memory only.
    """

    made = 0

    def __init__(
        self, geometries: Sequence[GroupGeometry], chunks: int, directory: Path | None
    ) -> None:
        Ours.made += 1
        memory = chunks * CHUNK_BYTES
        settings = {"path": str(directory)} if directory is not None else {}
        options = Options.parse({"memory": f"{memory}B", "store_queue": "1GiB", **settings})
        arena = Arena.attach(options.shm_dir, f"bench manager {Ours.made}", memory, 1)
        arena.seal()
        self.manager: KVStrataManager = KVStrataManager(options)
        self.manager.start(arena, geometries, Namespace("bench", {}))

    def look(self, prompt: Prompt, context: ReqContext, keys: Sequence[ChunkKey]) -> bool:
        """See `Side.look`."""
        if not self.manager.poll_load(context.req_id, prompt.shape):
            return False
        lookup = self.manager.lookup
        for key in keys:
            lookup(key, context)
        return True

    def store(self, prompt: Prompt, context: ReqContext) -> tuple[float, float]:
        """See `Side.store`; eviction knows a request before its chunks come."""
        self.manager.cache.used(context.req_id, prompt.shape, 0)
        return super().store(prompt, context)

    def use(self, prompt: Prompt, context: ReqContext) -> float:
        """The request is scheduled: seconds until eviction knows of it and its load is let go."""
        begun = time.perf_counter()
        self.manager.cache.used(context.req_id, prompt.shape, prompt.shape.tokens - 1)
        self.manager.scheduled(context.req_id, 0, prompt.shape.tokens - 1, prompt.shape.tokens)
        return time.perf_counter() - begun

    def forget(self) -> None:
        """See `Side.forget`."""
        assert not self.manager.cache.memory.clear()
        self.tick()

    def close(self) -> None:
        """See `Side.close`."""
        self.manager.shutdown()


class Theirs(Side):
    """See `Side`; vLLM's own manager with its LRU policy and its file tier.

    Args:
        geometries: of the model.
        chunks: that fit the memory.
        directory: of the files; None for memory only.
    """

    made = 0

    def __init__(
        self, geometries: Sequence[GroupGeometry], chunks: int, directory: Path | None
    ) -> None:
        Theirs.made += 1
        region = SharedOffloadRegion(
            f"bench-manager-{Theirs.made}", chunks, None, CHUNK_BYTES, CHUNK_BYTES
        )
        primary = CPUPrimaryTierOffloadingManager(chunks, region)
        tiers: list[Any] = []
        if directory is not None:
            view = primary.get_kv_memoryview()
            tiers.append(FileSystemTierManager(_spec(geometries), view, "fs", str(directory)))
        self.manager: TieringOffloadingManager = TieringOffloadingManager(primary, tiers)

    def look(self, prompt: Prompt, context: ReqContext, keys: Sequence[ChunkKey]) -> bool:
        """See `Side.look`."""
        lookup = self.manager.lookup
        waiting = False
        for key in keys:
            result = lookup(key, context)
            if result is LookupResult.HIT_PENDING or result is LookupResult.RETRY:
                waiting = True
        return not waiting

    def forget(self) -> None:
        """See `Side.forget`."""
        self.manager.reset_cache()

    def close(self) -> None:
        """See `Side.close`."""
        self.manager.shutdown()


def _spec(geometries: Sequence[GroupGeometry]) -> Any:
    """What vLLM's file tier asks of its spec, to name its files."""
    parallel = SimpleNamespace(
        tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, rank=0, is_parallelism_agnostic=True
    )
    groups = [
        SimpleNamespace(tokens_per_block=g.tokens_per_block, layer_names=(f"layer.{g.group}",))
        for g in geometries
    ]
    config = SimpleNamespace(
        groups=groups,
        parallel=parallel,
        canonical_layout=False,
        replicated_layout=False,
        model=SimpleNamespace(name="bench", dtype="float16"),
        cache=SimpleNamespace(tokens_per_hash=BLOCK_TOKENS),
    )
    return SimpleNamespace(
        config=config,
        blocks_per_chunk=1,
        kv_events_config=SimpleNamespace(enable_kv_cache_events=False),
        kv_bytes_per_chunk=CHUNK_BYTES,
    )


SIDES: dict[str, Callable[[Sequence[GroupGeometry], int, Path | None], Side]] = {
    "ours": Ours,
    "vllm": Theirs,
}


def bytes_per_chunk(name: str, model: str, requests: int = 4) -> float:
    """Bytes of bookkeeping for one chunk in memory, its key included, while no request is under way.

    Args:
        name: of the side.
        model: of `MODELS`.
        requests: prompts that are stored, `KEYS` chunks each.
    """
    geometries = geometries_of(model)
    side = SIDES[name](geometries, requests * KEYS, None)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    stored = 0
    for number in range(requests):
        prompt = Prompt(geometries, number)
        context = prompt.context(f"r{number}")
        side.begin(context)
        side.store(prompt, context)
        stored += len(prompt.keys)
        side.finish(context)
        list(side.manager.take_events())
        side.tick()
    del prompt, context
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    side.close()
    return used / stored


def remove(directory: Path) -> None:
    """Remove files that sides have left."""
    shutil.rmtree(directory, ignore_errors=True)
