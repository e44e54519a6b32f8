"""Where the tokens of a prompt came from, as far as a decision and its answer tell. Pure."""

import msgspec

from kvstrata.routing.decision import Appraisal


class Sources(msgspec.Struct, frozen=True, gc=False):
    """Tokens of prompts, by where their KV came from.

    Attributes:
        device: in the device's cache already.
        memory: loaded from host memory.
        storage: loaded from storage.
        computed: by the engine.
    """

    device: int = 0
    memory: int = 0
    storage: int = 0
    computed: int = 0

    def __add__(self, other: "Sources") -> "Sources":
        return Sources(
            self.device + other.device,
            self.memory + other.memory,
            self.storage + other.storage,
            self.computed + other.computed,
        )


def sources_of(appraisal: Appraisal, tokens: int, cached: int | None) -> Sources:
    """How a prompt's tokens split.

    Args:
        appraisal: of the replica that had it.
        tokens: of the prompt.
        cached: that the engine says it did not compute; None: as predicted.

    What the engine had beyond the prediction counts as the device's: nothing says where else it was.
    """
    had = min(max(appraisal.tokens if cached is None else cached, 0), tokens)
    device = min(appraisal.device_tokens, had)
    loaded = had - device
    foreseen = max(appraisal.tokens - appraisal.device_tokens, 0)
    if appraisal.source not in ("memory", "storage"):
        foreseen = 0
    device += max(loaded - foreseen, 0)
    loaded = min(loaded, foreseen)
    memory = loaded
    if appraisal.source == "storage":
        memory = round(loaded * _share_of_memory(appraisal, foreseen))
    return Sources(device, memory, loaded - memory, tokens - had)


def _share_of_memory(appraisal: Appraisal, foreseen: int) -> float:
    """Of a load that needs storage, the part that memory brings."""
    moved = appraisal.memory_bytes + appraisal.storage_bytes
    if moved:
        return appraisal.memory_bytes / moved
    if appraisal.reuse is None or not foreseen:
        return 0.0
    # An engine that does not tell the sizes of its blocks.
    reached = appraisal.reuse.memory.tokens - appraisal.device_tokens
    return min(max(reached / foreseen, 0.0), 1.0)
