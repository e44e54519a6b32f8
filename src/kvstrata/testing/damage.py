"""Damaging published chunks on purpose, as media, operators and other programs do.

Every kind but `forge` must be found by whoever reads the chunk. `forge` is the opposite: its checksums are
valid, so nothing below the model can find it, and a test that compares a model's answers must. Of a file
that holds several chunks, the one that the path names is damaged; what is wrong with the file hurts all.
"""

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstrata.chunks import segment
from kvstrata.chunks.checksum import DIGEST_BYTES, digest
from kvstrata.chunks.key import parse_file_name
from kvstrata.chunks.record import CHECKSUMS_AT, MAGIC, RecordHeader, decode
from kvstrata.errors import BadReason, RecordError

_VERSION_AT = len(MAGIC)
_NAMESPACE_AT = 16
_TOKENS_AT = 44
_SELF_CHECKSUM = slice(64, 80)
_KEY_AT = 80
_ENTRY_BYTES = 80
_ENTRY_KEY_AT = 16
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
    """Damage a valid chunk where it lies (same inode, as a medium does).

    Args:
        path: of a file that nothing is wrong with.
        kind: what to do to it.

    Raises:
        ValueError: no such kind.
        RecordError: the file is no valid record, and no segment that holds the chunk.
        OSError: it cannot be read or written.
    """
    content = bytearray(path.read_bytes())
    _WAYS[Damage(kind)](content, _locate(content, path))
    _overwrite(path, content)


def forge(path: Path, seed: int) -> None:
    """Replace a chunk's payload by other plausible numbers, under valid checksums.

    Within each block the 4-byte words are shuffled and their sign bits flipped: finite floating-point
    numbers of 2 or 4 bytes stay finite and of the same size, but none of the bytes is what it was.

    Args:
        path: of a file that nothing is wrong with.
        seed: of the shuffle.

    Raises:
        RecordError: the file is no valid record, and no segment that holds the chunk.
        OSError: it cannot be read or written.
    """
    content = bytearray(path.read_bytes())
    place = _locate(content, path)
    header = place.header
    generator = np.random.default_rng(seed)
    for number in range(header.blocks - header.first_block):
        start = place.payload_at + number * header.block_bytes
        data = memoryview(content)[start : start + header.block_bytes]
        whole = len(data) // _WORD * _WORD
        words = np.frombuffer(data[:whole], np.uint8).reshape(-1, _WORD)
        forged = generator.permutation(words)
        forged[:, -1] ^= 0x80
        data[:whole] = forged.tobytes()
        at = place.checksums_at + number * DIGEST_BYTES
        content[at : at + DIGEST_BYTES] = digest(data)
        data.release()
    _sum(content, place)
    _overwrite(path, content)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a chunk stands in a file: bytes from the file's beginning.

    Attributes:
        header: of the chunk's record, or what it would be.
        head_bytes: of the header or table.
        key_at: the key.
        checksums_at: its blocks' checksums.
        payload_at: its blocks.
    """

    header: RecordHeader
    head_bytes: int
    key_at: int
    checksums_at: int
    payload_at: int

    @property
    def end(self) -> int:
        """Behind its last byte."""
        return self.payload_at + self.header.payload_bytes


def _locate(content: bytearray, path: Path) -> _Place:
    if not segment.is_segment(content):
        header = decode(content)
        length = header.header_bytes
        return _Place(header, length, _KEY_AT, CHECKSUMS_AT, length)
    table = segment.decode(content)
    key = parse_file_name(path.name)
    if key is None:
        raise RecordError(BadReason.KEY, f"{path.name} is no chunk's name")
    header = table.header(key)
    entry = table.entries[key]
    key_at = _KEY_AT + _ENTRY_BYTES * list(table.entries).index(key) + _ENTRY_KEY_AT
    return _Place(header, len(table.data), key_at, entry.checksums_at, entry.offset)


def _sum(content: bytearray, place: _Place) -> None:
    """Make the checksum of the header or table valid again."""
    content[_SELF_CHECKSUM] = bytes(DIGEST_BYTES)
    content[_SELF_CHECKSUM] = digest(bytes(content[: place.head_bytes]))


def _empty(content: bytearray, _place: _Place) -> None:
    content.clear()


def _truncate(content: bytearray, place: _Place) -> None:
    del content[place.end - 1 :]


def _flip_payload(content: bytearray, place: _Place) -> None:
    content[place.end - 1 - place.header.block_bytes // 2] ^= 0x10


def _flip_header(content: bytearray, place: _Place) -> None:
    content[place.checksums_at] ^= 0x01  # inside the first block's checksum


def _make_foreign(content: bytearray, _place: _Place) -> None:
    text = b"not a chunk at all. "
    content[:] = (text * (len(content) // len(text) + 1))[: len(content)]


def _age(content: bytearray, place: _Place) -> None:
    struct.pack_into("<I", content, _VERSION_AT, 0)
    _sum(content, place)


def _move_namespace(content: bytearray, place: _Place) -> None:
    content[_NAMESPACE_AT] ^= 0xFF
    _sum(content, place)


def _swap_key(content: bytearray, place: _Place) -> None:
    content[place.key_at] ^= 0xFF
    _sum(content, place)


def _stretch_tokens(content: bytearray, place: _Place) -> None:
    struct.pack_into("<I", content, _TOKENS_AT, place.header.tokens_per_block + 1)
    _sum(content, place)


_WAYS: dict[Damage, Callable[[bytearray, _Place], None]] = {
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
