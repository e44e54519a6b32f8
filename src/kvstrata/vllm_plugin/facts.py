"""What a router has to know of an engine, from vLLM's configuration."""

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

from kvstrata import __version__
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.vllm_plugin.groups import group_kind
from kvstrata.wire.snapshot import EngineFacts, GroupFacts, group_facts


def engine_facts(
    vllm_config: Any, kv_cache_config: Any, geometries: Sequence[GroupGeometry]
) -> EngineFacts:
    """Facts without the hash's seed and the storage, which are known later.

    Args:
        vllm_config: vLLM's.
        kv_cache_config: vLLM's.
        geometries: of the groups that the tiers take.
    """
    model = vllm_config.model_config
    alignment, hash_tokens = resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    taken = {geometry.group: group_facts(geometry) for geometry in geometries}
    groups = [
        taken.get(index) or _device_only(index, group.kv_cache_spec)
        for index, group in enumerate(kv_cache_config.kv_cache_groups)
        if index in taken or getattr(group.kv_cache_spec, "prefix_cacheable", True)
    ]
    return EngineFacts(
        model=str(getattr(model, "served_model_name", None) or model.model),
        hash_algorithm=vllm_config.cache_config.prefix_caching_hash_algo,
        none_hash=b"",
        hash_tokens=hash_tokens,
        alignment_tokens=alignment,
        groups=tuple(groups),
        device_blocks=kv_cache_config.num_blocks,
        release=__version__,
        retention_tokens=_retention(vllm_config.cache_config),
    )


def _retention(cache_config: Any) -> int:
    """See `EngineFacts.retention_tokens`; before vLLM had an interval, it kept all blocks."""
    interval = getattr(cache_config, "prefix_cache_retention_interval", None)
    return 1 if interval is None else int(interval)


def _device_only(index: int, spec: Any) -> GroupFacts:
    """A group that no tier takes."""
    found = group_kind(spec)
    kind, window, extra = found or ("unknown", 0, 0)
    return GroupFacts(index, str(kind), spec.block_size, 0, 0, window, extra)
