"""Sizes of one KV cache group's blocks and chunks, in tokens and bytes."""

import enum
from dataclasses import dataclass

SLOT_ALIGNMENT = 4096
"""Bytes. Slots start on page boundaries, so that direct I/O and pinning stay possible."""


class GroupKind(enum.StrEnum):
    """Attention kind of a group, by what a request needs from it to resume at a boundary."""

    FULL = "full"
    """Every chunk to the left of the boundary (full and MLA attention)."""
    WINDOW = "window"
    """The last `window_tokens` tokens (sliding window, chunked local attention)."""
    STATE = "state"
    """The one state at the boundary (Mamba, linear attention)."""


@dataclass(frozen=True, slots=True)
class GroupGeometry:
    """One KV cache group, as all workers of an engine store it.

    A chunk's payload is block after block; inside a block, rank after rank; inside a rank, layer after
    layer (un-padded pages). So the tail of a window is one contiguous range, and there is no padding
    that could carry another chunk's bytes.

    Attributes:
        group: vLLM's KV cache group index.
        kind: what a boundary needs from this group.
        tokens_per_block: tokens that one block covers.
        blocks_per_chunk: consecutive blocks in one chunk, at least 1.
        rank_block_bytes: for each rank, bytes that it stores for one block.
        window_tokens: for WINDOW, tokens before a boundary that attention reads; 0 otherwise.
    """

    group: int
    kind: GroupKind
    tokens_per_block: int
    blocks_per_chunk: int
    rank_block_bytes: tuple[int, ...]
    window_tokens: int = 0

    def __post_init__(self) -> None:
        assert self.tokens_per_block > 0 and self.blocks_per_chunk > 0
        assert self.rank_block_bytes and all(size >= 0 for size in self.rank_block_bytes)
        assert (self.kind is GroupKind.WINDOW) == (self.window_tokens > 0)

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens that one chunk covers."""
        return self.tokens_per_block * self.blocks_per_chunk

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all ranks."""
        return sum(self.rank_block_bytes)

    @property
    def payload_bytes(self) -> int:
        """Bytes of one whole chunk."""
        return self.block_bytes * self.blocks_per_chunk

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot in the arena: the payload, rounded up to `SLOT_ALIGNMENT`."""
        return -(-self.payload_bytes // SLOT_ALIGNMENT) * SLOT_ALIGNMENT

    def rank_offset(self, rank: int) -> int:
        """Byte offset of `rank`'s part inside each block."""
        return sum(self.rank_block_bytes[:rank])
