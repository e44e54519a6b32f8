"""Which bytes to copy between device blocks and arena slots: pointer arrays, shared by every device.

Pure address arithmetic with numpy, so that what a CUDA copy engine is given is tested on a machine that
has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GroupSlots:
    """Chunks of one group in the arena.

    Attributes:
        offsets: byte offset of each chunk's slot in the arena's data area, int64, shape (chunks,).
        blocks_per_chunk: blocks in each chunk.
        block_bytes: bytes from one block to the next in a slot (all ranks).
        rank_offsets: byte offset of each rank's part inside a block.
    """

    offsets: Offsets
    blocks_per_chunk: int
    block_bytes: int
    rank_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's pages on the device.

    Attributes:
        base: address of block 0's page.
        stride: bytes from one block's page to the next.
        page_bytes: bytes to copy of each page (un-padded).
        limit: number of blocks; ids at or above it are a bug.
    """

    base: int
    stride: int
    page_bytes: int
    limit: int


class Copies(NamedTuple):
    """Three int64 arrays of equal length: device address, arena address, bytes."""

    device: Offsets
    arena: Offsets
    nbytes: Offsets

    @property
    def total_bytes(self) -> int:
        """Sum over all copies."""
        return int(self.nbytes.sum())


def build_copies(
    block_ids: npt.NDArray[np.int32],
    group_sizes: Sequence[int],
    block_indices: Sequence[int],
    slots: Sequence[GroupSlots],
    layers: Sequence[Sequence[LayerPages]],
    arena_address: int,
    rank: int,
) -> Copies:
    """Addresses of one transfer, either direction.

    Args:
        block_ids: device blocks of all groups, one group after the other, int32.
        group_sizes: blocks of each group (vLLM's `GPULoadStoreSpec.group_sizes`).
        block_indices: logical index of each group's first block in its request: tells how many blocks
            of the first chunk are passed over.
        slots: arena side, one for each group; a group without chunks is passed over.
        layers: device side, for each group its layers in payload order.
        arena_address: of the arena's data area in this process.
        rank: of this worker.
    """
    device: list[Offsets] = []
    arena: list[Offsets] = []
    nbytes: list[Offsets] = []
    start = 0
    for size, first, group, pages in zip(group_sizes, block_indices, slots, layers, strict=True):
        ids = block_ids[start : start + size].astype(np.int64)
        start += size
        if size == 0 or len(group.offsets) == 0:
            continue
        skip = first % group.blocks_per_chunk
        position = np.arange(skip, skip + size, dtype=np.int64)
        chunk = position // group.blocks_per_chunk
        assert chunk[-1] == len(group.offsets) - 1, "chunks and blocks of a transfer disagree"
        target = group.offsets[chunk] + position % group.blocks_per_chunk * group.block_bytes
        target += arena_address + group.rank_offsets[rank]
        inside = 0
        for layer in pages:
            assert ids.min() >= 0 and ids.max() < layer.limit, "block id outside the device cache"
            device.append(layer.base + ids * layer.stride)
            arena.append(target + inside)
            nbytes.append(np.full(size, layer.page_bytes, dtype=np.int64))
            inside += layer.page_bytes
    assert start == len(block_ids)
    empty = np.empty(0, dtype=np.int64)
    return Copies(
        np.concatenate([empty, *device]),
        np.concatenate([empty, *arena]),
        np.concatenate([empty, *nbytes]),
    )


def coalesce(copies: Copies) -> Copies:
    """Join copies that continue each other on both sides, so that fewer, longer ones remain."""
    if len(copies.nbytes) < 2:
        return copies
    order = np.lexsort((copies.device, copies.arena))
    device, arena, nbytes = (values[order] for values in copies)
    joins = (device[:-1] + nbytes[:-1] == device[1:]) & (arena[:-1] + nbytes[:-1] == arena[1:])
    heads = np.flatnonzero(np.concatenate([[True], ~joins]))
    return Copies(device[heads], arena[heads], np.add.reduceat(nbytes, heads))
