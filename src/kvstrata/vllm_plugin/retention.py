"""What vLLM keeps of windowed groups, and where we make it keep more or ask for less.

By default (`prefix_cache_retention_interval` 0) vLLM keeps the window or state of a windowed group only at
the end of a prompt, and at `Request.shared_prefix_boundary`: the place where the request parts from
another one that its own device cache holds. Its scheduler reads that attribute when it commits and stores
blocks, after the connector was asked, so the connector can name a place that only its tiers know of.
"""

import logging
from collections.abc import Sequence
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    GroupOffloadConfig,
    SchedulerOffloadConfig,
)
from vllm.v1.kv_cache_interface import MambaSpec, SlidingWindowSpec
from vllm.v1.request import RequestStatus

from kvstrata.chunks.geometry import GroupGeometry, GroupKind, ceil_div

logger = logging.getLogger("vllm.kvstrata")


def mend_windows(config: SchedulerOffloadConfig) -> SchedulerOffloadConfig:
    """vLLM's configuration with windows as long as a load needs them.

    A window of W tokens includes the token that is computed, so a load brings the W - 1 before it, and
    that is what vLLM keeps and stores. Its lookup asks for W: one chunk more where W - 1 is a multiple of
    the chunk (Cohere2), which is never there. See `get_sliding_window_size_in_chunks`.
    """
    return config._replace(
        kv_group_configs=tuple(_mend_window(group) for group in config.kv_group_configs)
    )


def _mend_window(group: GroupOffloadConfig) -> GroupOffloadConfig:
    spec = group.kv_cache_spec
    if not isinstance(spec, SlidingWindowSpec):
        return group
    reach = spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)
    return group._replace(
        sliding_window_size_in_chunks=max(ceil_div(reach, group.tokens_per_chunk), 1)
    )


def single_block_reason(kv_cache_config: Any) -> str | None:
    """Why chunks of several blocks cannot be used with a model, or None.

    vLLM stores a state only where a chunk ends, and keeps windows where a block of the full groups ends;
    a chunk of several blocks, or one that is longer than another group's, ends elsewhere.

    Args:
        kv_cache_config: vLLM's `KVCacheConfig`.
    """
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if any(isinstance(spec, MambaSpec) for spec in specs):
        return "the model keeps recurrent states, one a block"
    if len({spec.block_size for spec in specs}) > 1:
        return "the model's KV cache groups have blocks of different sizes"
    return None


def state_block(kv_cache_config: Any) -> int:
    """Tokens after which vLLM can keep a recurrent state ("align" mode); 0 without such groups.

    Args:
        kv_cache_config: vLLM's `KVCacheConfig`.
    """
    return next(
        (
            group.kv_cache_spec.block_size
            for group in kv_cache_config.kv_cache_groups
            if isinstance(group.kv_cache_spec, MambaSpec)
            and group.kv_cache_spec.mamba_cache_mode == "align"
        ),
        0,
    )


def mend_state_steps(vllm_config: Any, block: int) -> None:
    """Make vLLM's scheduler end its prefill steps where a recurrent state can be kept.

    A state is kept where a prefill step ends on a state block's boundary, and the scheduler looks for that
    boundary in steps of `cache_config.block_size` (`_mamba_block_aligned_split`). Where the engine core
    runs in a process of its own, that goes back to the platform's default after the scheduler was made,
    unless `--block-size` was given; steps then end elsewhere, and the first request with a prompt leaves
    no state at all. To be called before each prompt is scheduled; costs a comparison.

    Args:
        vllm_config: the scheduler's.
        block: see `state_block`; 0 changes nothing.
    """
    cache_config = vllm_config.cache_config
    if block and cache_config.block_size % block:
        logger.info(
            "kvstrata: prefill steps end on blocks of %d tokens, where states can be kept, not of %d",
            block,
            cache_config.block_size,
        )
        cache_config.block_size = block


def keep_answer_end(
    scheduler: Any, geometries: Sequence[GroupGeometry], request_id: str, step: int
) -> bool:
    """Store the windows at the end of a finished answer, so that the next turn goes on from there.

    To be called before vLLM builds the finished request's last store jobs. The blocks were let go a
    moment ago; those that another request got since then are found and left out by vLLM itself
    (`_update_req_states`), as long as the store index does not lie behind them.

    Args:
        scheduler: vLLM's `OffloadingConnectorScheduler`.
        geometries: of its groups, in its order.
        request_id: of a request that has just finished.
        step: tokens; a multiple of every group's chunk.

    Returns:
        Whether there is anything to keep beyond the end of the prompt.
    """
    config = scheduler.config
    status = scheduler._req_status.get(request_id)
    if status is None or config.offload_prompt_only or config.retention_interval is None:
        return False
    request = status.req
    if request.status is RequestStatus.FINISHED_ABORTED:
        return False
    # The last sampled token has no KV yet.
    end = scheduler._calc_num_offloadable_tokens(status, request.num_tokens - 1)
    boundary = end // step * step
    if boundary <= (request.num_prompt_tokens - 1) // step * step:
        return False
    tails = []
    for geometry, state in zip(geometries, status.group_states, strict=True):
        if geometry.kind is GroupKind.STATE:
            return False  # states are handed out while the answer is made, not at its end
        if geometry.kind is not GroupKind.WINDOW:
            continue
        first = geometry.first_token(boundary) // geometry.tokens_per_block
        if first < geometry.first_token(end) // geometry.tokens_per_block:
            return False  # the window has moved on and its first block is gone
        tails.append((state, first // geometry.blocks_per_chunk))
    for state, first in tails:
        state.next_stored_chunk_idx = min(state.next_stored_chunk_idx, first)
    request.shared_prefix_boundary = boundary
    return bool(tails)
