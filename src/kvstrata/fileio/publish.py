"""Making a file appear whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Sequence

from kvstrata.fileio.transfer import write_at

TEMPORARY = ".tmp-"
"""How names of files that are being written begin."""


def publish(path: str, buffers: Sequence[memoryview], *, fsync: bool = False) -> int:
    """Write a file under a temporary name in the same directory and rename it into place.

    The temporary name holds 64 random bits and the process id and is opened exclusively, so no other
    process can choose it. Readers see the old file, or none, or the new one whole. Without `fsync` a power
    failure may leave a short or empty file behind; with it the file and its name are on the medium when
    the call returns.

    Args:
        path: where the file shall appear; its directory is made when it is missing.
        buffers: the content, uint8.
        fsync: see above.

    Returns:
        Bytes written.

    Raises:
        OSError: as the operating system reports it; the temporary file is gone then, if it can be. With
            `fsync` the new file may stand there nevertheless, whole, but not certainly on the medium.
    """
    directory = os.path.dirname(path)
    temporary = f"{directory}/{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"
    fd, changed = _create(temporary)
    try:
        try:
            written = write_at(fd, buffers, 0)
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)  # may raise too: some file systems report write errors only here
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if fsync:
        for one in (directory, *changed):
            _sync_directory(one)
    return written


def _create(path: str) -> tuple[int, list[str]]:
    """Open a new file, making its directory when it is missing.

    Directories are made only when the first attempt fails, and then first the last one alone: in a cache
    that fills, it is nearly always the only one that is missing.

    Returns:
        The descriptor, and the directories that got a new directory.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666), []
    except FileNotFoundError:
        directory = os.path.dirname(path)
    changed = [os.path.dirname(directory) or "."]
    try:
        os.mkdir(directory)
    except FileExistsError:
        pass
    except FileNotFoundError:
        changed = _missing_from(directory)
        os.makedirs(directory, exist_ok=True)
    return os.open(path, flags, 0o666), changed


def _missing_from(directory: str) -> list[str]:
    """The parents of those directories on the way to `directory`, itself included, that are missing."""
    parents = []
    while directory and not os.path.exists(directory):
        directory = os.path.dirname(directory)
        parents.append(directory or ".")
    return parents


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
