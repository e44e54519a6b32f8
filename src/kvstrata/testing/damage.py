"""Damaging published records on purpose, as media, operators and other programs do.

Every kind but `forge` must be found by whoever reads the record. `forge` is the opposite: its checksums are
valid, so nothing below the model can find it, and a test that compares a model's answers must.
"""

import enum
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvstrata.chunks.checksum import digest
from kvstrata.chunks.record import (
    MAGIC,
    RECORD_VERSION,
    RecordHeader,
    declared_header_bytes,
    decode,
    encode,
)
from kvstrata.errors import BadReason

_VERSION_OFFSET = len(MAGIC)
_SELF_CHECKSUM = slice(64, 80)
_WORD = 4


class Damage(enum.StrEnum):
    """What can be wrong with a record."""

    EMPTY = "empty"
    """No bytes at all, as after a power failure."""
    TRUNCATED = "truncated"
    """The last byte is missing."""
    BIT_FLIP = "bit_flip"
    """One bit of the last block differs."""
    HEADER_FLIP = "header_flip"
    """One bit of a block's checksum differs, so the header contradicts its own checksum."""
    FOREIGN = "foreign"
    """Another program's file of the same size."""
    OLDER_VERSION = "older_version"
    """A record of another version, whole and with valid checksums."""
    OTHER_NAMESPACE = "other_namespace"
    """A record of another namespace, whole and with valid checksums."""
    SWAPPED_KEY = "swapped_key"
    """Another chunk's record, whole and with valid checksums, under this chunk's name."""
    OTHER_GEOMETRY = "other_geometry"
    """A record of blocks with another number of tokens, whole and with valid checksums."""

    @property
    def reason(self) -> BadReason:
        """How a reader must call it."""
        return _REASONS[self]


_REASONS = {
    Damage.EMPTY: BadReason.TRUNCATED,
    Damage.TRUNCATED: BadReason.TRUNCATED,
    Damage.BIT_FLIP: BadReason.CHECKSUM,
    Damage.HEADER_FLIP: BadReason.HEADER,
    Damage.FOREIGN: BadReason.FOREIGN,
    Damage.OLDER_VERSION: BadReason.VERSION,
    Damage.OTHER_NAMESPACE: BadReason.NAMESPACE,
    Damage.SWAPPED_KEY: BadReason.KEY,
    Damage.OTHER_GEOMETRY: BadReason.GEOMETRY,
}


def damage(path: Path, kind: Damage | str) -> None:
    """Damage a valid record where it lies (same inode, as a medium does).

    Args:
        path: of a record that nothing is wrong with.
        kind: what to do to it.

    Raises:
        ValueError: no such kind.
        RecordError: the file is no valid record.
        OSError: it cannot be read or written.
    """
    content = bytearray(path.read_bytes())
    header = decode(content)
    _WAYS[Damage(kind)](content, header)
    _overwrite(path, content)


def forge(path: Path, seed: int) -> None:
    """Replace a record's payload by other plausible numbers, under valid checksums.

    Within each block the 4-byte words are shuffled and their sign bits flipped: finite floating-point
    numbers of 2 or 4 bytes stay finite and of the same size, but none of the bytes is what it was.

    Args:
        path: of a record that nothing is wrong with.
        seed: of the shuffle.

    Raises:
        RecordError: the file is no valid record.
        OSError: it cannot be read or written.
    """
    content = bytearray(path.read_bytes())
    header = decode(content)
    generator = np.random.default_rng(seed)
    checksums = []
    for block in range(header.first_block, header.blocks):
        start = header.block_offset(block)
        data = memoryview(content)[start : start + header.block_bytes]
        whole = len(data) // _WORD * _WORD
        words = np.frombuffer(data[:whole], np.uint8).reshape(-1, _WORD)
        forged = generator.permutation(words)
        forged[:, -1] ^= 0x80
        data[:whole] = forged.tobytes()
        checksums.append(digest(data))
    content[: header.header_bytes] = encode(replace(header, checksums=tuple(checksums)))
    _overwrite(path, content)


def _empty(content: bytearray, _header: RecordHeader) -> None:
    content.clear()


def _truncate(content: bytearray, header: RecordHeader) -> None:
    del content[header.record_bytes - 1 :]


def _flip_payload(content: bytearray, header: RecordHeader) -> None:
    content[header.record_bytes - 1 - header.block_bytes // 2] ^= 0x10


def _flip_header(content: bytearray, _header: RecordHeader) -> None:
    content[144] ^= 0x01  # inside the first block's checksum


def _make_foreign(content: bytearray, _header: RecordHeader) -> None:
    text = b"not a chunk at all. "
    content[:] = (text * (len(content) // len(text) + 1))[: len(content)]


def _age(content: bytearray, _header: RecordHeader) -> None:
    # Done on the bytes, since nothing in the package can write another version.
    length = declared_header_bytes(content)
    struct.pack_into("<I", content, _VERSION_OFFSET, RECORD_VERSION - 1)
    content[_SELF_CHECKSUM] = bytes(16)
    content[_SELF_CHECKSUM] = digest(memoryview(content)[:length])


def _move_namespace(content: bytearray, header: RecordHeader) -> None:
    other = replace(header, namespace=_other(header.namespace))
    content[: header.header_bytes] = encode(other)


def _swap_key(content: bytearray, header: RecordHeader) -> None:
    content[: header.header_bytes] = encode(replace(header, key=_other(header.key)))


def _stretch_tokens(content: bytearray, header: RecordHeader) -> None:
    other = replace(header, tokens_per_block=header.tokens_per_block + 1)
    content[: header.header_bytes] = encode(other)


def _other(value: bytes) -> bytes:
    """Like `value`, but for its first byte."""
    return bytes([value[0] ^ 0xFF]) + value[1:]


_WAYS: dict[Damage, Callable[[bytearray, RecordHeader], None]] = {
    Damage.EMPTY: _empty,
    Damage.TRUNCATED: _truncate,
    Damage.BIT_FLIP: _flip_payload,
    Damage.HEADER_FLIP: _flip_header,
    Damage.FOREIGN: _make_foreign,
    Damage.OLDER_VERSION: _age,
    Damage.OTHER_NAMESPACE: _move_namespace,
    Damage.SWAPPED_KEY: _swap_key,
    Damage.OTHER_GEOMETRY: _stretch_tokens,
}


def _overwrite(path: Path, content: bytearray) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
