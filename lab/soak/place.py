"""Where the soak's engines keep their files: a small file system of its own, where this machine allows it."""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DISK_BYTES = 384 << 20
"""Of the small file system."""
FILLER = "filler"

# <linux/sched.h>, <linux/mount.h>
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_BUSY_SECONDS = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Place:
    """The directories of a soak.

    Attributes:
        disk: the file system, or a plain directory.
        root: the directory that engines are given as `path`.
        shm: the directory that engines are given as `shm_dir`.
        mounted: whether `disk` is a file system of its own: only then can it be filled, or turn read-only.
    """

    disk: Path
    root: Path
    shm: Path
    mounted: bool

    def fill(self) -> None:
        """Leave not one byte free. Needs `mounted`."""
        fd = os.open(self.disk / FILLER, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            size = 0
            for step in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while size < 2 * DISK_BYTES:
                        os.posix_fallocate(fd, size, step)
                        size += step
        finally:
            os.close(fd)

    def drain(self) -> None:
        """Give back what `fill` took."""
        (self.disk / FILLER).unlink(missing_ok=True)

    def read_only(self, on: bool) -> None:
        """Turn the file system read-only, or back. Needs `mounted`.

        Raises:
            OSError: not possible now, such as while a file is open for writing.
        """
        flags = _MS_REMOUNT | _MS_BIND | (_MS_RDONLY if on else 0)
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return _mount("none", self.disk, "", flags)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.002)


@contextlib.contextmanager
def open_place() -> Iterator[Place]:
    """Make the directories, and remove them in the end.

    The small file system is mounted where only this process and its children see it, so that it vanishes
    with them. To be called before any thread is started.
    """
    disk = Path(tempfile.mkdtemp(prefix="kvstrata-soak-"))
    shm = Path(tempfile.mkdtemp(prefix="kvstrata-soak-", dir="/dev/shm"))
    mounted = _mount_disk(disk)
    try:
        yield Place(disk, disk / "kv", shm, mounted)
    finally:
        if mounted:
            _libc.umount2(
                os.fsencode(disk), 2
            )  # MNT_DETACH: whoever still has a file open keeps it
        shutil.rmtree(disk, ignore_errors=True)
        shutil.rmtree(shm, ignore_errors=True)


def _mount_disk(target: Path) -> bool:
    if _libc.unshare(_CLONE_NEWNS):
        return False
    try:
        _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)
        _mount("tmpfs", target, "tmpfs", 0, f"size={DISK_BYTES},mode=755")
    except OSError:
        return False
    return True


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    texts = (source.encode(), os.fsencode(target), kind.encode() or None)
    if _libc.mount(*texts, ctypes.c_ulong(flags), data.encode() or None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
