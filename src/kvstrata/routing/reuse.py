"""What one replica need not compute of a prompt: how much, from which tier, and what has to be moved.

The plain rule, for one replica. A request resumes where the device's cache ends (`device_boundary`), or
further right where the tiers allow it (`tier_boundary`); a load then brings, of each group, exactly what a
resume there reads and the device does not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstrata.chunks.geometry import GroupGeometry, ceil_div
from kvstrata.routing.boundary import Boundary, Cut, Has, device_boundary, last_hash, tier_boundary
from kvstrata.routing.shape import MEMORY, NOTHING, STORAGE, Held, Holdings, ModelShape


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """What one group brings from one tier.

    Attributes:
        tier: "memory" or "storage"; what both hold comes from memory.
        group: KV cache group.
        chunks: read, whole or from their first needed block on.
        tokens: that the blocks read cover.
        bytes: of the blocks read, over all ranks.
    """

    tier: str
    group: int
    chunks: int
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a prompt's KV reaches with some of the tiers.

    Attributes:
        tokens: the boundary.
        loads: what is moved for it, by tier and group; none for the device alone.
        cuts: what kept it from reaching further; those of the tiers only, where tiers are asked.
    """

    tokens: int
    loads: tuple[GroupLoad, ...] = ()
    cuts: tuple[Cut, ...] = ()

    def bytes_from(self, tier: str) -> int:
        """Bytes that come from a tier."""
        return sum(load.bytes for load in self.loads if load.tier == tier)


@dataclass(frozen=True, slots=True)
class ReplicaReuse:
    """What one replica could reuse of a prompt; each boundary is at least as far as the one before.

    Attributes:
        device: with the device's cache alone.
        memory: with host memory too.
        storage: with storage too.
        doubts: see `ModelShape.doubts`.
    """

    device: Reached
    memory: Reached
    storage: Reached
    doubts: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the engine would say the same, to the token."""
        return not self.doubts


def find_reuse(
    shape: ModelShape,
    hashes: Sequence[int] | npt.NDArray[np.uint64],
    tokens: int,
    holdings: Holdings,
    load_cap: int | None = None,
) -> ReplicaReuse:
    """What a replica can reuse of a prompt, now.

    Args:
        shape: of the model that the replica runs.
        hashes: of the prompt's whole blocks of `shape.hash_tokens` tokens, from its beginning: the low 64
            bits of vLLM's block hashes. Fewer than there are: the rest counts as held nowhere.
        tokens: of the prompt.
        holdings: what the replica holds, by tier.
        load_cap: the request's own cap on tokens to load (`max_load_tokens`), or None.
    """
    values = [int(value) for value in hashes]
    device = device_boundary(shape, tokens, _has(values, holdings.device))
    memory = _has(values, holdings.memory)
    storage = _has(values, holdings.storage)

    def either(group: GroupGeometry, index: int) -> bool:
        return memory(group, index) or storage(group, index)

    reached = Reached(device.tokens, (), device.cuts)
    return ReplicaReuse(
        reached,
        reach(shape, tokens, reached, memory, memory, load_cap),
        reach(shape, tokens, reached, either, memory, load_cap),
        shape.doubts,
    )


def explain(reuse: ReplicaReuse) -> dict[str, Any]:
    """The same as plain data for JSON: for each set of tiers the boundary, what is moved, what was short."""
    told: dict[str, Any] = {
        name: {
            "tokens": reached.tokens,
            "loads": [
                {
                    "tier": load.tier,
                    "group": load.group,
                    "chunks": load.chunks,
                    "tokens": load.tokens,
                    "bytes": load.bytes,
                }
                for load in reached.loads
            ],
            "cuts": [
                {
                    "groups": list(cut.groups),
                    "kind": cut.kind.value,
                    "before": cut.before,
                    "after": cut.after,
                }
                for cut in reached.cuts
            ],
        }
        for name, reached in (
            ("device", reuse.device),
            ("memory", reuse.memory),
            ("storage", reuse.storage),
        )
    }
    return {**told, "exact": reuse.exact, "doubts": list(reuse.doubts)}


def _has(hashes: Sequence[int], held: Held) -> Has:
    def has(group: GroupGeometry, index: int) -> bool:
        return index < len(hashes) and hashes[index] in held.get(group.group, NOTHING)

    return has


def reach(
    shape: ModelShape,
    tokens: int,
    device: Reached,
    has: Has,
    in_memory: Has,
    load_cap: int | None = None,
) -> Reached:
    """How far the tiers below the device reach, and what they bring for that.

    Args:
        shape: of the model.
        tokens: of the prompt.
        device: what the device alone reaches.
        has: asks all tiers that count.
        in_memory: asks memory; what it does not hold comes from storage.
        load_cap: see `find_reuse`.
    """
    # A hit that ends inside a block is given up where the tiers reach further.
    computed = device.tokens // shape.step * shape.step
    found: Boundary = tier_boundary(shape, tokens, computed, has, load_cap)
    if found.tokens <= device.tokens:
        return Reached(device.tokens, (), found.cuts)
    loads = tuple(
        load
        for group in shape.groups
        if group.group in shape.tiered
        for load in _loads(shape, group, computed, found.tokens, in_memory)
    )
    return Reached(found.tokens, loads, found.cuts)


def _loads(
    shape: ModelShape, group: GroupGeometry, computed: int, boundary: int, in_memory: Has
) -> list[GroupLoad]:
    """What a resume at `boundary` reads of one group beyond `computed`, by tier."""
    chunk = group.tokens_per_chunk
    first = max(computed, group.first_token(boundary))
    skipped = first % chunk // group.tokens_per_block
    blocks = {MEMORY: 0, STORAGE: 0}
    chunks = {MEMORY: 0, STORAGE: 0}
    for index in range(first // chunk, ceil_div(boundary, chunk)):
        tier = MEMORY if in_memory(group, last_hash(shape, group, index)) else STORAGE
        chunks[tier] += 1
        blocks[tier] += group.blocks_per_chunk - skipped
        skipped = 0
    return [
        GroupLoad(
            tier,
            group.group,
            chunks[tier],
            blocks[tier] * group.tokens_per_block,
            blocks[tier] * group.block_bytes,
        )
        for tier in (MEMORY, STORAGE)
        if chunks[tier]
    ]
