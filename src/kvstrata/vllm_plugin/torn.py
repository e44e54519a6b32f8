"""Stores whose blocks and chunks disagree, and chunks that lack their first blocks."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from kvstrata.chunks.key import ChunkKey, group_of
from kvstrata.vllm_plugin.copies import GroupSlots
from kvstrata.vllm_plugin.worker import ArenaSlots


class StoreCheck:
    """Compares what vLLM is about to copy with the chunks it is for; withholds what is torn.

    Under memory pressure vLLM drops reallocated blocks from inside a chunk, so that block counts and
    chunks no longer agree and positions are ambiguous. Such a group's chunks are not stored. A first
    chunk may legitimately lack leading blocks that had left a window.

    Attributes:
        first_blocks: first valid block of chunks that are not whole.
    """

    def __init__(self) -> None:
        self.first_blocks: dict[ChunkKey, int] = {}
        self._torn: set[ChunkKey] = set()

    def check(
        self,
        sizes: Sequence[int],
        indices: Sequence[int],
        target: ArenaSlots,
        keys: Iterable[ChunkKey],
        position: Mapping[int, int],
        offset: Callable[[ChunkKey], int],
    ) -> None:
        """Look at one job.

        Args:
            sizes: device blocks of each group.
            indices: logical index of each group's first block.
            target: the arena side; emptied for groups that are withheld.
            keys: the chunks of the job.
            position: of each group, in vLLM's order.
            offset: byte offset of a chunk's slot.
        """
        by_group: dict[int, list[ChunkKey]] = {}
        for key in keys:
            by_group.setdefault(position[group_of(key)], []).append(key)
        for at, chunk_keys in by_group.items():
            slots = target.groups[at]
            skip = indices[at] % slots.blocks_per_chunk
            if sizes[at] != len(chunk_keys) * slots.blocks_per_chunk - skip:
                self._torn.update(chunk_keys)
                target.groups[at] = GroupSlots(
                    np.empty(0, np.int64),
                    slots.blocks_per_chunk,
                    slots.block_bytes,
                    slots.rank_offsets,
                )
            elif skip:
                first = next(key for key in chunk_keys if offset(key) == slots.offsets[0])
                self.first_blocks[first] = skip

    def torn(self, keys: Collection[ChunkKey], success: bool = True) -> frozenset[ChunkKey]:
        """Those of a job that has ended whose bytes are not usable."""
        found = frozenset(keys if not success else self._torn.intersection(keys))
        self._torn.difference_update(found)
        return found

    def ended(self, keys: Collection[ChunkKey]) -> None:
        """The job is forgotten."""
        for key in self.first_blocks.keys() & keys if self.first_blocks else ():
            del self.first_blocks[key]

    def clear(self) -> None:
        """All jobs are forgotten."""
        self._torn.clear()
        self.first_blocks.clear()
