"""Sizes of one KV cache group's blocks and chunks, and what a boundary needs from it."""

import enum
from dataclasses import dataclass

SLOT_ALIGNMENT = 4096
"""Bytes. Slots start on page boundaries, so that direct I/O and pinning stay possible."""


class GroupKind(enum.StrEnum):
    """Attention kind of a group, by what a request needs from it to resume at a boundary."""

    FULL = "full"
    """Every chunk to the left of the boundary (full and MLA attention)."""
    WINDOW = "window"
    """The last tokens before the boundary (sliding window)."""
    LOCAL = "local"
    """The tokens of the attention chunk that the boundary lies in (chunked local attention)."""
    STATE = "state"
    """The one state at the boundary (Mamba, linear attention)."""


def ceil_div(value: int, by: int) -> int:
    """Integer division that rounds up."""
    return -(-value // by)


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
        window_tokens: WINDOW: the window's size (the query's own token included, as in vLLM's
            `SlidingWindowSpec.sliding_window`); LOCAL: the attention chunk's size; otherwise 0.
        extra_tokens: WINDOW: tokens kept beyond the window (vLLM's `extra_retained_tokens`).
    """

    group: int
    kind: GroupKind
    tokens_per_block: int
    blocks_per_chunk: int
    rank_block_bytes: tuple[int, ...]
    window_tokens: int = 0
    extra_tokens: int = 0

    def __post_init__(self) -> None:
        assert self.tokens_per_block > 0 and self.blocks_per_chunk > 0
        assert self.rank_block_bytes and all(size >= 0 for size in self.rank_block_bytes)
        windowed = self.kind in (GroupKind.WINDOW, GroupKind.LOCAL)
        assert windowed == (self.window_tokens > 0)

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
        return ceil_div(self.payload_bytes, SLOT_ALIGNMENT) * SLOT_ALIGNMENT

    @property
    def windowed(self) -> bool:
        """Whether a boundary needs only the end of the prefix from this group."""
        return self.kind is not GroupKind.FULL

    def rank_offset(self, rank: int) -> int:
        """Byte offset of `rank`'s part inside each block."""
        return sum(self.rank_block_bytes[:rank])

    def window_chunks(self, boundary: int) -> int:
        """Chunks, ending with the one that holds `boundary`'s last token, that must be held.

        The rule of vLLM's `GroupOffloadConfig.load_window_size_in_chunks`: at a boundary inside a chunk
        the window reaches one chunk further left. Unlike `get_sliding_window_size_in_chunks`, only what
        a load brings counts: the window without the token that is computed. Only for windowed groups.

        Args:
            boundary: tokens before the point where the request resumes.
        """
        chunk = self.tokens_per_chunk
        if self.kind is GroupKind.STATE:
            return 1
        if self.kind is GroupKind.LOCAL:
            return ceil_div(self.window_tokens, chunk)
        assert self.kind is GroupKind.WINDOW
        reach = self.window_tokens - 1 + self.extra_tokens
        return max(ceil_div(reach + -boundary % chunk, chunk), 1)

    def first_token(self, boundary: int) -> int:
        """First token whose KV a request that resumes at `boundary` reads from this group.

        vLLM's `get_num_skipped_tokens` of each attention kind.
        """
        if self.kind is GroupKind.FULL:
            return 0
        if self.kind is GroupKind.STATE:
            return max(boundary - 1, 0)
        if self.kind is GroupKind.LOCAL:
            return boundary // self.window_tokens * self.window_tokens
        return max(boundary - (self.window_tokens - 1 + self.extra_tokens), 0)
