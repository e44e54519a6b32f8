"""Which bytes to copy between device blocks and arena slots: pointer arrays, shared by every device.

Pure address arithmetic with numpy, so that what a CUDA copy engine is given is tested on a machine that
has none.
"""

import itertools
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
    """Join neighbours that continue each other on both sides, so that fewer, longer ones remain."""
    if len(copies.nbytes) < 2:
        return copies
    device, arena, nbytes = copies
    joins = (device[:-1] + nbytes[:-1] == device[1:]) & (arena[:-1] + nbytes[:-1] == arena[1:])
    if not joins.any():
        return copies
    heads = np.flatnonzero(np.concatenate([[True], ~joins]))
    return Copies(device[heads], arena[heads], np.add.reduceat(nbytes, heads))


class Runs(NamedTuple):
    """Copies of equal length at equal distances, run by run: four int64 arrays of equal length.

    Run `i` is the `rows[i]` copies from `heads[i]` on; from one to the next the device address grows by
    `device_step[i]` and the arena address by `arena_step[i]`, either of which may be negative.
    """

    heads: Offsets
    rows: Offsets
    device_step: Offsets
    arena_step: Offsets


def strided_runs(copies: Copies) -> Runs:
    """Find the runs: three neighbours or more (two, where one run turns into another).

    All else is runs of one row, whose steps are 0.

    One layer's pages of consecutive blocks are such a run, even where all layers of a block lie together in
    the arena and nothing can be joined.
    """
    count = len(copies.nbytes)
    zeros = np.zeros(count, dtype=np.int64)
    if count < 3:
        return Runs(np.arange(count, dtype=np.int64), zeros + 1, zeros, zeros)
    steps = np.stack([np.diff(copies.device), np.diff(copies.arena)])
    same = (steps[:, 1:] == steps[:, :-1]).all(axis=0)
    even = copies.nbytes[1:] == copies.nbytes[:-1]
    same &= even[1:] & even[:-1]
    no = np.zeros(1, dtype=bool)
    # A step belongs to a run if one beside it is like it; the row between two unlike runs is the first's.
    inside = np.concatenate([no, same]) | np.concatenate([same, no])
    turns = inside[1:] & inside[:-1] & ~same
    begins = np.concatenate([~no, ~inside])
    begins[2:] |= turns
    heads = np.flatnonzero(begins)
    rows = np.diff(heads, append=count)
    first = np.minimum(heads, count - 2)
    single = rows == 1
    device_step, arena_step = (np.where(single, 0, step[first]) for step in steps)
    return Runs(heads, rows, device_step, arena_step)


def split(copies: Copies, piece_bytes: int, least: int) -> list[Copies]:
    """Cut into pieces of about equal bytes, between rows.

    Args:
        copies: to cut.
        piece_bytes: that a piece should not exceed by more than a row.
        least: pieces wanted, where there is enough to do for so many: a tenth of `piece_bytes` each.
    """
    total = copies.total_bytes
    few = min(least, total * 10 // piece_bytes)
    number = max(1, few, -(-total // piece_bytes))
    ends = np.cumsum(copies.nbytes)
    cuts = np.searchsorted(ends, np.arange(1, number) * total // number, side="left") + 1
    bounds = np.unique(np.concatenate([[0], cuts, [len(ends)]]))
    return [
        Copies(*(values[low:high] for values in copies))
        for low, high in itertools.pairwise(bounds.tolist())
    ] or [copies]
