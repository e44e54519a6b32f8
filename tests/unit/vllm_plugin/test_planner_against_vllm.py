"""The planner's boundary equals vLLM's own lookup on the same content, for any mixture of groups.

Windows are as long as a load needs them, as the connector sets them up (`mend_windows`).
"""

from types import SimpleNamespace

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    GroupOffloadConfig,
    OffloadingConnectorScheduler,
    RequestGroupState,
    get_sliding_window_size_in_chunks,
)
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_offload.base import LookupResult

from kvstrata.chunks.key import make_key
from kvstrata.tiering.planner import GroupKeys, RequestShape, plan_load
from kvstrata.vllm_plugin.groups import group_geometry
from kvstrata.vllm_plugin.retention import _mend_window

BLOCK = 16
SIZES = {"num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}


def spec_of(kind: str, window: int, block: int):
    if kind == "full":
        return FullAttentionSpec(block_size=block, **SIZES)
    if kind == "window":
        return SlidingWindowSpec(block_size=block, sliding_window=window, **SIZES)
    if kind == "local":
        return ChunkedLocalAttentionSpec(block_size=block, attention_chunk_size=window, **SIZES)
    return MambaSpec(
        block_size=block, shapes=((4,),), dtypes=(torch.float32,), mamba_cache_mode="align"
    )


def group_config(index: int, kind: str, window: int, block: int, per_chunk: int):
    spec = spec_of(kind, window, block)
    chunk = block * per_chunk
    return _mend_window(
        GroupOffloadConfig(
            group_idx=index,
            tokens_per_block=block,
            tokens_per_chunk=chunk,
            hashes_per_chunk=chunk // BLOCK,
            kv_event_group_spec=None,
            sliding_window_size_in_chunks=get_sliding_window_size_in_chunks(spec, chunk),
            kv_cache_spec=spec,
            manager_cls=None,
        )
    )


class Present:
    """An offloading manager that holds a set of keys."""

    def __init__(self, keys) -> None:
        self.keys = keys

    def lookup(self, key, _context):
        return LookupResult.HIT if key in self.keys else LookupResult.MISS


def vllm_answer(configs, per_chunk, keys, present, tokens, computed, cap) -> int:
    """vLLM's `_lookup_complete_chunks` on the given content."""
    scheduler = OffloadingConnectorScheduler.__new__(OffloadingConnectorScheduler)
    scheduler.config = SimpleNamespace(
        kv_group_configs=tuple(configs), blocks_per_chunk=per_chunk, supports_partial_tail=False
    )
    scheduler.manager = Present(present)
    full = [i for i, c in enumerate(configs) if c.sliding_window_size_in_chunks is None]
    windowed = [i for i, c in enumerate(configs) if c.sliding_window_size_in_chunks is not None]
    windowed.sort(key=lambda i: configs[i].sliding_window_size_in_chunks, reverse=True)
    scheduler._full_attention_groups = tuple(full)
    scheduler._sliding_window_groups = tuple(windowed)
    scheduler._lookup_groups = tuple(full + windowed)
    states = [c.tokens_per_chunk for c in configs if isinstance(c.kv_cache_spec, MambaSpec)]
    scheduler._mamba_align_size = states[0] if states else None
    scheduler._chunks_being_loaded = None
    scheduler._events_tracker = SimpleNamespace(record_lookup=lambda *_: None)
    status = SimpleNamespace(
        num_locally_computed_tokens=computed,
        req=SimpleNamespace(num_tokens=tokens, request_id="r"),
        max_load_tokens=cap,
        req_context=None,
        group_states=[RequestGroupState(offload_keys=list(group)) for group in keys],
    )
    return scheduler._lookup_complete_chunks(status)


@st.composite
def cases(draw):
    per_chunk = draw(st.sampled_from([1, 1, 1, 2, 4]))
    kinds = draw(
        st.lists(st.sampled_from(["full", "window", "local", "state"]), min_size=1, max_size=4)
    )
    # Full groups of one model share a block size; with several, vLLM's answer depends on their order.
    blocks = {kind: BLOCK * draw(st.sampled_from([1, 2])) for kind in ("full", "state")}
    configs = []
    for index, kind in enumerate(kinds):
        block = blocks.get(kind) or BLOCK * draw(st.sampled_from([1, 1, 2]))
        window = draw(st.integers(2, 9 * BLOCK))
        configs.append(group_config(index, kind, window, block, per_chunk))
    tokens = draw(st.integers(1, 24 * BLOCK))
    step = max(c.tokens_per_block for c in configs)
    computed = draw(st.integers(0, tokens // step)) * step if draw(st.booleans()) else 0
    cap = draw(st.none() | st.integers(0, 12 * BLOCK))
    keys, present = [], set()
    for config in configs:
        group = [
            make_key(i.to_bytes(16, "big"), config.group_idx)
            for i in range(tokens // config.tokens_per_chunk)
        ]
        keys.append(group)
        if config.sliding_window_size_in_chunks is None:
            present.update(group[: draw(st.integers(0, len(group)))])
        else:
            present.update(key for key in group if draw(st.integers(0, 3)))
    return per_chunk, configs, keys, present, tokens, computed, cap


def shape_of(configs, per_chunk, keys, tokens, computed, cap) -> RequestShape:
    return RequestShape(
        groups=[
            GroupKeys(group_geometry(config, per_chunk, [64]), group)
            for config, group in zip(configs, keys, strict=True)
        ],
        tokens=tokens,
        computed=computed,
        max_load_tokens=cap,
    )


@settings(max_examples=1500, deadline=None)
@given(cases())
def test_boundary_is_vllms(case) -> None:
    per_chunk, configs, keys, present, tokens, computed, cap = case
    expected = vllm_answer(configs, per_chunk, keys, present, tokens, computed, cap)
    shape = shape_of(configs, per_chunk, keys, tokens, computed, cap)
    for exact in (False, True):
        plan = plan_load(shape, lambda asked: [key in present for key in asked], exact=exact)
        assert plan.boundary - computed == expected


@settings(max_examples=800, deadline=None)
@given(cases())
def test_what_is_planned_is_enough_for_vllm(case) -> None:
    """With nothing but the planned chunks in memory, vLLM finds the same boundary."""
    per_chunk, configs, keys, present, tokens, computed, cap = case
    # The connector makes chunks of several blocks only where all groups' blocks are equal: vLLM wants a
    # whole chunk of a full group beyond what is computed, though the boundary may need less.
    assume(per_chunk == 1 or len({config.tokens_per_block for config in configs}) == 1)
    shape = shape_of(configs, per_chunk, keys, tokens, computed, cap)
    plan = plan_load(shape, lambda asked: [key in present for key in asked])
    needed = {key for key, _ in plan.needs()} | plan.beside
    assert needed <= present
    found = vllm_answer(configs, per_chunk, keys, needed, tokens, computed, cap)
    assert computed + found == plan.boundary
