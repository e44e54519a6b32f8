"""A published file is there whole or not at all, whatever goes wrong on the way."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstrata.fileio.publish import TEMPORARY, publish

OLD = b"what was there before"
NEW = [memoryview(b"header "), memoryview(b"payload")]


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_it_replaces_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    assert publish(str(path), NEW) == 14
    assert path.read_bytes() == b"header payload"
    assert names(tmp_path) == ["file"]


def test_a_reader_that_has_the_old_file_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with path.open("rb") as reader:
        publish(str(path), NEW)
        assert reader.read() == OLD


@pytest.mark.parametrize("fsync", [False, True])
def test_directories_are_made_when_they_are_missing(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "a" / "b" / "file"
    publish(str(path), NEW, fsync=fsync)
    assert path.read_bytes() == b"header payload"


def test_fsync_covers_the_file_before_its_name_and_every_new_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(fd: int) -> None:
        place = str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix(str(tmp_path.parent) + "/")
        steps.append("temporary" if TEMPORARY in place else place)
        fsync(fd)

    def record_rename(source: str, target: str) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    publish(str(tmp_path / "a" / "b" / "file"), NEW, fsync=True)
    root = tmp_path.name
    assert steps[:2] == ["temporary", "rename"]
    assert sorted(steps[2:]) == [root, f"{root}/a", f"{root}/a/b"]
    steps.clear()
    publish(str(tmp_path / "a" / "b" / "other"), NEW, fsync=True)
    assert steps == ["temporary", "rename", f"{root}/a/b"]
    steps.clear()
    publish(str(tmp_path / "a" / "b" / "third"), NEW)
    assert steps == ["rename"]


def test_the_temporary_name_is_beside_the_file_and_never_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    rename = os.rename

    def record(source: str, target: str) -> None:
        seen.append(Path(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", record)
    for _ in range(50):
        publish(str(tmp_path / "file"), NEW)
    assert {path.parent for path in seen} == {tmp_path}
    assert all(path.name.startswith(f"{TEMPORARY}{os.getpid()}-") for path in seen)
    assert len(set(seen)) == 50


def test_somebody_elses_temporary_file_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
    other = tmp_path / f"{TEMPORARY}{os.getpid()}-{'0' * 16}"
    other.write_bytes(OLD)
    with pytest.raises(FileExistsError):
        publish(str(tmp_path / "file"), NEW)
    assert other.read_bytes() == OLD


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        publish(str(tmp_path / "file"), NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def _fail(number: int) -> Callable[..., int]:
    def call(*_args: object, **_kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("pwritev", errno.ENOSPC),
        ("pwritev", errno.EDQUOT),
        ("fsync", errno.EIO),
        ("rename", errno.EACCES),
    ],
)
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, call, _fail(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        publish(str(path), NEW, fsync=True)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_an_error_that_shows_only_on_closing_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def late(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr(os, "close", late)
    with pytest.raises(OSError, match="over quota"):
        publish(str(tmp_path / "file"), NEW)
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwritev", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(str(tmp_path / "file"), NEW)
    assert names(tmp_path) == []
