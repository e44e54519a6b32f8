"""What an engine's chunks depend on: the namespace's facts, read from vLLM's configuration."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.namespace import Namespace
from kvstrata.vllm_plugin.weights import model_directory, weights_fingerprint

NOT_BYTES = frozenset(
    {"_name_or_path", "transformers_version", "architectures", "id2label", "label2id"}
)
"""Keys of the Hugging Face config that do not change the bytes of the KV cache."""


def engine_namespace(
    vllm_config: Any,
    geometries: Sequence[GroupGeometry],
    layer_names: Mapping[int, Sequence[str]],
    declarations: Sequence[Mapping[str, Any]],
    label: str,
) -> Namespace:
    """The namespace of an engine.

    Args:
        vllm_config: vLLM's `VllmConfig`.
        geometries: of the offloaded groups.
        layer_names: layers of each group, by group index.
        declarations: every worker's facts about its memory layout, in rank order.
        label: the operator's own distinction.
    """
    facts = {
        "label": label,
        **model_facts(vllm_config.model_config),
        **hash_facts(vllm_config.cache_config),
        "kv_cache": kv_cache_facts(vllm_config),
        "groups": [group_facts(g, layer_names.get(g.group, ())) for g in geometries],
        "parallel": parallel_facts(vllm_config.parallel_config),
        "layout": [dict(sorted(declared.items())) for declared in declarations],
        "speculative": speculative_facts(getattr(vllm_config, "speculative_config", None)),
        "engine": engine_facts(),
    }
    return Namespace(str(vllm_config.model_config.model), plain(facts))


def model_facts(model_config: Any) -> dict[str, Any]:
    """Identity of weights and architecture: config with its overrides, weights, dtype, quantisation."""
    directory = model_directory(model_config.model, model_config.revision)
    weights = weights_fingerprint(directory) if directory is not None else None
    config = model_config.hf_config.to_dict()
    return {
        # Where the files are at hand, equal weights under another name are the same model.
        "model": None if weights else model_config.model,
        "revision": None if weights else model_config.revision,
        "weights": weights,
        "config": {key: value for key, value in config.items() if key not in NOT_BYTES},
        "dtype": str(model_config.dtype),
        "quantization": str(model_config.quantization),
        "seed": None if weights else model_config.seed,
        "disable_sliding_window": bool(getattr(model_config, "disable_sliding_window", False)),
        "model_impl": str(getattr(model_config, "model_impl", "auto")),
    }


def hash_facts(cache_config: Any) -> dict[str, Any]:
    """How block hashes are made: algorithm, the hash of nothing (which holds the seed), hash size."""
    from vllm.v1.core import kv_cache_utils

    none_hash = getattr(kv_cache_utils, "NONE_HASH", b"")
    return {
        "hash_algorithm": str(cache_config.prefix_caching_hash_algo),
        "hash_seed": bytes(none_hash).hex(),
    }


def kv_cache_facts(vllm_config: Any) -> dict[str, Any]:
    """Type and layout of the cache's elements."""
    cache = vllm_config.cache_config
    attention = getattr(vllm_config, "attention_config", None)
    return {
        "dtype": str(cache.cache_dtype),
        "layout": str(getattr(cache, "kv_cache_layout", None)),
        "mamba_dtype": str(getattr(cache, "mamba_cache_dtype", None)),
        "mamba_ssm_dtype": str(getattr(cache, "mamba_ssm_cache_dtype", None)),
        "mamba_mode": str(getattr(cache, "mamba_cache_mode", None)),
        "backend": str(getattr(attention, "backend", None)),
    }


def group_facts(geometry: GroupGeometry, layers: Sequence[str]) -> dict[str, Any]:
    """One KV cache group: what it is and which layers it holds, in payload order."""
    return {
        "group": geometry.group,
        "kind": geometry.kind.value,
        "tokens_per_block": geometry.tokens_per_block,
        "blocks_per_chunk": geometry.blocks_per_chunk,
        "rank_block_bytes": list(geometry.rank_block_bytes),
        "window_tokens": geometry.window_tokens,
        "layers": list(layers),
    }


def parallel_facts(parallel_config: Any) -> dict[str, Any]:
    """How the cache is spread over workers."""
    return {
        name: getattr(parallel_config, name, 1)
        for name in (
            "world_size",
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "prefill_context_parallel_size",
            "decode_context_parallel_size",
            "enable_expert_parallel",
        )
    }


def speculative_facts(speculative_config: Any) -> str | None:
    """A draft model's identity: its layers may share the cache's groups."""
    if speculative_config is None:
        return None
    return f"{getattr(speculative_config, 'method', '')}:{getattr(speculative_config, 'model', '')}"


def engine_facts() -> dict[str, str]:
    """Engine and platform: other releases or devices may lay the same cache out differently."""
    import vllm
    from vllm.platforms import current_platform

    release = ".".join(str(vllm.__version__).split(".")[:2])
    return {"name": "vllm", "release": release, "device": str(current_platform.device_type)}


def layout_facts(kv_caches: Mapping[str, Any], num_blocks: int) -> dict[str, Any]:
    """Shape, strides and type of one worker's cache tensors, without the number of blocks.

    Args:
        kv_caches: tensor by layer name, as vLLM registers them.
        num_blocks: blocks of the cache; replicas may differ in it.
    """
    layouts = {
        json.dumps(_tensor_facts(tensor, num_blocks))
        for cache in kv_caches.values()
        for tensor in (cache if isinstance(cache, list | tuple) else [cache])
    }
    return {"tensors": [json.loads(text) for text in sorted(layouts)]}


def _tensor_facts(tensor: Any, num_blocks: int) -> list[Any]:
    inner = [
        [size, stride]
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size % num_blocks
    ]
    return [str(tensor.dtype), inner]


def plain(value: Any) -> Any:
    """`value` as JSON values only; what is not JSON becomes its string."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return repr(value)  # a canonical text, and no trouble with infinities
    return str(value)
