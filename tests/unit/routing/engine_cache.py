"""vLLM's own KV cache manager, driven as its scheduler does, and what its events tell us of it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import msgspec
import torch
from vllm.distributed.kv_events import KVEventBatch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import (
    get_request_block_hasher,
    init_none_hash,
    make_block_hash_with_group_id,
)
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.routing.reuse import find_reuse
from kvstrata.routing.shape import Holdings, ModelShape
from kvstrata.wire.batches import decode, low_bits
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import Place

MAX_TOKENS = 4096
ANSWER = 7
"""The only token that these engines ever say."""
HASH = get_hash_fn_by_name("sha256")
init_none_hash(HASH)


@dataclass(frozen=True)
class Group:
    """One KV cache group: `kind` is full, mla, other (full with other heads), window, local, align or all."""

    kind: str
    block: int
    window: int = 0

    def spec(self) -> KVCacheSpec:
        sizes = {"num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
        if self.kind == "full":
            return FullAttentionSpec(block_size=self.block, **sizes)
        if self.kind == "other":
            return FullAttentionSpec(block_size=self.block, **{**sizes, "head_size": 16})
        if self.kind == "mla":
            return MLAAttentionSpec(block_size=self.block, **sizes)
        if self.kind == "window":
            return SlidingWindowSpec(block_size=self.block, sliding_window=self.window, **sizes)
        if self.kind == "local":
            return ChunkedLocalAttentionSpec(
                block_size=self.block, attention_chunk_size=self.window, **sizes
            )
        return MambaSpec(
            block_size=self.block,
            shapes=((4,),),
            dtypes=(torch.float32,),
            mamba_cache_mode=self.kind,
        )

    def geometry(self, index: int, blocks_per_chunk: int = 1) -> GroupGeometry:
        kind = {
            "window": GroupKind.WINDOW,
            "local": GroupKind.LOCAL,
            "align": GroupKind.STATE,
            "all": GroupKind.STATE,
        }.get(self.kind, GroupKind.FULL)
        return GroupGeometry(index, kind, self.block, blocks_per_chunk, (64,), self.window)


@dataclass(frozen=True)
class Layout:
    """A mixture of groups; `unit` is the hash's size where it is finer than the blocks need."""

    groups: tuple[Group, ...]
    unit: int = 0

    @property
    def block_tokens(self) -> int:
        return math.lcm(*(group.block for group in self.groups))

    @property
    def hash_tokens(self) -> int:
        if any(group.kind == "all" for group in self.groups):
            return self.block_tokens
        return self.unit or math.gcd(*(group.block for group in self.groups))

    def shape(self) -> ModelShape:
        return ModelShape.make(
            [group.geometry(index) for index, group in enumerate(self.groups)],
            self.hash_tokens,
            self.block_tokens,
        )


