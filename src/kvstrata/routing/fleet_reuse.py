"""What every replica could reuse of a prompt, from one walk: the fast form of `routing.reuse`.

It answers the same as `find_reuse`, for all replicas of a fleet index at once, and is tested to. A query
is a walk still, not a search: blocks of one prompt are independent look-ups whose cache misses overlap, so
8 192 blocks cost less than a tree's search would save; see docs/benchmarks.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kvstrata.chunks.geometry import GroupGeometry, GroupKind, ceil_div
from kvstrata.fleet.index import FleetIndex
from kvstrata.fleet.table import Numbers, Words
from kvstrata.routing import decision
from kvstrata.routing.fleet_columns import (
    FULL_KIND,
    LOAD_CAP,
    LOCAL_KIND,
    ROOM,
    SEGMENT,
    STATE_KIND,
    TOKENS,
    WINDOW_KIND,
)
from kvstrata.routing.fleet_rule import answer
from kvstrata.routing.shape import MEMORY, STORAGE, ModelShape

_KINDS = {
    GroupKind.FULL: FULL_KIND,
    GroupKind.WINDOW: WINDOW_KIND,
    GroupKind.LOCAL: LOCAL_KIND,
    GroupKind.STATE: STATE_KIND,
}


@dataclass(frozen=True)
class FleetReuse:
    """The answer for all replicas; arrays are indexed by a replica's number.

    Attributes:
        device: int64[replicas], tokens that the device's cache alone spares.
        memory: int64[replicas], with host memory too.
        storage: int64[replicas], with storage too.
        blocks: int64[2, 2, groups, replicas], blocks that are loaded to resume at `memory` and at
            `storage`, from memory and from storage.
        groups: those that tiers keep, in the order of `blocks`.
    """

    device: Numbers
    memory: Numbers
    storage: Numbers
    blocks: Numbers
    groups: tuple[GroupGeometry, ...]

    @property
    def loaded_bytes(self) -> Numbers:
        """int64[2, 2, replicas]: as `blocks`, over all groups, in bytes."""
        sizes = np.array([group.block_bytes for group in self.groups], np.int64)
        found: Numbers = np.einsum("tsgr,g->tsr", self.blocks, sizes)
        return found

    def brief(self, replica: int) -> decision.Reuse:
        """One replica's, as policies take it, but without `Reach.loads`."""
        device, memory, storage = self._tokens[replica]
        more = most = reach = decision.Reach(device)
        if storage > device:
            alone, passing, stored = self._bytes[replica]
            if memory > device:
                more = most = decision.Reach(memory, alone)
            if storage > memory:
                most = decision.Reach(storage, passing, stored)
        return decision.Reuse(reach, more, most)

    @cached_property
    def _tokens(self) -> list[tuple[int, int, int]]:
        return list(
            zip(self.device.tolist(), self.memory.tolist(), self.storage.tolist(), strict=True)
        )

    @cached_property
    def _bytes(self) -> list[tuple[int, int, int]]:
        loaded = self.loaded_bytes
        columns = loaded[0, 0].tolist(), loaded[1, 0].tolist(), loaded[1, 1].tolist()
        return list(zip(*columns, strict=True))

    def of(self, replica: int) -> decision.Reuse:
        """One replica's, as policies take it."""
        return decision.Reuse(
            decision.Reach(int(self.device[replica])),
            self._reach(0, int(self.memory[replica]), replica),
            self._reach(1, int(self.storage[replica]), replica),
        )

    def _reach(self, tiers: int, tokens: int, replica: int) -> decision.Reach:
        loads = []
        moved = [0, 0]
        for source, name in enumerate((MEMORY, STORAGE)):
            counts = self.blocks[tiers, source, :, replica].tolist()
            for group, count in zip(self.groups, counts, strict=True):
                if count:
                    size = count * group.block_bytes
                    covered = count * group.tokens_per_block
                    loads.append(decision.Load(name, group.group, covered, size))
                    moved[source] += size
        return decision.Reach(tokens, moved[0], moved[1], tuple(loads))


