"""Pieces of msgpack in an array of bytes. Compiled, for `scan`; every function minds the array's end.

What is not plain (see `scan`) is answered with `NOT_PLAIN`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kvstrata.compiled import part

Bytes = npt.NDArray[np.uint8]

NOT_PLAIN = -1
NIL = 0xC0
MOST = 1 << 24
"""What counts as a size or an index is below it."""


@part
def big_endian(data: Bytes, at: Any, size: Any) -> Any:
    value = np.uint64(0)
    for index in range(size):
        value = (value << np.uint64(8)) | np.uint64(data[at + index])
    return value


@part
def size_of_number(data: Bytes, at: Any) -> Any:
    """Bytes of a whole number that is not negative, or -1."""
    if at >= len(data):
        return NOT_PLAIN
    head = data[at]
    size = 1
    if head >= 0x80:
        if not 0xCC <= head <= 0xCF:
            return NOT_PLAIN
        size = 1 + (1 << (head - 0xCC))
    return size if at + size <= len(data) else NOT_PLAIN


@part
def number(data: Bytes, at: Any, size: Any) -> Any:
    return np.uint64(data[at]) if size == 1 else big_endian(data, at + 1, size - 1)


@part
def small_number(data: Bytes, at: Any) -> Any:
    """Value and end of a number below 2**24; nothing there counts as 0. -1 when it is neither."""
    if at < len(data) and data[at] == NIL:
        return 0, at + 1
    size = size_of_number(data, at)
    if size < 0:
        return NOT_PLAIN, at
    value = number(data, at, size)
    if value >= np.uint64(MOST):
        return NOT_PLAIN, at
    return np.int64(value), at + size


@part
def container(data: Bytes, at: Any, short: int, long: int) -> Any:
    """Entries of an array or map and where they begin; -1 when it is none."""
    if at >= len(data):
        return NOT_PLAIN, at
    head = data[at]
    if head & 0xF0 == short:
        return np.int64(head & 0x0F), at + 1
    size = 2 if head == long else 4
    if (head != long and head != long + 1) or at + 1 + size > len(data):
        return NOT_PLAIN, at
    return np.int64(big_endian(data, at + 1, size)), at + 1 + size


@part
def text(data: Bytes, at: Any) -> Any:
    """Begin and length of an ASCII text; length -1 when it is none."""
    if at >= len(data):
        return at, NOT_PLAIN
    head = data[at]
    if head & 0xE0 == 0xA0:
        begin, length = at + 1, np.int64(head & 0x1F)
    elif head == 0xD9 and at + 1 < len(data):
        begin, length = at + 2, np.int64(data[at + 1])
    elif head == 0xDA and at + 2 < len(data):
        begin, length = at + 3, np.int64(big_endian(data, at + 1, 2))
    else:
        return at, NOT_PLAIN
    if begin + length > len(data):
        return at, NOT_PLAIN
    for index in range(begin, begin + length):
        if data[index] >= 0x80:
            return at, NOT_PLAIN
    return begin, length


@part
def which(data: Bytes, begin: int, length: int, table: Bytes) -> Any:
    """The name that stands there, or -1."""
    for name in range(len(table)):
        if np.int64(table[name, 0]) != length:
            continue
        same = True
        for index in range(length):
            if table[name, 1 + index] != data[begin + index]:
                same = False
                break
        if same:
            return name
    return -1


@part
def skip(data: Bytes, at: Any) -> Any:
    """Where the value that begins here ends, or -1."""
    left: Any = 1
    size: Any
    while left > 0:
        if at >= len(data):
            return NOT_PLAIN
        head = np.int64(data[at])
        at += 1
        left -= 1
        if head < 0x80 or head >= 0xE0 or 0xC2 <= head <= 0xC3 or head == NIL:
            continue
        if head < 0x90:
            left += 2 * (head & 0x0F)
        elif head < 0xA0:
            left += head & 0x0F
        elif head < 0xC0:
            at += head & 0x1F
        elif 0xCA <= head <= 0xD3:  # numbers: float32, float64, four unsigned, four signed
            at += (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)[head - 0xCA]
        elif 0xC4 <= head <= 0xC6 or 0xD9 <= head <= 0xDB:  # bytes and texts
            size = 1 << ((head - 0xC4) if head <= 0xC6 else (head - 0xD9))
            if at + size > len(data):
                return NOT_PLAIN
            at += size + np.int64(big_endian(data, at, size))
        elif 0xDC <= head <= 0xDF:  # arrays and maps
            size = 2 if head & 1 == 0 else 4
            if at + size > len(data):
                return NOT_PLAIN
            left += np.int64(big_endian(data, at, size)) * (1 if head < 0xDE else 2)
            at += size
        else:
            return NOT_PLAIN
    return at if at <= len(data) else NOT_PLAIN
