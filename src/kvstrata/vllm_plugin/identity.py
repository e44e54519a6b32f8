"""What an engine's chunks depend on: the namespace's facts, read from vLLM's configuration."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.namespace import Namespace
from kvstrata.vllm_plugin.weights import model_place, weights_fingerprint

NOT_BYTES = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "id2label", "label2id"}
)
"""Keys of the Hugging Face config, at any depth, that do not change the bytes of the KV cache."""
_LONG_ROPE = frozenset({"longrope", "su"})


def engine_namespace(
    vllm_config: Any,
    geometries: Sequence[GroupGeometry],
    layer_names: Mapping[int, Sequence[str]],
    declarations: Sequence[Mapping[str, Any]],
    label: str,
    seal: str = "none",
) -> Namespace:
    """The namespace of an engine.

    Args:
        vllm_config: vLLM's `VllmConfig`.
        geometries: of the offloaded groups.
        layer_names: layers of each group, by group index.
        declarations: every worker's facts about its memory layout, in rank order.
        label: the operator's own distinction.
        seal: how files are guarded, as the option says; a sealed chunk and another never stand in for
            each other. Which key seals is no fact, so that keys can be replaced.
    """
    dummy = has_dummy_weights(getattr(vllm_config, "load_config", None))
    facts = {
        "label": label,
        **model_facts(vllm_config.model_config, dummy),
        **hash_facts(vllm_config.cache_config),
        "kv_cache": kv_cache_facts(vllm_config),
        "groups": [group_facts(g, layer_names.get(g.group, ())) for g in geometries],
        "parallel": parallel_facts(vllm_config.parallel_config),
        "layout": [dict(sorted(declared.items())) for declared in declarations],
        "speculative": speculative_facts(getattr(vllm_config, "speculative_config", None)),
        "engine": engine_facts(),
    }
    if seal != "none":  # what is not sealed stays where it was
        facts["seal"] = seal
    return Namespace(model_directory(str(vllm_config.model_config.model)), plain(facts))


def model_directory(model: str) -> str:
    """Only the last part of a model's name: engines that find one at two places share one description."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def model_facts(model_config: Any, dummy: bool = False) -> dict[str, Any]:
    """Identity of weights and architecture: config with its overrides, weights, dtype, quantisation.

    Args:
        model_config: vLLM's `ModelConfig`.
        dummy: whether the weights are random, whatever the files say; then the seed tells them apart.
    """
    place = model_place(model_config.model, model_config.revision)
    weights = weights_fingerprint(place) if place is not None and not dummy else None
    config = model_config.hf_config.to_dict()
    return {
        # Where the files are at hand, equal weights under another name are the same model.
        "model": None if weights else model_config.model,
        "revision": None if weights else model_config.revision,
        "weights": weights,
        "config": _of_bytes(config),
        "long_rope": _long_rope(config, getattr(model_config, "max_model_len", None)),
        "dtype": str(model_config.dtype),
        "quantization": str(model_config.quantization),
        "quantization_config": str(getattr(model_config, "quantization_config", None)),
        "dummy": dummy,
        "seed": None if weights else model_config.seed,
        "disable_sliding_window": bool(getattr(model_config, "disable_sliding_window", False)),
        "model_impl": str(getattr(model_config, "model_impl", "auto")),
        "class_overrides": getattr(model_config, "model_class_overrides", {}),
    }


def has_dummy_weights(load_config: Any) -> bool:
    """Whether the weights are random (`--load-format dummy`)."""
    load_format = getattr(load_config, "load_format", "auto")
    return str(getattr(load_format, "value", load_format)) == "dummy"


def _of_bytes(config: Any) -> Any:
    """A Hugging Face config without the keys in `NOT_BYTES`, also inside its parts."""
    if isinstance(config, Mapping):
        return {key: _of_bytes(value) for key, value in config.items() if key not in NOT_BYTES}
    return config


def _long_rope(config: Mapping[str, Any], max_model_len: int | None) -> list[bool]:
    """For each LongRoPE in the config, whether its long factors are in force.

    vLLM chooses them for all tokens alike, by whether the engine's limit exceeds the original length; so
    here, and only here, `max_model_len` changes the bytes.
    """
    return [(max_model_len or 0) > original for original in _original_lengths(config, config)]


