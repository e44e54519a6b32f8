"""What an engine would cache, without starting one: `python -m kvstrata.vllm_plugin.offline OUT [OPTIONS]`.

vLLM's own argument parser, configuration and model classes are used; the model is made on torch's meta
device, where weights take no memory and none are read. A process of its own does it, since vLLM configures
logging and distributed state of the process that it runs in.
"""

import dataclasses
import importlib
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec

from kvstrata.doctor.facts import EngineFacts
from kvstrata.errors import KVStrataError
from kvstrata.options import Options
from kvstrata.vllm_plugin.diagnosis import gather
from kvstrata.vllm_plugin.groups import group_geometry
from kvstrata.vllm_plugin.identity import engine_namespace
from kvstrata.vllm_plugin.retention import single_block_reason

logger = logging.getLogger("vllm.kvstrata")

_ESTIMATED = {"full_attention": None, "sliding_attention": "window", "chunked_attention": "local"}


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What this process writes to OUT, as JSON.

    Attributes:
        facts: of the engine; None when `error` says why there are none.
        covers: what its namespace would cover, but for the layout, which only its workers know.
        shm_dir: of the options.
        error: for people.
    """

    facts: EngineFacts | None = None
    covers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shm_dir: str = "/dev/shm"
    error: str = ""


class _Group(NamedTuple):
    """As `group_geometry` reads vLLM's `GroupOffloadConfig`."""

    group_idx: int
    kv_cache_spec: Any
    tokens_per_block: int


def look(arguments: list[str]) -> Answer:
    """Facts of the engine that vLLM would start with these arguments.

    Raises:
        SystemExit: vLLM's parser refuses the arguments.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="kvstrata doctor"))
    config = EngineArgs.from_cli_args(parser.parse_args(arguments)).create_engine_config()
    transfer = config.kv_transfer_config
    extra = dict(getattr(transfer, "kv_connector_extra_config", None) or {})
    ours = transfer is not None and transfer.kv_connector == "KVStrataConnector"
    options = Options.parse(extra) if ours else None
    try:
        specs, exact = model_specs(config), True
    except Exception as error:  # noqa: BLE001
        # boundary: model code of all kinds, made where it was not meant to be
        logger.warning("the model cannot be made without its weights: %s", error)
        specs, exact = estimated_specs(config), False
    groups = vllm_groups(config, specs)
    asked = _blocks_per_chunk(extra, groups)
    chunk = 1 if single_block_reason(SimpleNamespace(kv_cache_groups=groups)) else asked
    ranks = config.parallel_config.tensor_parallel_size
    geometries = [
        group_geometry(
            _Group(index, group.kv_cache_spec, _tokens(config, group.kv_cache_spec)),
            chunk,
            [unpadded_bytes(group)] * ranks,
        )
        for index, group in enumerate(groups)
    ]
    known: dict[str, Any] = {"exact": exact, "asked_blocks": asked}
    layers = [len(group.layer_names) for group in groups]
    names = {index: group.layer_names for index, group in enumerate(groups)}
    asks = options or Options()
    namespace = engine_namespace(config, geometries, names, [], asks.label, asks.seal)
    known["scheduler_block"] = _scheduler_block(
        config, groups
    )  # last: it changes the configuration
    facts = gather(config, geometries, layers, options, **known)
    unknown = {"layout"} if exact else {"layout", "groups", "kv_cache"}
    covers = {name: fact for name, fact in namespace.covers.items() if name not in unknown}
    return Answer(facts, covers, options.shm_dir if options else "/dev/shm")


def model_specs(config: Any) -> dict[str, Any]:
    """vLLM's KV cache spec of every layer, from the model itself on the meta device.

    One process stands for one rank of the tensor-parallel group, so that heads are divided as there.

    Raises:
        Exception: whatever the model's code raises where it does not take the meta device.
    """
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed.parallel_state import (
        ensure_model_parallel_initialized,
        get_tp_group,
        init_distributed_environment,
    )
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype

    with tempfile.TemporaryDirectory() as directory, set_current_vllm_config(config):
        init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{directory}/rendezvous",
            backend="gloo",
        )
        ensure_model_parallel_initialized(1, 1)
        get_tp_group().world_size = config.parallel_config.tensor_parallel_size
        with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
            initialize_model(config)
        current_platform.update_block_size_for_backend(config)
        return _layer_specs(config)


def _layer_specs(config: Any) -> dict[str, Any]:
    """As vLLM's `GPUModelRunner.get_kv_cache_spec`."""
    found = {}
    for name, layer in config.compilation_config.static_forward_context.items():
        if getattr(layer, "kv_sharing_target_layer_name", None):
            continue
        make = getattr(layer, "get_kv_cache_spec", None)
        spec = make(config) if make is not None else None
        if spec is not None:
            found[name] = spec
    return found


