"""What the reuse rule has to know of a model and of its engine."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Self

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.wire.snapshot import EngineFacts, Place

DEVICE, MEMORY, STORAGE = "device", "memory", "storage"
TIERS = (DEVICE, MEMORY, STORAGE)
MEDIA = {"GPU": DEVICE, "CPU": MEMORY, "STORAGE": STORAGE}
"""Tier of each medium that events name; blocks in others are of no use to a request."""

NOTHING: frozenset[int] = frozenset()
Held = Mapping[int, Container[int]]
"""For each KV cache group the hashes that one tier holds; a group that is left out holds none."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """How an engine keeps one model's KV cache.

    Attributes:
        groups: every group that shares prefixes, by index, as vLLM orders them.
        hash_tokens: tokens of one hash; every group's block is a multiple.
        alignment_tokens: hits in the device's cache are multiples of it.
        step: tokens of vLLM's scheduler block, where whole blocks of all groups end; loads begin there.
        tiered: indices of the groups that the tiers keep; without any, nothing is loaded.
        doubts: why an answer may be off; empty when the rule is the engine's own to the token.
    """

    groups: tuple[GroupGeometry, ...]
    hash_tokens: int
    alignment_tokens: int
    step: int
    tiered: frozenset[int]
    doubts: tuple[str, ...] = ()

    @classmethod
    def of(cls, facts: EngineFacts) -> Self:
        """What an engine told of itself.

        Raises:
            ValueError: a group of a kind that is not known here, or sizes that are none.
        """
        sizes = [facts.hash_tokens, facts.alignment_tokens]
        sizes += [
            size for g in facts.groups for size in (g.tokens_per_block, g.blocks_per_chunk or 1)
        ]
        if not facts.groups or min(sizes) < 1:
            raise ValueError("an engine without groups, or with blocks of no tokens")
        groups = []
        for told in facts.groups:
            kind = GroupKind(told.kind)
            if (kind in (GroupKind.WINDOW, GroupKind.LOCAL)) != (told.window_tokens > 0):
                raise ValueError(f"group {told.group}: a window of {told.window_tokens} tokens")
            if told.tokens_per_block % facts.hash_tokens:
                raise ValueError(f"group {told.group}: blocks that are no multiple of a hash")
            if facts.alignment_tokens % told.tokens_per_block:
                raise ValueError(f"group {told.group}: blocks across which hits are aligned")
            groups.append(
                GroupGeometry(
                    told.group,
                    kind,
                    told.tokens_per_block,
                    told.blocks_per_chunk or 1,
                    (max(told.block_bytes, 0),),
                    told.window_tokens,
                    max(told.extra_tokens, 0),
                )
            )
        tiered = frozenset(told.group for told in facts.groups if told.blocks_per_chunk > 0)
        return cls.make(groups, facts.hash_tokens, facts.alignment_tokens, tiered)

    @classmethod
    def make(
        cls,
        groups: list[GroupGeometry],
        hash_tokens: int,
        block_tokens: int,
        tiered: frozenset[int] = frozenset(),
    ) -> Self:
        """A shape from sizes.

        Args:
            groups: in vLLM's order.
            hash_tokens: tokens of one hash.
            block_tokens: vLLM's scheduler block size, a common multiple of the groups' blocks.
            tiered: indices of the groups that the tiers keep.
        """
        fine = _hits_inside_blocks(groups, hash_tokens)
        alignment = hash_tokens if fine else block_tokens
        return cls(
            tuple(groups),
            hash_tokens,
            alignment,
            block_tokens,
            tiered,
            _doubts(groups, alignment, tiered, fine),
        )

    @property
    def exact(self) -> bool:
        """Whether the rule is the engine's own, to the token."""
        return not self.doubts


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one replica can reach, tier by tier.

    Attributes:
        device: in the engine's own cache: the hash of a block.
        memory: in host memory: the hash of a chunk's last block.
        storage: in any storage that the replica mounts: as for memory.
    """

    device: Held
    memory: Held
    storage: Held

    @classmethod
    def of(cls, held: Mapping[Place, Container[int]]) -> Self:
        """Content by place, all of it within the replica's reach; see `wire.contents.Contents.held`."""
        tiers: dict[str, dict[int, _AnyOf]] = {tier: {} for tier in TIERS}
        for place, hashes in held.items():
            tier = MEDIA.get(place.medium)
            if tier is not None:
                there = tiers[tier].setdefault(place.group, _AnyOf())
                there.containers.append(hashes)
        return cls(tiers[DEVICE], tiers[MEMORY], tiers[STORAGE])


class _AnyOf:
    """What any of several containers holds."""

    def __init__(self) -> None:
        self.containers: list[Container[int]] = []

    def __contains__(self, value: object) -> bool:
        return any(value in container for container in self.containers)


def _hits_inside_blocks(groups: list[GroupGeometry], hash_tokens: int) -> bool:
    """Whether the device's cache also finds prefixes that end inside a block.

    vLLM's `partial_hash_hits_enabled`: some state covers several hashes ("align" mode: the other modes
    hash no finer than blocks), and no group with several hashes a block forbids it.
    """
    fine = [group for group in groups if group.tokens_per_block > hash_tokens]
    return (
        len(groups) > 1
        and any(group.kind is GroupKind.STATE for group in fine)
        and all(group.kind in (GroupKind.FULL, GroupKind.STATE) for group in fine)
    )


def _doubts(
    groups: list[GroupGeometry], alignment: int, tiered: frozenset[int], fine: bool
) -> tuple[str, ...]:
    found = []
    kept = [group for group in groups if group.group in tiered]
    if any(g.kind is GroupKind.LOCAL and g.tokens_per_block != alignment for g in groups):
        found.append("vLLM has no rule for chunked local attention beside blocks of other sizes")
    if fine and kept:
        found.append("hits inside a block are known on the device only; tiers may hold some more")
    if any(group.windowed and group.blocks_per_chunk > 1 for group in kept):
        found.append(
            "a chunk at a window's edge may hold only its last blocks, which no event says"
        )
    if len({g.tokens_per_chunk for g in kept if g.kind is GroupKind.FULL}) > 1:
        found.append(
            "full groups with chunks of several sizes: vLLM's answer depends on their order"
        )
    return tuple(found)
