"""Faults that are done to the directory itself: to files, directories, permissions and the disk.

A window is a context manager that is entered where the fault begins and left where it ends; a strike is a
function. Both are given the place and a source of randomness; a strike returns how many things it touched.
What is not there to be touched, or is taken away meanwhile, raises `OSError`: engines and other faults work
on the same files.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.errors import RecordError
from kvstrata.testing.damage import Damage, damage, forge
from kvstrata.tiers.catalog import check_record, iter_namespaces, iter_records
from lab.soak.place import Place

CLEAR_SECONDS = 60.0
MANY = 30
"""Files or directories that a fault touches at most, where it does not touch all: a tenth or so of what is
there, so that requests meet them."""

Random = random.Random
WindowFault = Callable[[Place, Random], AbstractContextManager[None]]
StrikeFault = Callable[[Place, Random], int]


def records(root: Path) -> list[Path]:
    """Published records below a root, in order of their names.

    Raises:
        OSError: it cannot be read.
    """
    found = [
        file.path
        for namespace in iter_namespaces(root)
        for file in iter_records(namespace.path)
        if not file.temporary
    ]
    return sorted(found)


def _some(found: list[Path], draw: Random, most: int = MANY) -> list[Path]:
    if not found:
        raise FileNotFoundError("nothing there to be touched")
    return draw.sample(found, min(len(found), draw.randrange(1, most + 1)))


def _hash_directories(root: Path) -> list[Path]:
    return sorted({path.parent for path in records(root)})


# Windows.


@contextlib.contextmanager
def disk_full(place: Place, _draw: Random) -> Iterator[None]:
    """Another program fills the disk."""
    place.fill()
    try:
        yield
    finally:
        place.drain()


@contextlib.contextmanager
def disk_read_only(place: Place, _draw: Random) -> Iterator[None]:
    """The file system turns read-only, as after an error of its medium."""
    place.read_only(True)
    try:
        yield
    finally:
        place.read_only(False)


@contextlib.contextmanager
def _modes(changed: Mapping[Path, int]) -> Iterator[None]:
    try:
        for path, mode in changed.items():
            path.chmod(mode)
        yield
    finally:
        for path in changed:  # parents first: what is below can be reached then
            with contextlib.suppress(OSError):
                path.chmod(0o755 if path.is_dir() else 0o644)


@contextlib.contextmanager
def not_writable(place: Place, _draw: Random) -> Iterator[None]:
    """No directory may be written any more."""
    found = [place.root, *sorted(p for p in place.root.rglob("*") if p.is_dir())]
    with _modes(dict.fromkeys(found, 0o555)):
        yield


@contextlib.contextmanager
def no_permission(place: Place, _draw: Random) -> Iterator[None]:
    """The directory may not be entered any more."""
    with _modes({place.root: 0}):
        yield


@contextlib.contextmanager
def records_without_permission(place: Place, draw: Random) -> Iterator[None]:
    """Half of the records may not be read."""
    found = records(place.root)
    with _modes(dict.fromkeys(_some(found, draw, max(1, len(found) // 2)), 0)):
        yield


@contextlib.contextmanager
def _away(paths: list[Path], *, file: bool) -> Iterator[None]:
    moved = []
    try:
        for path in paths:
            path.rename(path.with_name(path.name + ".aside"))
            moved.append(path)
            if file:
                path.write_text("not a directory")
        yield
    finally:
        for path in moved:
            _put_back(path)


def _put_back(path: Path) -> None:
    aside = path.with_name(path.name + ".aside")
    for _ in range(200):
        _remove(path)  # the engines may have made it anew, and may do so once more
        try:
            aside.rename(path)
        except FileNotFoundError:
            return  # a strike has deleted what it stood in
        except OSError:
            continue
        return
    raise OSError(f"{path} cannot be put back")


def _remove(path: Path) -> None:
    """Remove a file or a tree, also while others add to it."""
    if path.is_dir():
        for _ in range(100):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def root_is_file(place: Place, _draw: Random) -> Iterator[None]:
    """A file stands where the directory was."""
    with _away([place.root], file=True):
        yield


@contextlib.contextmanager
def namespace_is_file(place: Place, draw: Random) -> Iterator[None]:
    """A file stands where the namespace's directory was."""
    found = [namespace.path for namespace in iter_namespaces(place.root)]
    with _away(_some(found, draw, 1), file=True):
        yield


@contextlib.contextmanager
def hash_directories_are_files(place: Place, draw: Random) -> Iterator[None]:
    """Files stand where some directories of records were."""
    with _away(_some(_hash_directories(place.root), draw), file=True):
        yield


@contextlib.contextmanager
def root_gone(place: Place, _draw: Random) -> Iterator[None]:
    """The directory is not there, as when its server is gone; it comes back with what it held."""
    with _away([place.root], file=False):
        yield


