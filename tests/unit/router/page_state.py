"""What `/admin/state` may say, made by hand: a hybrid model on three replicas, one of which drifts."""

import random
from typing import Any

MIB = 1 << 20
NOW = 1_760_000_000.0
NAMES = ("a", "b", "c")
MODEL = "gemma3-hybrid"
TERMS = (
    "wait", "overhead", "compute", "attention", "memory_latency", "memory_transfer",
    "storage_latency", "storage_transfer", "overlap", "doubt", "fault", "burden",
)  # fmt: skip


def replica(name: str, **changes: Any) -> dict[str, Any]:
    """One replica that is well."""
    groups = [
        {"group": 0, "kind": "full", "block_tokens": 16, "window": 0},
        {"group": 1, "kind": "sliding_window", "block_tokens": 16, "window": 1024},
    ]
    holds = [
        {"tier": tier, "group": group, "blocks": blocks, "tokens": 16 * blocks, "bytes": 65536 * blocks}
        for tier, sizes in (
            ("device", (3000, 700)),
            ("memory", (21_000, 5_200)),
            ("storage", (84_000, 20_100)),
        )
        for group, blocks in enumerate(sizes)
    ]  # fmt: skip
    index = {
        "trust": "synced", "why": "", "age_seconds": 0.0, "behind": 0, "ranks": 1,
        "groups": groups, "holds": holds,
    }  # fmt: skip
    learned = {
        "overhead_seconds": 0.0061, "prefill_tokens_per_s": 10_450.0, "attention_doubles_at": 41_000.0,
        "memory_latency_seconds": 0.0004, "memory_bytes_per_s": 11.2e9,
        "storage_latency_seconds": 0.0021, "storage_bytes_per_s": 1.9e9, "wait_factor": 1.04,
        "factors": {}, "requests": 812, "outliers": 3, "changes": 0, "wait_seconds": 0.21,
    }  # fmt: skip
    accuracy = {
        "cached_as_predicted": 790, "cached_less": 9, "cached_more": 13,
        "predicted_tokens": 6_190_000, "cached_tokens": 6_174_000, "disagreeing": 0.02,
        "claims_broken": 0.02, "finds_unforeseen": 0.01, "ttft_bias": 0.04, "ttft_error": 0.19,
        "alarm": False, "alarm_of": None, "resyncs": 0,
    }  # fmt: skip
    found = {
        "name": name, "url": f"http://10.0.0.{7 + len(name)}:8000", "state": "up", "why": "",
        "in_flight": 4, "running": 3, "waiting": 1, "models": [MODEL],
        "index": index, "learned": learned, "accuracy": accuracy,
    }  # fmt: skip
    return {**found, **changes}


def drifting(name: str) -> dict[str, Any]:
    """One whose index does not keep its word."""
    found = replica(name)
    accuracy = {
        **found["accuracy"], "cached_less": 204, "disagreeing": 0.61, "claims_broken": 0.61,
        "ttft_bias": 0.72, "ttft_error": 0.88, "alarm": True, "alarm_of": "less", "resyncs": 2,
    }  # fmt: skip
    index = {
        **found["index"], "trust": "stale", "why": "batches 17 to 19 are lost",
        "age_seconds": 74.0, "behind": 3, "holds": found["index"]["holds"][:4],
    }  # fmt: skip
    return {**found, "accuracy": accuracy, "index": index}


def appraisal(draw: random.Random, name: str, tokens: int, share: float) -> dict[str, Any]:
    """What `seconds` could think of one replica."""
    source = draw.choice(["device", "memory", "storage"]) if share else "none"
    reused = int(tokens * share) // 16 * 16
    device = reused if source == "device" else reused // 4 // 16 * 16
    memory = (reused - device) * 4096 if source == "memory" else 0
    storage = (reused - device) * 4096 if source == "storage" else 0
    terms = {
        **dict.fromkeys(TERMS, 0.0),
        "wait": draw.uniform(0, 0.3),
        "overhead": 0.006,
        "compute": (tokens - reused) / 10_450,
        "attention": (tokens - reused) * (tokens + reused) / 41_000 / 10_450,
        "memory_latency": 0.0004 if memory or storage else 0.0,
        "memory_transfer": (memory + storage) / 11.2e9,
        "storage_latency": 0.0021 if storage else 0.0,
        "storage_transfer": storage / 1.9e9,
        "burden": draw.uniform(0, 0.05),
    }
    return {
        "replica": name, "score": sum(terms.values()), "terms": terms, "tokens": reused,
        "device_tokens": device, "predicted_tokens": 0, "source": source, "memory_bytes": memory,
        "storage_bytes": storage, "load_cap": None, "reuse": None, "trust": 1.0, "index_age": 0.0,
    }  # fmt: skip


def decision(draw: random.Random, number: int) -> dict[str, Any]:
    """The record of one request."""
    tokens = int(draw.lognormvariate(8.3, 0.8))
    considered = [appraisal(draw, name, tokens, draw.choice([0, 0.5, 0.8, 0.95])) for name in NAMES]
    best, second = sorted(considered, key=lambda one: one["score"])[:2]
    first = best["score"] - best["terms"]["burden"]
    outcome = {
        "replica": best["replica"], "status": 200, "ttft": first * draw.lognormvariate(0.02, 0.2),
        "seconds": 2.0, "cached_tokens": best["tokens"], "failed": False, "tries": 1,
        "streamed": True,
    }  # fmt: skip
    return {
        "id": f"{number:032x}", "at": NOW - number * 0.8, "path": "/v1/chat/completions",
        "model": MODEL, "policy": "seconds", "reason": "reuse" if best["tokens"] else "cold",
        "chosen": best["replica"], "runner_up": second["replica"], "tokens": tokens,
        "load_cap": None, "doubt": "", "candidates": 3, "considered": considered,
        "outcome": outcome if number else None, "earlier": [],
    }  # fmt: skip


def sample(seed: int = 1, decisions: int = 100) -> dict[str, Any]:
    """A whole state; the newest request is not answered yet."""
    draw = random.Random(seed)
    return {
        "router": {
            "id": "5eed", "version": "0.1.0", "policy": "seconds", "started": NOW - 8412.0,
            "now": NOW, "waiting": 0, "connections": 31, "in_flight": 12, "buffered_bytes": 3 * MIB,
        },
        "policy": {"policy": "seconds"},
        "replicas": [replica("a"), replica("b", in_flight=6), drifting("c")],
        "tokens": {
            "device": 9_412_000, "memory": 5_010_000, "storage": 2_044_000, "computed": 6_730_000,
        },
        "decisions": [decision(draw, number) for number in range(decisions)],
    }  # fmt: skip
