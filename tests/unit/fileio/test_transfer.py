"""Reads and writes finish what they began, however short each call of the system falls."""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.fileio import transfer
from kvstrata.fileio.transfer import MAX_VECTOR, read_at, write_at


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


class ShortSystem:
    """The system's calls, but each moves at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.calls = 0

    def _shortened(self, buffers: Sequence[memoryview]) -> list[memoryview]:
        self.calls += 1
        assert len(buffers) <= MAX_VECTOR
        left = self.limit
        out = []
        for buffer in buffers:
            out.append(buffer[:left])
            left -= len(out[-1])
        return out

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(fd, self._shortened(buffers), offset)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(fd, self._shortened(buffers), offset)


@given(
    parts=st.lists(st.binary(max_size=40), max_size=8),
    offset=st.integers(0, 50),
    limit=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_short_calls_lose_nothing(
    parts: list[bytes], offset: int, limit: int, cuts: list[int]
) -> None:
    system = ShortSystem(limit)
    content = b"".join(parts)
    fd = os.memfd_create("transfer")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer, "os", system)
            assert write_at(fd, [memoryview(part) for part in parts], offset) == len(content)
            assert os.pread(fd, 4096, 0) == (bytes(offset) + content if content else b"")
            buffers = [memoryview(bytearray(cut)) for cut in cuts]
            count = read_at(fd, buffers, offset)
        assert count == min(sum(cuts), len(content))
        assert b"".join(buffers)[:count] == content[:count]
        assert not any(b"".join(buffers)[count:])
    finally:
        os.close(fd)


def test_more_buffers_than_one_call_takes(fd: int) -> None:
    content = os.urandom(3 * MAX_VECTOR + 5)
    singles = [memoryview(content)[i : i + 1] for i in range(len(content))]
    assert write_at(fd, singles, 0) == len(content)
    into = bytearray(len(content))
    places = [memoryview(into)[i : i + 1] for i in range(len(into))]
    assert read_at(fd, places, 0) == len(content)
    assert into == content


def test_a_large_write_and_read_in_one_buffer(fd: int) -> None:
    content = os.urandom(9 << 20)
    assert write_at(fd, [memoryview(content)], 7) == len(content)
    into = bytearray(len(content) + 10)
    assert read_at(fd, [memoryview(into)], 7) == len(content)
    assert into == content + bytes(10)


def test_a_write_without_progress_is_an_error_not_a_loop(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="no progress") as caught:
        write_at(fd, [memoryview(b"x")], 0)
    assert caught.value.errno == errno.EIO


def test_errors_of_the_system_pass(fd: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_at(-1, [memoryview(bytearray(1))], 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_at(-1, [memoryview(b"x")], 0)
