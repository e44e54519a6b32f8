"""Files below a directory: no way leads outside, and nothing keeps a reader waiting."""

import errno
import os
import socket
from pathlib import Path

import pytest

from kvstrata.fileio import beneath
from kvstrata.fileio.beneath import TO_READ, check_beneath, check_path, read_small
from tests.unit.fileio.descriptors import open_files


@pytest.fixture(params=["with /proc", "without /proc"])
def proc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, the way is looked at instead of where the file lies."""
    if request.param == "without /proc":

        def nothing(path: str) -> str:
            raise FileNotFoundError(errno.ENOENT, "no /proc", path)

        monkeypatch.setattr(beneath.os, "readlink", nothing)


def opened(path: Path, base: Path) -> None:
    """Open a file by its path and check where it lies."""
    fd = os.open(path, TO_READ)
    try:
        check_beneath(fd, str(path), str(base))
    finally:
        os.close(fd)


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


@pytest.mark.usefixtures("proc")
def test_what_lies_where_its_path_says_passes(tmp_path: Path) -> None:
    path = put(tmp_path / "root" / "m" / "ab" / "cd" / "x.kv")
    opened(path, tmp_path / "root")
    opened(path, path.parent)


@pytest.mark.usefixtures("proc")
@pytest.mark.parametrize("level", ["m", "m/ab", "m/ab/cd"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_link_on_the_way_is_refused(tmp_path: Path, level: str, inside: bool) -> None:
    """Wherever it leads, even to another place of the same root."""
    root = tmp_path / "root"
    path = put(root / "m" / "ab" / "cd" / "x.kv")
    opened(path, root)
    moved = (root if inside else tmp_path) / "elsewhere"
    (root / level).rename(moved)
    (root / level).symlink_to(moved)
    with pytest.raises(OSError, match=r"x\.kv|symbolic link") as caught:
        opened(path, root)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.usefixtures("proc")
def test_the_root_itself_may_be_reached_by_links_and_may_move(tmp_path: Path) -> None:
    put(tmp_path / "one" / "ab" / "x.kv")
    root = tmp_path / "root"
    root.symlink_to(tmp_path / "one")
    opened(root / "ab" / "x.kv", root)
    # What was known of the way there is wrong from now on.
    (tmp_path / "one").rename(tmp_path / "two")
    root.unlink()
    root.symlink_to(tmp_path / "two")
    opened(root / "ab" / "x.kv", root)


@pytest.mark.usefixtures("proc")
def test_one_that_was_removed_meanwhile_lies_where_it_lay(tmp_path: Path) -> None:
    path = put(tmp_path / "ab" / "x.kv")
    fd = os.open(path, TO_READ)
    path.unlink()
    check_beneath(fd, str(path), str(tmp_path))
    os.close(fd)


def test_missing_directories_are_no_links(tmp_path: Path) -> None:
    check_path(f"{tmp_path}/no/such/file", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_path(f"{tmp_path}/file/a/b", str(tmp_path))


def test_a_small_file_is_read_up_to_what_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"0123456789")
    assert read_small(str(path), 10) == read_small(str(path), 99) == b"0123456789"
    assert read_small(str(path), 4) == b"0123" and read_small(str(path), 0) == b""


@pytest.mark.parametrize("kind", ["link", "pipe", "socket", "directory", "nothing", "device"])
def test_what_is_no_file_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    held = socket.socket(socket.AF_UNIX)
    match kind:
        case "link":
            path.symlink_to(put(tmp_path / "file"))
        case "pipe":
            os.mkfifo(path)
        case "socket":
            held.bind(str(path))
        case "directory":
            path.mkdir()
        case "device":
            path = Path("/dev/zero")
    with pytest.raises(OSError, match=path.name):
        read_small(str(path), 99)
    assert kind == "nothing" or open_files(path.stat()) == 0
    held.close()
