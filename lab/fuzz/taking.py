"""Numbers and bytes out of a fuzzer's input, and edits of a known file that it asks for."""

WORDS = (0, 1, 2, 3, 4, 15, 16, 4095, 4096, 8192, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
"""Numbers at which readers go wrong."""
MOST_EDITS = 64
HEAD = 256
"""Bytes of a file's beginning, with all fields: half of the edits are there."""


class Taking:
    """Takes an input apart from its beginning on; zeros behind its end.

    Args:
        data: the input.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return self._at >= len(self._data)

    def number(self, size: int = 1) -> int:
        """The next `size` bytes, little endian."""
        self._at += size
        return int.from_bytes(self._data[self._at - size : self._at], "little")

    def rest(self) -> bytes:
        """All that is left."""
        part, self._at = self._data[self._at :], len(self._data)
        return part


def edit(taking: Taking, content: bytearray, other: bytes) -> None:
    """Change a file's content as the input says, until it ends.

    Args:
        taking: the input.
        content: of the file; its length may change.
        other: another file's content, from which parts may come.
    """
    for _ in range(MOST_EDITS):
        if taking.empty or not content:
            return
        kind = taking.number()
        span = len(content) if kind & 1 else min(HEAD, len(content))
        offset = taking.number(2) % span
        match (kind >> 1) % 7:
            case 0:
                content[offset] ^= 1 << (taking.number() % 8)
            case 1:
                content[offset] = taking.number()
            case 2:
                _put(content, offset, WORDS[taking.number() % len(WORDS)], 4)
            case 3:
                _put(content, offset, WORDS[taking.number() % len(WORDS)], 8)
            case 4:
                _put(content, offset, taking.number(2) * 4096, 8)
            case 5:
                source, length = taking.number(2), taking.number()
                part = other[source : source + length][: len(content) - offset]
                content[offset : offset + len(part)] = part
            case 6:
                if taking.number() % 4:
                    del content[-(1 + taking.number()) :]
                else:
                    content.extend(bytes(taking.number(2)))


def _put(content: bytearray, offset: int, value: int, size: int) -> None:
    part = value.to_bytes(8, "little")[:size][: len(content) - offset]
    content[offset : offset + len(part)] = part
