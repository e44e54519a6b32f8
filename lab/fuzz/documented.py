"""A reader of records and segments that is written from `docs/on-disk-format.md`, without the package's code.

What the package says of a file is compared with what this says. Plain files only: sealed ones are what their
key makes them, and nobody can make others.
"""

from dataclasses import dataclass

import xxhash


@dataclass(frozen=True, slots=True)
class Documented:
    """One chunk in a file.

    Attributes:
        namespace: fingerprint, 16 bytes.
        key: of the chunk.
        blocks: of a whole chunk.
        first_block: that is stored.
        tokens, size: tokens and bytes of a block.
        checksums: of the stored blocks.
        start: where in the file the first stored block stands.
    """

    namespace: bytes
    key: bytes
    blocks: int
    first_block: int
    tokens: int
    size: int
    checksums: tuple[bytes, ...]
    start: int

    def block(self, data: bytes, block: int) -> bytes | None:
        """One block's bytes from the file's; None where they are missing or not what they were."""
        begin = self.start + self.size * (block - self.first_block)
        found = data[begin : begin + self.size]
        right = checksum(found) == self.checksums[block - self.first_block]
        return found if len(found) == self.size and right else None


def checksum(part: bytes) -> bytes:
    """XXH3-128 with seed 0, the most significant byte first."""
    return xxhash.xxh3_128_intdigest(part, seed=0).to_bytes(16, "big")


def chunks_in(data: bytes) -> list[Documented] | None:
    """What a file holds; None where it is neither a plain record nor a plain segment."""
    if len(data) < 144 or data[:8] != b"KVSTRATA":
        return None
    version, length = _number(data, 8, 4), _number(data, 12, 4)
    if version not in (1, 2) or length % 4096 or length == 0 or length > len(data):
        return None
    if checksum(data[:64] + bytes(16) + data[80:length]) != data[64:80]:
        return None
    if _number(data, 34, 2) != 1:
        return None
    return _record(data, length) if version == 1 else _segment(data, length)


def _record(data: bytes, length: int) -> list[Documented] | None:
    key_length, blocks, first = _number(data, 32, 2), _number(data, 36, 4), _number(data, 40, 4)
    count = blocks - first
    if key_length > 64 or not 0 < count <= 1_048_576 or length != _pages(144 + 16 * count):
        return None
    checksums = tuple(data[at : at + 16] for at in range(144, 144 + 16 * count, 16))
    key = data[80 : 80 + key_length]
    return [_chunk(data, key, first, checksums, length)]


def _segment(data: bytes, length: int) -> list[Documented] | None:
    blocks, count = _number(data, 36, 4), _number(data, 40, 4)
    if not 0 < count <= 4096 or not 0 < blocks <= 1_048_576 or 80 + 80 * count > length:
        return None
    at = 80 + 80 * count
    found = []
    for entry in range(80, 80 + 80 * count, 80):
        key_length, first = _number(data, entry, 2), _number(data, entry + 4, 4)
        start = _number(data, entry + 8, 8)
        if key_length > 56 or first >= blocks or start % 4096 or not 0 < start < 2**62:
            return None
        end = at + 16 * (blocks - first)
        if end > length:
            return None
        checksums = tuple(data[place : place + 16] for place in range(at, end, 16))
        key = data[entry + 16 : entry + 16 + key_length]
        found.append(_chunk(data, key, first, checksums, start))
        at = end
    if length != _pages(at) or len({one.key for one in found}) < count:
        return None
    return found


def _chunk(
    data: bytes, key: bytes, first: int, checksums: tuple[bytes, ...], start: int
) -> Documented:
    blocks, tokens, size = _number(data, 36, 4), _number(data, 44, 4), _number(data, 48, 8)
    return Documented(data[16:32], key, blocks, first, tokens, size, checksums, start)


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _pages(size: int) -> int:
    return -(-size // 4096) * 4096
