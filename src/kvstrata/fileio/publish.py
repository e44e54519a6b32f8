"""Making a file appear whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence

from kvstrata.fileio.beneath import check_beneath, check_path
from kvstrata.fileio.sharing import Sharing
from kvstrata.fileio.transfer import write_at

TEMPORARY = ".tmp-"
"""How names of files that are being written begin."""


def publish(
    path: str,
    buffers: Sequence[memoryview],
    *,
    fsync: bool = False,
    sharing: Sharing = Sharing.USER,
    base: str | None = None,
) -> int:
    """Write a file under a temporary name in the same directory and rename it into place.

    The temporary name holds 64 random bits and the process id and is opened exclusively, so no other
    process can choose it. Readers see the old file, or none, or the new one whole. Without `fsync` a power
    failure may leave a short or empty file behind; with it the file and its name are on the medium when
    the call returns.

    Args:
        path: where the file shall appear; its directory is made when it is missing.
        buffers: the content, uint8.
        fsync: see above.
        sharing: who may use the file, and the directories that are made for it.
        base: a directory above `path`, below which no directory may be a symbolic link; None where that
            does not matter. A link at `path` itself is always replaced, never followed.

    Returns:
        Bytes written.

    Raises:
        OSError: as the operating system reports it; the temporary file is gone then, if it can be. With
            `fsync` the new file may stand there nevertheless, whole, but not certainly on the medium.
    """
    directory = os.path.dirname(path)
    temporary = _temporary(directory)
    fd, changed = _create(temporary, sharing, base)
    try:
        written = _fill(fd, buffers, fsync)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if fsync:
        _sync_directories([directory, *changed])
    return written


def publish_linked(
    paths: Sequence[str],
    buffers: Sequence[memoryview],
    *,
    keep: Callable[[str], bool],
    fsync: bool = False,
    sharing: Sharing = Sharing.USER,
    base: str | None = None,
) -> list[bool | OSError]:
    """Write one file and let it appear under several names, one after the other: hard links.

    Under each name the file appears whole, as with `publish`. Whoever dies on the way leaves the names so
    far, and the temporary one; what happens to that does no harm to the others.

    Args:
        paths: where the file shall appear, all different, on one file system; directories are made.
        buffers: the content, uint8.
        keep: asked for a path where something stands already: whether that stays.
        fsync, sharing, base: see `publish`.

    Returns:
        For each path: True where the file stands there now, False where something else was kept, or why
        neither. File systems without links say so for each.

    Raises:
        OSError: as the operating system reports it. Without `fsync` the file stands nowhere then.
    """
    temporary = _temporary(os.path.dirname(paths[0]))
    fd, changed = _create(temporary, sharing, base)
    try:
        _fill(fd, buffers, fsync)
        made: list[bool | OSError] = []
        for path in paths:
            try:
                if base is not None:
                    check_path(path, base)
                made.append(_link(temporary, path, keep, changed, sharing))
            except OSError as error:
                made.append(error)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    if fsync:
        placed = [path for path, one in zip(paths, made, strict=True) if one is True]
        _sync_directories([*map(os.path.dirname, placed), *changed])
    return made


def _temporary(directory: str) -> str:
    return f"{directory}/{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"


def _fill(fd: int, buffers: Sequence[memoryview], fsync: bool) -> int:
    """Write a new file and close it. Returns bytes."""
    try:
        written = write_at(fd, buffers, 0)
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)  # may raise too: some file systems report write errors only here
    return written


def _link(
    source: str, path: str, keep: Callable[[str], bool], changed: list[str], sharing: Sharing
) -> bool:
    """Let a file stand at `path` too; False where what stands there is kept."""
    try:
        try:
            os.link(source, path)
        except FileNotFoundError:
            changed += _make_directory(os.path.dirname(path), sharing)
            os.link(source, path)
    except FileExistsError:
        if keep(path):
            return False
        other = _temporary(os.path.dirname(path))
        os.link(source, other)
        try:
            os.rename(other, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(other)
            raise
    return True


def _create(path: str, sharing: Sharing, base: str | None) -> tuple[int, list[str]]:
    """Open a new file, making its directory when it is missing.

    Returns:
        The descriptor, and the directories that got a new directory.
    """
    changed: list[str] = []
    try:
        fd = sharing.make_file(path)
    except FileNotFoundError:
        if base is not None:
            check_path(path, base)
        changed = _make_directory(os.path.dirname(path), sharing)
        fd = sharing.make_file(path)
    if base is not None:
        try:
            check_beneath(fd, path, base)
        except OSError:
            os.close(fd)
            os.unlink(path)
            raise
    return fd, changed


def _make_directory(directory: str, sharing: Sharing) -> list[str]:
    """Make a directory that an attempt to use it did not find; returns those that got a new directory.

    First the last one alone: in a cache that fills, it is nearly always the only one that is missing.
    """
    changed = [os.path.dirname(directory) or "."]
    try:
        sharing.make_directory(directory)
    except FileExistsError:
        pass
    except FileNotFoundError:
        missing = _missing_from(directory)
        changed = [os.path.dirname(one) or "." for one in missing]
        for one in reversed(missing):
            with contextlib.suppress(FileExistsError):
                sharing.make_directory(one)
    return changed


def _missing_from(directory: str) -> list[str]:
    """Those directories on the way to `directory`, itself included, that are missing; the last one first."""
    missing = []
    while directory and not os.path.exists(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    return missing


def _sync_directories(directories: Iterable[str]) -> None:
    """Force the names in some directories to the medium, in order, each once."""
    for directory in dict.fromkeys(directories):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
