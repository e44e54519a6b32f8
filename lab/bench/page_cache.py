"""What the page cache holds of files, and letting it forget them."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)


def drop_pages(directory: Path) -> None:
    """Let the page cache forget every chunk's file below a directory.

    Raises:
        RuntimeError: it kept more than a few: a file system that lives in memory, say.
    """
    # A segment stands under the name of each of its chunks.
    files = {path.stat().st_ino: path for path in directory.rglob("*.kv")}
    kept = forget(files.values())
    if kept * 20 > len(files):
        raise RuntimeError(f"{kept} of {len(files)} files stay in the page cache")


def forget(files: Iterable[Path | str]) -> int:
    """Let the page cache forget files, none of them empty. Returns of how many it kept something."""
    kept = 0
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)  # what is not on the disk yet would stay
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            kept += cached_pages(fd) > 0
        finally:
            os.close(fd)
    return kept


def cached_pages(fd: int) -> int:
    """Pages of a file, which is not empty, that are in the page cache.

    Asked with `mincore`: a read that does not wait (RWF_NOWAIT) begins to fetch what it does not find.

    Raises:
        OSError: the system does not tell; EPERM where the file is another's.
    """
    length = os.fstat(fd).st_size
    found = np.empty(-(-length // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(fd, length, prot=mmap.PROT_READ) as mapped:
        place = np.frombuffer(mapped, np.uint8)
        failed = _LIBC.mincore(
            ctypes.c_void_p(place.ctypes.data),
            ctypes.c_size_t(length),
            ctypes.c_void_p(found.ctypes.data),
        )
        del place  # the mapping cannot be closed while it is looked at
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return int(np.count_nonzero(found & 1))
