"""Trying directories, real ones; what no test machine has is faked at the system call."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvstrata.doctor.places import check_path, check_shm
from kvstrata.doctor.probe import probe


def codes(path: Path, nbytes: int = 4096) -> list[str]:
    return [finding.code for finding in check_path(probe(str(path), nbytes), 1)]


def test_a_good_directory_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    facts = probe(str(tmp_path), 3 << 20)
    assert (facts.exists, facts.error, facts.write_error, facts.room_error) == (True, "", "", "")
    assert facts.renames
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    status = os.statvfs(tmp_path)
    assert facts.free_bytes == pytest.approx(status.f_bavail * status.f_frsize, rel=0.5)


def test_an_absent_directory_is_tried_above_and_not_made(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"
    facts = probe(str(wanted))
    assert not facts.exists and not facts.error and facts.renames
    assert list(tmp_path.iterdir()) == []
    assert codes(wanted) == []


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert codes(tmp_path / "file") == ["path-unusable"]
    assert codes(tmp_path / "file" / "below") == ["path-unusable"]


def test_nothing_is_written_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise AssertionError("written")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert probe(str(tmp_path), write=False).error == ""


def test_no_permission_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert codes(tmp_path) == ["path-not-writable"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV])
def test_no_rename(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", refuse)
    assert codes(tmp_path) == ["path-no-rename"]
    assert errno.errorcode[number] in probe(str(tmp_path)).rename_error
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda source, target: target)
    assert codes(tmp_path) == ["path-no-rename"]


@contextmanager
def no_file_larger_than(nbytes: int) -> Iterator[None]:
    """The kernel's own limit on this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_chunk(tmp_path: Path) -> None:
    with no_file_larger_than(100_000):
        assert codes(tmp_path, 90_000) == []
        assert codes(tmp_path, 200_000) == ["path-full"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert codes(tmp_path) == ["path-full"]


@pytest.mark.parametrize("directory", ["/dev/shm", "/proc", "/", "/tmp"])
def test_memory_file_systems_are_told_from_others(directory: str) -> None:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert probe(directory, write=False).in_memory == (kind in ("tmpfs", "ramfs"))


def test_an_arena_larger_than_the_memory_file_system() -> None:
    place = probe("/dev/shm", write=False)
    assert place.free_bytes is not None
    assert [f.code for f in check_shm(place, place.free_bytes + (1 << 40))] == ["shm-small"]
    assert [f.code for f in check_shm(probe("/dev/shm/absent"), 1)] == ["shm-unusable"]
