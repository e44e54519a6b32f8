"""A published file is there whole or not at all, whatever goes wrong on the way."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstrata.fileio.publish import TEMPORARY, publish, publish_linked
from kvstrata.fileio.sharing import Sharing

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
@pytest.mark.parametrize(
    ("sharing", "file", "directory"),
    [(Sharing.USER, 0o600, 0o700), (Sharing.GROUP, 0o660, 0o2770)],
)
def test_modes_do_not_follow_the_umask(
    tmp_path: Path, umask: int, sharing: Sharing, file: int, directory: int
) -> None:
    before = os.umask(umask)
    try:
        publish(str(tmp_path / "a" / "b" / "one"), NEW, sharing=sharing)
        publish(str(tmp_path / "a" / "two"), NEW, sharing=sharing)
        paths = [str(tmp_path / "a" / "three"), str(tmp_path / "a" / "c" / "four")]
        assert publish_linked(paths, NEW, keep=lambda _: False, sharing=sharing) == [True, True]
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) == 7
    assert all(mode == (directory if path.is_dir() else file) for path, mode in modes.items())


def test_no_link_is_followed_below_the_base(tmp_path: Path) -> None:
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (base / "ns").mkdir(parents=True)
    (base / "ns" / "aa").symlink_to(elsewhere)
    for path in (base / "ns" / "aa" / "file", base / "ns" / "aa" / "bb" / "file"):
        with pytest.raises(OSError, match=r"symbolic link|lies elsewhere") as caught:
            publish(str(path), NEW, base=str(base))
        assert caught.value.errno == errno.ELOOP
    good = str(base / "ns" / "bb" / "file")
    linked = [good, str(base / "ns" / "aa" / "file")]
    made = publish_linked(linked, NEW, keep=lambda _: False, base=str(base))
    assert made[0] is True and isinstance(made[1], OSError) and made[1].errno == errno.ELOOP
    assert list(elsewhere.iterdir()) == []


def test_the_base_itself_may_be_reached_by_links_and_moved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    path, base = str(tmp_path / "way" / "ns" / "file"), str(tmp_path / "way")
    publish(path, NEW, base=base)
    (tmp_path / "real").rename(tmp_path / "other")
    (tmp_path / "way").unlink()
    (tmp_path / "way").symlink_to("other")
    publish(path, [memoryview(OLD)], base=base)
    assert (tmp_path / "other" / "ns" / "file").read_bytes() == OLD


def test_a_link_in_the_files_place_is_replaced(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(OLD)
    (tmp_path / "file").symlink_to(other)
    publish(str(tmp_path / "file"), NEW, base=str(tmp_path))
    assert other.read_bytes() == OLD and not (tmp_path / "file").is_symlink()


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