def _original_lengths(part: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[int]:
    if part.get("rope_type", part.get("type")) in _LONG_ROPE:
        name = "original_max_position_embeddings"
        yield int(part.get(name) or config.get(name) or config.get("max_position_embeddings") or 0)
    for value in part.values():
        if isinstance(value, Mapping):
            yield from _original_lengths(value, part)


def hash_facts(cache_config: Any) -> dict[str, Any]:
    """How block hashes are made: algorithm and seed.

    vLLM draws the seed after the connector is made, so this follows its rule (`resolve_none_hash_seed`):
    the environment's, else a fixed one for cryptographic functions, else random ones, which no other
    process shares.
    """
    algorithm = str(cache_config.prefix_caching_hash_algo)
    seed = os.environ.get("PYTHONHASHSEED")
    if seed is None and algorithm.startswith("xxhash"):
        return {"hash_algorithm": algorithm, "hash_seed": f"random {os.urandom(16).hex()}"}
    return {"hash_algorithm": algorithm, "hash_seed": "default" if seed is None else f"={seed}"}


def kv_cache_facts(vllm_config: Any) -> dict[str, Any]:
    """Type and layout of the cache's elements."""
    cache = vllm_config.cache_config
    attention = getattr(vllm_config, "attention_config", None)
    return {
        "dtype": str(cache.cache_dtype),
        "dtype_skip_layers": list(getattr(cache, "kv_cache_dtype_skip_layers", ())),
        "calculated_scales": bool(getattr(cache, "calculate_kv_scales", False)),
        "layout": str(getattr(cache, "kv_cache_layout", None)),
        "mamba_dtype": str(getattr(cache, "mamba_cache_dtype", None)),
        "mamba_ssm_dtype": str(getattr(cache, "mamba_ssm_cache_dtype", None)),
        "mamba_mode": str(getattr(cache, "mamba_cache_mode", None)),
        "backend": str(getattr(attention, "backend", None)),
        "backend_per_kind": getattr(attention, "backend_per_kind", {}),
        "indexer_dtype": str(getattr(attention, "indexer_kv_dtype", None)),
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
            "cp_kv_cache_interleave_size",
            "enable_expert_parallel",
        )
    }


def speculative_facts(speculative_config: Any) -> dict[str, Any] | None:
    """A draft model's identity: its layers may share the cache's groups."""
    if speculative_config is None:
        return None
    draft = getattr(speculative_config, "draft_model_config", None)
    return {
        "method": str(getattr(speculative_config, "method", None)),
        "model": str(getattr(speculative_config, "model", None)) if draft is None else None,
        "draft": model_facts(draft) if draft is not None else None,
    }


def engine_facts() -> dict[str, str]:
    """Engine and platform: other releases or devices may lay the same cache out differently."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    release = ".".join(str(vllm.__version__).split(".")[:2])
    device = str(current_platform.device_type)
    facts = {
        "name": "vllm",
        "release": release,
        "device": device,
        # ROCm calls its devices "cuda" too, but packs keys in its own way.
        "platform": type(current_platform).__name__,
    }
    if device == "cpu":
        # The CPU backend packs keys for its matrix unit inside tensors of one and the same shape.
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        facts["instructions"] = f"{platform.machine()}{' amx' if amx else ''}"
    return facts


def layout_facts(
    kv_caches: Mapping[str, Any], num_blocks: int, layers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """How one worker's cache lies in memory, without the number of blocks.

    Args:
        kv_caches: a tensor, or a sequence of them, by layer name, as vLLM registers them.
        num_blocks: blocks of the cache; replicas may differ in it.
        layers: vLLM's layer objects by name (`static_forward_context`), for the backend in force: what the
            configuration calls "auto" is known only here.

    Returns:
        Each distinct layout once: shapes, strides and types of a layer's tensors, its backend, and a
        digest of the names of the layers that have it.
    """
    found: dict[str, list[str]] = {}
    for name, cache in kv_caches.items():
        tensors = cache if isinstance(cache, list | tuple) else [cache]
        facts = {
            "tensors": [_tensor_facts(tensor, num_blocks) for tensor in tensors],
            **_backend_facts((layers or {}).get(name)),
        }
        found.setdefault(json.dumps(facts, sort_keys=True), []).append(name)
    return {
        "layouts": [
            {**json.loads(text), "layers": len(names), "names": _names_digest(names)}
            for text, names in sorted(found.items())
        ]
    }


def _names_digest(names: Sequence[str]) -> str:
    """Short, so that a worker's declaration of a thousand layers stays small."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _backend_facts(layer: Any) -> dict[str, str]:
    backend = getattr(layer, "attn_backend", None)
    return {
        "backend": str(backend.get_name()) if backend is not None else "",
        "dtype": str(getattr(layer, "kv_cache_dtype", "")),
    }


def _tensor_facts(tensor: Any, num_blocks: int) -> list[Any]:
    """Type, then size and stride of each dimension; those that grow with the cache, relative to it."""
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    # Kernels may split a block, so the dimension of blocks is some multiple of their number.
    where = next(
        (i for i, size in enumerate(shape) if size >= num_blocks and size % num_blocks == 0), None
    )
    dimensions: list[list[Any]] = []
    for index, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if where is None:
            dimensions.append([size, stride])
        elif index == where:
            dimensions.append(["blocks", size // num_blocks])
        elif stride > strides[where]:
            span = strides[where] * shape[where]
            dimensions.append([size, f"blocks * {stride / span:g}"])
        else:
            dimensions.append([size, stride])
    return [str(tensor.dtype), dimensions]


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
