"""What an engine's events tell of its KV cache groups, where the engine itself tells nothing. Pure."""

import math
from dataclasses import dataclass

from kvstrata.chunks.geometry import GroupKind
from kvstrata.fleet.hashing import Recipe
from kvstrata.wire.batches import Batch, Stored
from kvstrata.wire.snapshot import EngineFacts, GroupFacts

KINDS = {
    "full_attention": GroupKind.FULL,
    "mla_attention": GroupKind.FULL,
    "sink_full_attention": GroupKind.FULL,
    "sliding_window": GroupKind.WINDOW,
    "sliding_window_mla": GroupKind.WINDOW,
    "chunked_local_attention": GroupKind.LOCAL,
    "mamba": GroupKind.STATE,
}
"""vLLM's names of attention kinds; others are not known here."""
DEVICE = "GPU"
MOST_GROUPS = 256


@dataclass(slots=True)
class _Group:
    kind: str | None
    block_tokens: int
    window: int
    tiered: bool = False


class Learned:
    """Groups as the events of one engine describe them."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}

    def look(self, batch: Batch) -> None:
        """Take in one batch."""
        for event in batch.events:
            if not isinstance(event, Stored):
                continue
            group = self._groups.get(event.group)
            if group is not None and event.medium != DEVICE:
                group.tiered = True
            elif event.medium == DEVICE and event.block_tokens > 0:
                if group is None and len(self._groups) >= MOST_GROUPS:
                    continue
                tiered = group.tiered if group else False
                self._groups[event.group] = _Group(
                    event.kind, event.block_tokens, event.window or 0, tiered
                )

    def facts(self, recipe: Recipe | None) -> tuple[EngineFacts | None, str]:
        """What is known of the engine by now, or None and why.

        Bytes of blocks are not in events, so they are 0; a tier's chunks are taken to be single blocks, as
        vLLM's own tiers have them by default.

        Args:
            recipe: of its hashes, if it was found.
        """
        if not self._groups:
            return None, "no event has described a group yet"
        found = []
        for index, group in sorted(self._groups.items()):
            alone = group.kind is None and len(self._groups) == 1
            kind = GroupKind.FULL if alone else KINDS.get(group.kind or "")
            if kind is None:
                return None, f"group {index}: attention of kind {group.kind!r} is not known"
            windowed = kind in (GroupKind.WINDOW, GroupKind.LOCAL)
            if windowed and group.window < 1:
                return None, f"group {index}: events do not say how long its window is"
            window = group.window if windowed else 0
            chunk = 1 if group.tiered else 0
            found.append(GroupFacts(index, kind.value, group.block_tokens, chunk, 0, window))
        sizes = [group.tokens_per_block for group in found]
        return (
            EngineFacts(
                model="",
                hash_algorithm=recipe.algorithm if recipe else "",
                none_hash=recipe.none_hash if recipe else b"",
                hash_tokens=recipe.hash_tokens if recipe else math.gcd(*sizes),
                alignment_tokens=math.lcm(*sizes),
                groups=tuple(found),
            ),
            "",
        )