def estimated_specs(config: Any) -> dict[str, Any]:
    """Specs from the Hugging Face config's layer types.

    Raises:
        KVStrataError: the config does not say enough.
    """
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        SlidingWindowSpec,
    )

    model, text = config.model_config, config.model_config.hf_text_config
    types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    unknown = set(types) - set(_ESTIMATED)
    if unknown or getattr(model, "use_mla", False):
        raise KVStrataError(
            f"layers of type {', '.join(sorted(unknown)) or 'MLA'} cannot be estimated from the config; "
            f"ask a running engine: kvstrata doctor --url"
        )
    size = {
        "block_size": config.cache_config.block_size,
        "num_kv_heads": model.get_num_kv_heads(config.parallel_config),
        "head_size": model.get_head_size(),
        "dtype": model.dtype,
    }
    specs: dict[str, Any] = {}
    for index, kind in enumerate(types):
        if _ESTIMATED[kind] == "window":
            specs[str(index)] = SlidingWindowSpec(**size, sliding_window=text.sliding_window)
        elif _ESTIMATED[kind] == "local":
            length = text.attention_chunk_size
            specs[str(index)] = ChunkedLocalAttentionSpec(**size, attention_chunk_size=length)
        else:
            specs[str(index)] = FullAttentionSpec(**size)
    return specs


def vllm_groups(config: Any, specs: dict[str, Any]) -> list[Any]:
    """vLLM's own grouping of layers."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

    try:
        from vllm.v1.core.kv_cache_utils import get_kv_cache_groups
    except ImportError:  # from 0.33 on
        from vllm.v1.core.kv_cache_planning import get_kv_cache_groups

    with set_current_vllm_config(config):
        register_all_kvcache_specs(config)
        _resolve_layout(config, specs)
        return list(get_kv_cache_groups(config, specs))


def _resolve_layout(config: Any, specs: Mapping[str, Any]) -> None:
    """As vLLM's engine core does it with what its workers report; groups of unequal pages ask for it.

    Releases that know no such layouts do not ask.
    """
    worker = importlib.import_module("vllm.v1.worker.worker_base")
    utils = importlib.import_module("vllm.v1.attention.backends.utils")
    resolve = getattr(utils, "resolve_kv_cache_layout", None)
    if resolve is None:
        return
    made = config.compilation_config.static_forward_context
    backends = worker.get_current_attn_backends(config) if made else []
    names = [layout.name for layout in utils.get_supported_kv_cache_layouts(backends)]
    resolve(config, [names], specs.values())


def _scheduler_block(config: Any, groups: list[Any]) -> int:
    """Tokens of the scheduler's block once the engine runs.

    vLLM's engine core takes the smallest of the groups' blocks, and then, in a process of its own, checks
    its configuration again, where some platforms put their default back.
    """
    cache = config.cache_config
    cache.block_size = min((g.kv_cache_spec.block_size for g in groups), default=cache.block_size)
    config.__post_init__()
    return int(cache.block_size)


def unpadded_bytes(group: Any) -> int:
    """Bytes that one rank stores for one block of a group: its layers' pages without padding."""
    spec = group.kv_cache_spec
    each = getattr(spec, "kv_cache_specs", None)  # layers of one kind and different sizes
    specs = list(each.values()) if isinstance(each, Mapping) else [spec] * len(group.layer_names)
    return sum(dataclasses.replace(one, page_size_padded=None).page_size_bytes for one in specs)


def _tokens(config: Any, spec: Any) -> int:
    from vllm.v1.core.kv_cache_utils import resolve_dcp_kv_block_size

    return int(resolve_dcp_kv_block_size(spec, config.parallel_config.decode_context_parallel_size))


def _blocks_per_chunk(extra: Mapping[str, Any], groups: list[Any]) -> int:
    """vLLM's rule: blocks, or tokens of a chunk."""
    if extra.get("block_size") is not None and groups:
        return max(1, int(extra["block_size"]) // int(groups[0].kv_cache_spec.block_size))
    return int(extra.get("blocks_per_chunk") or 1)


def main() -> None:
    """Write the answer; what goes wrong is an answer too."""
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    try:
        answer = look(arguments)
    except Exception as error:  # noqa: BLE001
        # boundary: the parent shows why
        answer = Answer(error=f"{type(error).__name__}: {error}")
    out.write_bytes(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
