"""One block of a batch with its token ids, to see whether an engine hashes as it is thought to.

`wire.batches` never decodes token ids; this is for the rare look.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from kvstrata.wire.batches import MAX_BYTES, WireHash, low_bits

LONGEST_BLOCK = 1 << 16
"""Tokens; longer blocks are no block of a KV cache."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The first block of some prompt.

    Attributes:
        hash: low 64 bits of its hash.
        tokens: its token ids.
    """

    hash: int
    tokens: tuple[int, ...]


class _Batch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[msgspec.Raw]


class _Block(msgspec.Struct, tag="BlockStored", tag_field="type", gc=False):
    block_hashes: list[WireHash]
    parent_block_hash: WireHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None


class _BlockRow(_Block, tag="BlockStored", array_like=True, gc=False):
    pass


_BATCH = msgspec.msgpack.Decoder(_Batch)
_MAP = msgspec.msgpack.Decoder(_Block)
_ROW = msgspec.msgpack.Decoder(_BlockRow)
_UNREADABLE = (msgspec.DecodeError, RecursionError, ValueError, OverflowError)


def first_block(payload: bytes) -> Sample | None:
    """The first block of a prompt that the batch stores whole: without adapter, salt or images.

    None when there is none, or when the payload cannot be read.
    """
    if len(payload) > MAX_BYTES:
        return None
    try:
        events = _BATCH.decode(payload).events
    except _UNREADABLE:
        return None
    for raw in events:
        sample = _sample(raw)
        if sample is not None:
            return sample
    return None


def _sample(raw: msgspec.Raw) -> Sample | None:
    is_row = memoryview(raw)[0] >> 4 == 9 or memoryview(raw)[0] in (0xDC, 0xDD)
    try:
        block = (_ROW if is_row else _MAP).decode(raw)
    except _UNREADABLE:
        return None  # another kind of event, or one that cannot be read
    if block.parent_block_hash is not None or block.lora_name is not None:
        return None
    if block.lora_id is not None or any(key is not None for key in block.extra_keys or ()):
        return None
    size = block.block_size
    # Of a windowed group only kept blocks are named, and then nothing says which they are.
    whole = 0 < size <= LONGEST_BLOCK and len(block.block_hashes) * size == len(block.token_ids)
    if not whole or not block.block_hashes or (block.medium or "GPU") != "GPU":
        return None
    return Sample(low_bits(block.block_hashes[0]), tuple(block.token_ids[:size]))
