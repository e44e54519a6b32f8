"""What `lab.bench.batch_load` expects and concludes, pure: bytes by the formula, times from noted events."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lab.recipes import Recipe

PROBE = "KVSTRATA_LAB_PROBE"
"""Environment variable: path of the file of events that `lab.bench.batch_probe` writes."""
FORGET = "lab_forget_memory"
HOLD = "lab_hold"
"""Keys of a request's `kv_transfer_params`; see `lab.bench.batch_probe`."""

BLOCK = 128
"""Tokens of a device block, and of a chunk."""
FLOAT_BYTES = 4
MODES = ("on", "off")
"""vLLM's hybrid KV cache manager on, and off: every layer is kept as if it had full attention."""
CASES = ("memory", "storage", "storage_cold")


def layer_block_bytes(recipe: Recipe) -> int:
    """Bytes of one layer's keys and values of one block."""
    return 2 * recipe.key_value_heads * recipe.head_size * FLOAT_BYTES * BLOCK


def blocks_needed(recipe: Recipe, tokens: int, hybrid: bool) -> int:
    """Blocks of one layer each that a request must have to resume after `tokens` tokens.

    A layer with full attention needs all of them; one with a window only those that its next token, at
    position `tokens`, still sees: the last `window - 1` tokens.

    Args:
        recipe: of the model.
        tokens: a multiple of the block.
        hybrid: whether windows are kept as windows.
    """
    assert tokens % BLOCK == 0
    every = tokens // BLOCK
    tail = every - max(0, tokens - (recipe.window - 1)) // BLOCK if hybrid else every
    return sum(every if kind == "full_attention" else tail for kind in recipe.layer_types)


def bytes_needed(recipe: Recipe, tokens: int, hybrid: bool) -> int:
    """Bytes of `blocks_needed`: what the load of one prompt reads, no more and no less."""
    return blocks_needed(recipe, tokens, hybrid) * layer_block_bytes(recipe)


@dataclass(frozen=True)
class Batch:
    """One batch, measured.

    Attributes:
        load_ms: from the scheduler's first look at the batch to the last chunk on the device.
        ttft_ms: from the batch's release to the last request's first token at the client.
        device_bytes: copied from the arena to the device.
        file_bytes: read from files.
    """

    load_ms: float
    ttft_ms: float
    device_bytes: int
    file_bytes: int


def load_of(lines: Iterable[str], requests: int) -> tuple[float, int]:
    """Milliseconds and bytes of a batch's load.

    Args:
        lines: the probe's events since before the batch.
        requests: of the batch; each must have been loaded once.

    Raises:
        ValueError: they were not.
    """
    events = [json.loads(line) for line in lines]
    asked = [event["at"] for event in events if event["event"] == "asked"]
    loads = [event for event in events if event["event"] == "loaded"]
    if (len(asked), len(loads)) != (requests, requests):
        raise ValueError(f"{len(loads)} loads of {len(asked)} requests, expected {requests}")
    ended = max(event["ended"] for event in loads)
    return (ended - min(asked)) * 1000, sum(event["nbytes"] for event in loads)


Samples = Mapping[tuple[str, str], Sequence[Batch]]
"""Batches by case and mode."""


def speedup(samples: Samples, case: str, what: str) -> float:
    """Median of mode "off" over median of mode "on".

    Args:
        samples: with both modes of the case.
        case: one of `CASES`.
        what: attribute of `Batch`.
    """
    off, on = (
        statistics.median(getattr(batch, what) for batch in samples[case, mode])
        for mode in ("off", "on")
    )
    return float(off / on)


def bytes_over_formula(samples: Samples, expected: Mapping[str, int]) -> float:
    """Largest ratio of bytes moved to bytes needed, over all batches: from files where there are any.

    Args:
        samples: batches.
        expected: bytes that a batch needs, by mode.
    """
    ratios = []
    for (case, mode), batches in samples.items():
        for batch in batches:
            ratios.append(batch.device_bytes / expected[mode])
            if case != "memory":
                ratios.append(batch.file_bytes / expected[mode])
    return max(ratios)