class EngineCache:
    """One engine's device cache and its requests, and beside it what its events say.

    Args:
        layout: the model's groups.
        blocks: of the pool.
        retention: vLLM's `prefix_cache_retention_interval`.
    """

    def __init__(self, layout: Layout, blocks: int, retention: int | None) -> None:
        self.layout = layout
        self.shape = layout.shape()
        self.contents = Contents()
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.manager = KVCacheManager(
            KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[
                    KVCacheGroupSpec([f"layer{index}"], group.spec())
                    for index, group in enumerate(layout.groups)
                ],
                prefix_cache_retention_interval=retention,
            ),
            max_model_len=MAX_TOKENS,
            scheduler_block_size=layout.block_tokens,
            hash_block_size=layout.hash_tokens,
            enable_kv_cache_events=True,
        )
        self._vllm_hasher = get_request_block_hasher(layout.hash_tokens, HASH)
        self._hasher = BlockHasher("sha256", layout.hash_tokens, os.environ.get("PYTHONHASHSEED"))
        self._names = 0
        # What `_mamba_block_aligned_split` reads of its scheduler.
        fine = self.manager.coordinator.enable_partial_hash_hits
        assert (self.shape.alignment_tokens == layout.hash_tokens) == (
            fine or layout.hash_tokens == layout.block_tokens
        )
        states = any(group.kind == "align" for group in layout.groups)
        self._splits = states
        self._scheduler = SimpleNamespace(
            cache_config=SimpleNamespace(block_size=layout.block_tokens),
            block_size=layout.block_tokens,
            hash_block_size=layout.hash_tokens,
            mamba_partial_cache_hit=states and fine and layout.hash_tokens < layout.block_tokens,
            mamba_has_prefill_checkpoint_blocks=False,
            mamba_prefill_checkpoint_alignment=None,
            mamba_shared_prefix_checkpoint=False,
            use_eagle_block_drop=False,
            max_num_scheduled_tokens=MAX_TOKENS,
            scheduler_config=SimpleNamespace(long_prefill_token_threshold=0),
        )

    # Requests.

    def begin(self, prompt: Sequence[int]) -> None:
        """A request arrives; it waits for a step."""
        self.waiting.append(self._request(prompt))

    def step(self, budget: int) -> None:
        """One step of the engine: at most `budget` tokens a request."""
        self.manager.new_step_starts()
        for request in list(self.running):
            if request.num_computed_tokens == request.num_tokens:
                request.append_output_token_ids(ANSWER)
            count = min(budget, request.num_tokens - request.num_computed_tokens)
            count = self._split(request, count, 0)
            if count and self.manager.allocate_slots(request, count) is None:
                self._preempt(request)
            else:
                request.num_computed_tokens += count
        for request in list(self.waiting):
            self._admit(request, budget)
        _, retained = self.manager.take_kv_cache_block_copies()
        self.manager.block_pool.free_blocks(retained)
        self.settle()

    def finish(self, which: int) -> None:
        """A running request ends."""
        if self.running:
            self.manager.free(self.running.pop(which % len(self.running)))
            self.settle()

    def evict(self, which: int) -> None:
        """A few blocks leave the cache out of order."""
        there = self.manager.block_pool.num_gpu_blocks - 1
        self.manager.evict_blocks({1 + (which + step) % there for step in (0, 5, 11, 23)})
        self.settle()

    def lose(self, place: tuple[int, int, int, int]) -> None:
        """Blocks of one group of a running request leave the cache: which request, group, first, many."""
        which, group, first, many = place
        if self.running:
            request = self.running[which % len(self.running)]
            blocks = self.manager.get_block_ids(request.request_id)[group % len(self.layout.groups)]
            first %= len(blocks) or 1
            self.manager.evict_blocks(set(blocks[first : first + many]) - {0})
            self.settle()

    def reset(self) -> None:
        """The cache is emptied, if nothing runs."""
        self.manager.reset_prefix_cache()
        self.settle()

    def _admit(self, request: Request, budget: int) -> None:
        blocks, hit, junction = self.manager.get_computed_blocks(request)
        request.shared_prefix_boundary = junction
        count = self._split(request, min(budget, request.num_tokens - hit), hit)
        if count == 0 or self.manager.allocate_slots(request, count, hit, blocks) is None:
            return
        self.waiting.remove(request)
        self.running.append(request)
        request.num_computed_tokens = hit + count

    def _preempt(self, request: Request) -> None:
        self.manager.free(request)
        request.num_computed_tokens = 0
        self.running.remove(request)
        self.waiting.append(request)

    def _split(self, request: Request, count: int, hit: int) -> int:
        if not self._splits or not count:
            return count
        return Scheduler._mamba_block_aligned_split(self._scheduler, request, count, hit)

    def _request(self, prompt: Sequence[int]) -> Request:
        self._names += 1
        return Request(
            f"r{self._names}",
            list(prompt),
            SamplingParams(max_tokens=100),
            None,
            block_hasher=self._vllm_hasher,
        )

    # What is believed, and what is so.

    def settle(self) -> None:
        """Follow the events, over the wire's own bytes."""
        payload = msgspec.msgpack.encode(KVEventBatch(ts=0.0, events=self.manager.take_events()))
        batch = decode(payload)
        assert batch.skipped == 0
        self.contents.apply(batch)

    def predicted(self, prompt: Sequence[int]) -> int:
        """What the rule says, from token ids and events alone."""
        hashes = [low_bits(value) for value in self._hasher.hashes(prompt)]
        holdings = Holdings.of(self.contents.held)
        return find_reuse(self.shape, hashes, len(prompt), holdings).device.tokens

    def fill(self, prompt: Sequence[int], held: Sequence[Sequence[int]]) -> None:
        """Put blocks of a prompt into the cache, whether an engine would keep them or not.

        Args:
            prompt: token ids.
            held: for each group, which of the prompt's hashes.
        """
        hashes = self._request(prompt).block_hashes
        pool = self.manager.block_pool
        for group, indices in enumerate(held):
            counts = self.contents.held.setdefault(Place("GPU", group), {})
            for index in indices:
                key = make_block_hash_with_group_id(hashes[index], group)
                pool.cached_block_hash_to_block.insert(key, pool.blocks[1])
                counts[low_bits(hashes[index])] = 1

    def actual(self, prompt: Sequence[int]) -> int:
        """What vLLM says."""
        return self.manager.get_computed_blocks(self._request(prompt))[1]
