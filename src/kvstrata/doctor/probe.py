"""Trying a directory with a temporary file. The only module here that does I/O."""

import contextlib
import errno
import os
import secrets
from pathlib import Path

from kvstrata.doctor.facts import PlaceFacts

_MEMORY_TYPES = frozenset({"tmpfs", "ramfs", "hugetlbfs", "devtmpfs"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def probe(path: str, nbytes: int = 4096, *, write: bool = True) -> PlaceFacts:
    """Try a directory: make a file of `nbytes` bytes in it and rename it over another one.

    Where the directory is absent, the nearest one above it is tried, and nothing is made. What was
    written is removed.

    Args:
        path: of the directory.
        nbytes: of the file.
        write: whether to write at all.
    """
    directory = Path(path)
    exists = directory.exists()
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        if not directory.is_dir():
            return PlaceFacts(path, exists, error=f"{directory} is not a directory")
        os.scandir(directory).close()
        status = os.statvfs(directory)
    except OSError as error:
        return PlaceFacts(path, exists, error=_text(error))
    # A file system that knows no limits reports nothing at all.
    free = status.f_bavail * status.f_frsize if status.f_blocks else None
    found = PlaceFacts(path, exists, free_bytes=free, in_memory=_in_memory(directory))
    return _write(directory, nbytes, found) if write else found


def _write(directory: Path, nbytes: int, so_far: PlaceFacts) -> PlaceFacts:
    names = [directory / f".kvstrata-doctor-{secrets.token_hex(8)}" for _ in range(2)]
    error, room, rename = "", "", ""
    try:
        for name, content in zip(names, (b"old", b"new"), strict=True):
            name.write_bytes(content)
        room = _fill(names[1], nbytes)
        rename = _rename(names[1], names[0])
    except OSError as failure:
        if failure.errno in _FULL:
            room = _text(failure)
        else:
            error = _text(failure)
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                name.unlink()
    return PlaceFacts(
        so_far.path,
        so_far.exists,
        write_error=error,
        renames=not rename,
        rename_error=rename,
        room_error=room,
        free_bytes=so_far.free_bytes,
        in_memory=so_far.in_memory,
    )


def _fill(path: Path, nbytes: int) -> str:
    """Extend a file with real bytes, since quotas bite only then; why it failed, or nothing."""
    piece = bytes(1 << 20)
    try:
        with path.open("ab", buffering=0) as file:
            left = nbytes
            while left > 0:
                left -= file.write(piece[:left])
            os.fsync(file.fileno())  # a file server may say only now that it has no room
    except OSError as error:
        return _text(error)
    return ""


def _rename(source: Path, target: Path) -> str:
    try:
        source.replace(target)
        with target.open("rb") as file:
            read = file.read(3)
    except OSError as error:
        return _text(error)
    return "" if read == b"new" else "the old file is still there"


def _in_memory(directory: Path) -> bool:
    """Whether the file system that holds `directory` keeps its files in memory."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        device = directory.stat().st_dev
    except OSError:
        return True  # unknown: no reason to complain
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0] in _MEMORY_TYPES
    return True


def _text(error: OSError) -> str:
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, 'EIO')})"