@contextlib.contextmanager
def fifos(place: Place, draw: Random) -> Iterator[None]:
    """Pipes stand in the place of records: opening one does not return before the window ends."""
    chosen = _some(records(place.root), draw, 3)
    made = []
    try:
        for path in chosen:
            path.unlink()
            os.mkfifo(path)
            made.append(path)
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # lets go whoever waits
                path.unlink()


# Strikes.


def damage_records(place: Place, draw: Random) -> int:
    """Any damage that a medium or another program does to records."""
    return sum(
        _did(damage, path, draw.choice(list(Damage))) for path in _some(records(place.root), draw)
    )


def forge_records(place: Place, draw: Random) -> int:
    """Other numbers under valid checksums: a control, for no reader can find them. See `forge`."""
    return sum(
        _did(forge, path, draw.randrange(1 << 30)) for path in _some(records(place.root), draw, 200)
    )


def _did(spoil: Callable[..., None], path: Path, how: object) -> bool:
    # Another fault may have been here before, or an engine may have removed the file.
    with contextlib.suppress(OSError, RecordError):
        check_record(path)  # what is spoilt must be whole
        spoil(path, how)
        return True
    return False


def truncate_records(place: Place, draw: Random) -> int:
    """Records lose their end, perhaps while they are read."""
    chosen = _some(records(place.root), draw)
    for path in chosen:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, draw.randrange(path.stat().st_size + 1))
    return len(chosen)


def delete_records(place: Place, draw: Random) -> int:
    """Records vanish."""
    chosen = _some(records(place.root), draw)
    for path in chosen:
        path.unlink(missing_ok=True)
    return len(chosen)


def delete_directories(place: Place, draw: Random) -> int:
    """Directories of records vanish."""
    chosen = _some(_hash_directories(place.root), draw)
    for path in chosen:
        shutil.rmtree(path, ignore_errors=True)
    return len(chosen)


def delete_root(place: Place, _draw: Random) -> int:
    """The whole directory vanishes."""
    if not place.root.is_dir():
        raise FileNotFoundError("it is gone already")
    _remove(place.root)
    return 1


def garbage(place: Place, draw: Random) -> int:
    """Random bytes under names of records, of some that exist and of some that do not."""
    found = records(place.root)
    namespace = next(iter_namespaces(place.root), None)
    if namespace is None:
        raise FileNotFoundError("no namespace")
    fresh = [
        namespace.path / relative_path(make_key(draw.randbytes(32), draw.randrange(2)))
        for _ in range(3)
    ]
    for path in [*fresh, *(_some(found, draw) if found else [])]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a fifo may stand there, which would not let us open it
        path.write_bytes(draw.randbytes(draw.randrange(1, 200_000)))
    return len(fresh)


def spoil_namespace_file(place: Place, draw: Random) -> int:
    """What describes the namespace is gone, or is garbage."""
    found = [namespace.path / NAMESPACE_FILE for namespace in iter_namespaces(place.root)]
    (path,) = _some(found, draw, 1)
    if draw.random() < 0.5:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(draw.randbytes(100))
    return 1


def clear(place: Place, _draw: Random) -> int:
    """An operator clears the directory while engines use it."""
    return run_clear(place)


def run_clear(place: Place, *arguments: str) -> int:
    """`kvstrata clear`; 1.

    Raises:
        OSError: it ended with an error, as it must where the directory is not usable.
    """
    command = [sys.executable, "-m", "kvstrata.cli.main", "clear", str(place.root), "--yes"]
    try:
        run = subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLEAR_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError("kvstrata clear did not end") from error
    if run.returncode:
        raise OSError(f"kvstrata clear: {run.stderr.strip()[-300:]}")
    return 1


WINDOWS: Mapping[str, WindowFault] = {
    "disk full": disk_full,
    "disk read-only": disk_read_only,
    "not writable": not_writable,
    "no permission": no_permission,
    "records without permission": records_without_permission,
    "root is a file": root_is_file,
    "namespace is a file": namespace_is_file,
    "hash directories are files": hash_directories_are_files,
    "root gone and back": root_gone,
    "fifos for records": fifos,
}
NEED_DISK = frozenset({"disk full", "disk read-only"})
NEED_PERMISSIONS = frozenset({"not writable", "no permission", "records without permission"})
EXCLUSIVE = (
    # Each puts back what it found, so nobody else may change the same names and modes meanwhile, and the
    # disk must be writable then.
    frozenset(WINDOWS) - {"disk full"},
    frozenset({"disk full", "disk read-only"}),
)

STRIKES: Mapping[str, StrikeFault] = {
    "damage": damage_records,
    "truncate": truncate_records,
    "delete records": delete_records,
    "delete directories": delete_directories,
    "delete root": delete_root,
    "garbage": garbage,
    "namespace file": spoil_namespace_file,
    "kvstrata clear": clear,
}
CONTROL: Mapping[str, StrikeFault] = {"forge": forge_records}
