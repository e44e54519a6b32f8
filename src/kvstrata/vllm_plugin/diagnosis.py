"""The doctor's look at an engine: facts from vLLM's configuration, and findings in the log at its start."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.doctor.engine import check_engine
from kvstrata.doctor.facts import EngineFacts, NamespaceFacts
from kvstrata.doctor.findings import CODES, Finding, Severity, ordered
from kvstrata.doctor.places import check_path
from kvstrata.doctor.probe import probe
from kvstrata.doctor.replicas import check_namespaces
from kvstrata.options import Options
from kvstrata.tiers.catalog import iter_namespaces

logger = logging.getLogger("vllm.kvstrata")

LEVELS = {
    Severity.ERROR: logging.ERROR,
    Severity.WARNING: logging.WARNING,
    Severity.NOTE: logging.INFO,
}
_WINDOWED_TYPES = frozenset({"sliding_attention", "chunked_attention"})


def gather(
    vllm_config: Any,
    geometries: Sequence[GroupGeometry],
    layers: Sequence[int],
    options: Options | None,
    **known: Any,
) -> EngineFacts:
    """What the doctor asks of an engine.

    Args:
        vllm_config: vLLM's `VllmConfig`.
        geometries: of the offloaded groups.
        layers: number of layers of each of them.
        options: ours; None without our connector.
        known: fields of `EngineFacts` that the caller knows better.
    """
    cache, model = vllm_config.cache_config, vllm_config.model_config
    transfer = vllm_config.kv_transfer_config
    extra = getattr(transfer, "kv_connector_extra_config", None) or {}
    facts: dict[str, Any] = {
        "model": str(model.model),
        "groups": tuple(geometries),
        "layers": tuple(layers),
        "max_model_len": int(model.max_model_len),
        "scheduler_block": int(cache.block_size),
        "merged_layers": _merged_layers(vllm_config, geometries),
        "prefix_caching": bool(cache.enable_prefix_caching),
        "retention": getattr(cache, "prefix_cache_retention_interval", None),
        "hash_algorithm": str(cache.prefix_caching_hash_algo),
        "hash_seed": os.environ.get("PYTHONHASHSEED"),
        "prompts_only": bool(extra.get("offload_prompt_only", False)),
        "lora": getattr(vllm_config, "lora_config", None) is not None,
        "sleep_mode": bool(getattr(model, "enable_sleep_mode", False)),
        "shutdown_timeout": int(getattr(vllm_config, "shutdown_timeout", 0)),
        "connector": getattr(transfer, "kv_connector", None),
        "role": str(getattr(transfer, "kv_role", "kv_both")),
        "load_failure_policy": str(getattr(transfer, "kv_load_failure_policy", "fail")),
    }
    if options is not None:
        facts |= {
            "arena_bytes": options.memory,
            "path": options.path,
            "read_only": options.read_only,
        }
    return EngineFacts(**{**facts, **known})


def _merged_layers(vllm_config: Any, geometries: Sequence[GroupGeometry]) -> int:
    """Layers with a window that vLLM keeps as full attention, because its hybrid manager is off."""
    scheduler = vllm_config.scheduler_config
    if not getattr(scheduler, "disable_hybrid_kv_cache_manager", False):
        return 0
    if any(geometry.kind is not GroupKind.FULL for geometry in geometries):
        return 0
    config = getattr(vllm_config.model_config, "hf_text_config", None)
    types = getattr(config, "layer_types", None) or ()
    return sum(1 for kind in types if kind in _WINDOWED_TYPES)


def log_diagnosis(
    vllm_config: Any,
    geometries: Sequence[GroupGeometry],
    layers: Sequence[int],
    options: Options,
    **known: Any,
) -> list[Finding]:
    """Say once, at an engine's start, what makes its hits zero, wrong or few. Returns what was found.

    Args:
        vllm_config, geometries, layers, known: see `gather`.
        options: the engine's.
    """
    try:
        facts = gather(vllm_config, geometries, layers, options, **known)
        findings = check_engine(facts)
        if options.path is not None:
            largest = max((g.payload_bytes for g in geometries), default=0)
            place = probe(options.path, largest, write=not options.read_only)
            findings += check_path(place, None, options.read_only)
            others = check_namespaces(describe_root(options.path, facts.model))
            _log(
                ordered(others), logging.INFO
            )  # what others left behind is no fault of this engine
    except Exception:  # boundary: an engine that could serve must not fail for want of advice
        logger.exception("kvstrata: the doctor failed; the engine is not affected")
        return []
    _log(ordered(findings))
    return findings


def _log(findings: Iterable[Finding], level: int | None = None) -> None:
    for finding in findings:
        logger.log(
            LEVELS[finding.severity] if level is None else level,
            "kvstrata doctor: %s: %s: %s. %s Remedy: %s.",
            finding.code,
            finding.subject,
            finding.message,
            CODES[finding.code].means,
            finding.remedy,
        )


def describe_root(path: str, model: str) -> list[NamespaceFacts]:
    """Namespaces of `model` below `path`.

    Raises:
        OSError: the directory cannot be read.
    """
    name = model.rstrip("/").rsplit("/", 1)[-1]
    return [
        NamespaceFacts(found.path.name, found.model, found.covers)
        for found in iter_namespaces(Path(path))
        if found.model == name
    ]
