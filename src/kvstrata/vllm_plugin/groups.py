"""vLLM's KV cache groups in our terms."""

from typing import Any

from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.errors import ConfigError
from kvstrata.tiering.planner import GroupKeys


def group_kind(spec: Any) -> tuple[GroupKind, int, int] | None:
    """What a boundary needs of a group, by vLLM's `KVCacheSpec`.

    Returns:
        The kind, the window's tokens, the tokens kept beyond it; None for a kind that we do not know.
    """
    if isinstance(spec, SlidingWindowSpec):
        return GroupKind.WINDOW, spec.sliding_window, getattr(spec, "extra_retained_tokens", 0)
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return GroupKind.LOCAL, spec.attention_chunk_size, 0
    if isinstance(spec, MambaSpec):
        return GroupKind.STATE, 0, 0
    if isinstance(spec, FullAttentionSpec):
        return GroupKind.FULL, 0, 0
    return None


def group_geometry(group: Any, blocks_per_chunk: int, rank_block_bytes: list[int]) -> GroupGeometry:
    """Our view of one of vLLM's offloaded groups.

    Args:
        group: vLLM's `GroupOffloadConfig`.
        blocks_per_chunk: of all groups.
        rank_block_bytes: bytes that each worker stores for one block of this group.

    Raises:
        ConfigError: a kind of attention that we do not know.
    """
    found = group_kind(group.kv_cache_spec)
    if found is None:
        raise ConfigError(
            f"KV cache group {group.group_idx} is of kind {type(group.kv_cache_spec).__name__}, which "
            f"kvstrata does not know; run this model without the kvstrata connector"
        )
    kind, window, extra = found
    return GroupGeometry(
        group=group.group_idx,
        kind=kind,
        tokens_per_block=group.tokens_per_block,
        blocks_per_chunk=blocks_per_chunk,
        rank_block_bytes=tuple(rank_block_bytes),
        window_tokens=window,
        extra_tokens=extra,
    )


def group_keys(request: Any, geometry: GroupGeometry, hash_tokens: int) -> GroupKeys:
    """Keys of a request's complete chunks in one group.

    Args:
        request: vLLM's; its `block_hashes` stand `hash_tokens` tokens apart.
        geometry: of the group.
        hash_tokens: tokens of one block hash.
    """
    step = geometry.tokens_per_chunk // hash_tokens
    hashes = request.block_hashes[step - 1 :: step]
    return GroupKeys(geometry, [make_key(value, geometry.group) for value in hashes])
