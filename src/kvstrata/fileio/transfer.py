"""Positioned, vectored reads and writes that finish what they began."""

import errno
import os
from collections.abc import Sequence

MAX_VECTOR = 1024
"""Buffers in one call (Linux' IOV_MAX)."""


def read_at(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    """Fill uint8 buffers, one after the other, from a file position on.

    Returns:
        Bytes read; fewer than asked for only at the end of the file.

    Raises:
        OSError: as the operating system reports it.
    """
    done = 0
    left: Sequence[memoryview] = buffers
    if len(buffers) <= MAX_VECTOR:  # nearly always one call brings all of it
        done = os.preadv(fd, buffers, offset)
        if done == sum(map(len, buffers)) or not done:
            return done
        left = _advance(buffers, done)
    left = [buffer for buffer in left if len(buffer)]
    while left:
        count = os.preadv(fd, left[:MAX_VECTOR], offset + done)
        if count == 0:
            return done
        done += count
        left = _advance(left, count)
    return done


def write_at(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    """Write all of some uint8 buffers, one after the other, from a file position on.

    Returns:
        Bytes written: all of them.

    Raises:
        OSError: as the operating system reports it; part may have been written.
    """
    done = 0
    left = [buffer for buffer in buffers if len(buffer)]
    while left:
        count = os.pwritev(fd, left[:MAX_VECTOR], offset + done)
        if count == 0:
            raise OSError(errno.EIO, "a write made no progress")
        done += count
        left = _advance(left, count)
    return done


def _advance(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of `buffers` after their first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