class ReuseQuery:
    """Asks a fleet index about prompts of one model. Keeps its working memory; for one thread at a time.

    Args:
        shape: of the model, as all replicas that are asked about run it.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        kept = [group for group in shape.groups if group.group in shape.tiered]
        windowed = [group for group in kept if group.windowed]
        windowed.sort(key=lambda group: group.window_chunks(0), reverse=True)
        self.groups = tuple([group for group in kept if not group.windowed] + windowed)
        alike = alike_groups(shape.groups)
        rows = [_device_facts(shape, groups) for groups in alike]
        rows += [_tier_facts(group) for group in self.groups for _ in range(2)]
        once = len(shape.groups) == 1 or (len(alike) == 2 and alike[0][0].kind is GroupKind.FULL)
        self._finest = min(row[1] for row in rows)
        rows.append(
            [shape.alignment_tokens, once, shape.step, 0, -1, shape.hash_tokens, len(alike), 0]
        )
        self._facts: Numbers = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for row, values in zip(self._facts, rows, strict=True):
            row[: len(values)] = values
        self._make_room(1, SEGMENT)

    def ask(
        self,
        index: FleetIndex,
        hashes: Words,
        tokens: int,
        *,
        load_cap: int | None = None,
        among: Words | None = None,
    ) -> FleetReuse:
        """What each replica could reuse of a prompt, now.

        Args:
            index: of the fleet.
            hashes: uint64[n], contiguous: the low 64 bits of vLLM's block hashes of the prompt's whole
                blocks of `shape.hash_tokens` tokens, from its beginning. Fewer than there are: the rest
                counts as held nowhere.
            tokens: of the prompt.
            load_cap: the request's own cap on tokens to load (`max_load_tokens`), or None.
            among: uint64[words], replicas asked about, as bits; None for all. The others get zeros.
        """
        words = index.table.words
        units = len(hashes) * self.shape.hash_tokens // self._finest
        if words != self._masks.shape[1] or units > self._facts[-1, ROOM]:
            self._make_room(words, units)
        self._facts[-1, TOKENS] = tokens
        self._facts[-1, LOAD_CAP] = -1 if load_cap is None else load_cap
        reach = np.empty((3, 64 * words), np.int64)
        blocks = np.empty((2, 2, len(self.groups), 64 * words), np.int64)
        answer(
            index.table.rows,
            index.table.seeds,
            index.sums,
            index.mounts,
            hashes,
            self._facts,
            self._masks,
            self._filled,
            index.alive if among is None else index.alive & among,
            reach,
            blocks,
        )
        return FleetReuse(reach[0], reach[1], reach[2], blocks, self.groups)

    def _make_room(self, words: int, units: int) -> None:
        segments = 1 << (ceil_div(units, SEGMENT) - 1).bit_length()
        columns = len(self._facts) - 1
        shape = columns, words, segments * (2 * SEGMENT + 1)
        self._masks: Words = np.empty(shape, np.uint64)
        self._filled: npt.NDArray[np.uint8] = np.zeros((columns, segments), np.uint8)
        self._facts[-1, ROOM] = segments * SEGMENT


def alike_groups(groups: Sequence[GroupGeometry]) -> list[list[GroupGeometry]]:
    """Groups that vLLM looks up together in the device's cache, full attention first."""
    found: dict[tuple[GroupKind, int, int, int], list[GroupGeometry]] = {}
    for group in groups:
        spec = (group.kind, group.tokens_per_block, group.window_tokens, group.extra_tokens)
        found.setdefault(spec, []).append(group)
    return sorted(found.values(), key=lambda alike: alike[0].kind is not GroupKind.FULL)


def warm() -> None:
    """Compile what queries and the index need, or take it from numba's cache: seconds, once."""
    index = FleetIndex()
    replica = index.add("warm")
    hashes = np.arange(1, 3, dtype=np.uint64)
    index.table.put(0, replica, hashes)
    index.table.take(0, replica, hashes)
    index.table.take_all(np.zeros(256, np.bool_), replica)
    index.table.widen(2)
    group = GroupGeometry(0, GroupKind.FULL, 16, 1, (1,))
    ReuseQuery(ModelShape.make([group], 16, 16)).ask(index, hashes, 32)


def _device_facts(shape: ModelShape, groups: Sequence[GroupGeometry]) -> list[int]:
    first = groups[0]
    unit, need = first.tokens_per_block, 1
    if first.kind is GroupKind.STATE:
        unit = min(unit, shape.alignment_tokens)
    elif first.kind is GroupKind.WINDOW:
        need = max(ceil_div(first.window_tokens - 1, unit), 1)
    row = [_KINDS[first.kind], unit, need, first.window_tokens, shape.alignment_tokens, 1, 0]
    return [*row, first.tokens_per_block, len(groups), *(group.group for group in groups)]


def _tier_facts(group: GroupGeometry) -> list[int]:
    chunk = group.tokens_per_chunk
    need = group.window_chunks(0) if group.windowed else 1
    reach = -1
    if group.kind is GroupKind.WINDOW:
        reach = group.window_tokens - 1 + group.extra_tokens
    row = [_KINDS[group.kind], chunk, need, group.window_tokens, 1, group.blocks_per_chunk, reach]
    return [*row, group.tokens_per_block, 1, group.group]
