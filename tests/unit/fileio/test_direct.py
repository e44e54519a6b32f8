"""A file in memory is read from there, another past the page cache; what cannot be had so is buffered."""

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.fileio import direct
from kvstrata.fileio.direct import (
    BUFFERED_STEP,
    DIRECT_STEP,
    LARGE_BYTES,
    PAGE,
    Answer,
    Direct,
    DirectPolicy,
    Reading,
)
from tests.unit.fileio.descriptors import open_files

HEADER = 4096
PAYLOAD = LARGE_BYTES + 3 * PAGE + 123
CONTENT = os.urandom(HEADER + PAYLOAD)


class System:
    """The system's calls on a file system as told; counts what was read how."""

    def __init__(self, answers: Sequence[Answer] = (), refusal: int = 0, refused_open: int = 0):
        self.answers = list(answers)
        self.refusal = refusal
        self.refused_open = refused_open
        self.descriptor = -1
        self.direct_bytes = self.buffered_bytes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: str, flags: int) -> int:
        assert flags & os.O_DIRECT
        if self.refused_open:
            raise OSError(self.refused_open, os.strerror(self.refused_open))
        # The file system of the test's own directory may refuse the flag.
        self.descriptor = os.open(path, flags & ~os.O_DIRECT)
        return self.descriptor

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            assert flags == os.RWF_NOWAIT
            answer = self.answers.pop(0)
            if answer is Answer.COLD:
                raise BlockingIOError(errno.EAGAIN, "would wait")
            if answer is Answer.UNKNOWN:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            return os.preadv(fd, buffers, offset)
        assert fd == self.descriptor
        assert offset % PAGE == 0 and all(len(one) % PAGE == 0 for one in buffers)
        assert all(direct._address(one) % PAGE == 0 for one in buffers)
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        count = os.preadv(fd, buffers, offset)
        self.direct_bytes += count
        return count


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "record").write_bytes(CONTENT)
    fd = os.open(tmp_path / "record", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def place() -> memoryview:
    """Whole pages at the start of one, as a slot has them."""
    return memoryview(mmap.mmap(-1, PAYLOAD + 2 * PAGE))


def read(fd: int, policy: DirectPolicy, place: memoryview, system: System | None) -> int:
    """A record's header and payload in two steps; both are compared. Returns the steps' size."""
    with pytest.MonkeyPatch.context() as patch:
        if system is not None:
            patch.setattr(direct, "os", system)
        place[:] = bytes(len(place))
        header = memoryview(bytearray(HEADER))
        before = open_files(os.fstat(fd))
        with Reading(fd, policy, PAYLOAD) as reading:
            assert reading.header(header, 0) == HEADER
            step = reading.step_bytes
            cut = LARGE_BYTES // 2
            assert reading.read_at([place[:cut]], HEADER) == cut
            rest = place[cut : PAYLOAD + 50]
            assert reading.read_at([rest], HEADER + cut) == PAYLOAD - cut
        assert open_files(os.fstat(fd)) == before
    assert header == CONTENT[:HEADER] and place[:PAYLOAD] == CONTENT[HEADER:]
    assert not any(place[PAYLOAD:])
    return step


def proven() -> DirectPolicy:
    policy = DirectPolicy()
    policy.check(Answer.HOT)
    return policy


def test_what_is_in_memory_is_read_from_there(fd: int, place: memoryview) -> None:
    system = System([Answer.HOT])
    assert read(fd, proven(), place, system) == BUFFERED_STEP
    assert system.direct_bytes == 0


def test_what_is_not_is_read_past_the_page_cache(fd: int, place: memoryview) -> None:
    system = System([Answer.COLD])
    assert read(fd, proven(), place, system) == DIRECT_STEP
    assert system.direct_bytes == PAYLOAD // PAGE * PAGE


def test_the_first_answer_is_checked_before_it_is_believed(fd: int, place: memoryview) -> None:
    policy = DirectPolicy()
    system = System([Answer.COLD, Answer.HOT, Answer.COLD])
    read(fd, policy, place, system)
    assert system.direct_bytes == 0
    read(fd, policy, place, system)
    assert system.direct_bytes > 0 and not system.answers


def test_who_calls_everything_cold_is_not_asked_again(fd: int, place: memoryview) -> None:
    policy = DirectPolicy()
    system = System([Answer.COLD, Answer.COLD])
    for _ in range(3):
        read(fd, policy, place, system)
    assert system.direct_bytes == 0 and repr(policy) == "<DirectPolicy auto, buffered>"


def test_who_cannot_tell_is_not_asked_again(fd: int, place: memoryview) -> None:
    policy = DirectPolicy()
    system = System([Answer.UNKNOWN])
    for _ in range(3):
        read(fd, policy, place, system)
    assert system.direct_bytes == 0


@pytest.mark.parametrize("mode", [Direct.AUTO, Direct.ALWAYS])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("when", ["refusal", "refused_open"])
def test_a_refusal_is_remembered(
    fd: int, place: memoryview, mode: Direct, number: int, when: str
) -> None:
    policy = proven() if mode is Direct.AUTO else DirectPolicy(mode)
    system = System([Answer.COLD], **{when: number})
    for _ in range(3):
        read(fd, policy, place, system)
    assert repr(policy) == f"<DirectPolicy {mode}, buffered>"


def test_another_error_is_left_to_the_buffered_read(fd: int, place: memoryview) -> None:
    policy = DirectPolicy(Direct.ALWAYS)
    read(fd, policy, place, System(refusal=errno.EIO))
    system = System()
    read(fd, policy, place, system)
    assert system.direct_bytes > 0


def test_an_error_of_the_medium_is_not_taken_for_an_answer(fd: int) -> None:
    class Broken(System):
        def preadv(self, *_: object) -> int:
            raise OSError(errno.EIO, "broken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "os", Broken())
        with (
            Reading(fd, proven(), PAYLOAD) as reading,
            pytest.raises(OSError, match="broken"),
        ):
            reading.header(memoryview(bytearray(HEADER)), 0)


def test_never_and_small_files_are_not_asked_about(fd: int, place: memoryview) -> None:
    system = System()
    read(fd, DirectPolicy(Direct.NEVER), place, system)
    assert not proven().asks(LARGE_BYTES - 1) and proven().asks(LARGE_BYTES)
    assert system.direct_bytes == 0


@pytest.mark.parametrize("mode", list(Direct))
def test_the_real_system_brings_the_same(fd: int, place: memoryview, mode: Direct) -> None:
    policy = DirectPolicy(mode)
    for _ in range(3):
        read(fd, policy, place, None)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def test_a_memory_file_system_is_read(place: memoryview) -> None:
    fd = os.memfd_create("record")
    try:
        os.write(fd, CONTENT)
        for mode in Direct:
            policy = DirectPolicy(mode)
            for _ in range(2):
                read(fd, policy, place, None)
    finally:
        os.close(fd)


@given(
    cuts=st.lists(st.sampled_from([1, 100, PAGE, 2 * PAGE, 5000, 3 * PAGE + 7]), max_size=8),
    offset=st.sampled_from([0, PAGE, 17, 5 * PAGE, 9 * PAGE - 1]),
    shift=st.sampled_from([0, 8, PAGE]),
    size=st.integers(0, 12 * PAGE),
)
def test_any_buffers_get_what_a_plain_read_brings(
    cuts: list[int], offset: int, shift: int, size: int
) -> None:
    fd = os.memfd_create("record")
    try:
        content = CONTENT[:size]
        os.write(fd, content)
        whole = memoryview(mmap.mmap(-1, sum(cuts) + shift + 1))[shift:]
        buffers, at = [], 0
        for cut in cuts:
            buffers.append(whole[at : at + cut])
            at += cut
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(direct, "os", System())
            with Reading(fd, DirectPolicy(Direct.ALWAYS), size) as reading:
                reading.header(memoryview(bytearray(1)), 0)
                count = reading.read_at(buffers, offset)
        expected = content[offset : offset + sum(cuts)]
        assert count == len(expected) and whole[:count] == expected
        assert not any(whole[count:])
    finally:
        os.close(fd)
