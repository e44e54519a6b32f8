"""Files below a directory: symbolic links are not followed, and nothing keeps a reader waiting.

A link as the last part of a path is refused by the system (O_NOFOLLOW). For the parts before it, the system
is asked where the file lies that it opened: nothing can change between question and answer. That costs as
much as opening it, so it is asked where something is written, renewed or removed; what is read is verified
whatever way it came. The directory itself, which the operator names, may be reached by links.
"""

import errno
import functools
import os
import stat

TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags; a pipe without a writer would be waited for without the last one."""

NO_FILES = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""How opening with these flags fails where a link, a socket or a device stands, instead of a file."""


def check_beneath(fd: int, path: str, base: str) -> None:
    """Check that a file which was opened by its path lies in the directory that the path says.

    Args:
        fd: of the file.
        path: absolute, below `base`, without "." and "..".
        base: below which nothing may be a link.

    Raises:
        OSError: ELOOP where it does not.
    """
    inside = path.rpartition("/")[0][len(base) :]
    try:
        # Only the directory counts: a name can be gone by now, which is told by other names.
        found = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[0]
    except OSError:
        check_path(path, base)  # there is no /proc
        return
    if found == _real(base) + inside:
        return
    _real.cache_clear()  # the directory may have been moved, and is reached by another way now
    if found != _real(base) + inside:
        raise OSError(errno.ELOOP, f"lies elsewhere, in {found}", path)


def check_path(path: str, base: str) -> None:
    """Check that no directory on the way from `base` to `path` is a link; missing ones are none.

    Raises:
        OSError: ELOOP where one is.
    """
    at = len(base)
    while (at := path.find("/", at + 1)) >= 0:
        try:
            mode = os.lstat(path[:at]).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "is a symbolic link", path[:at])


@functools.lru_cache(maxsize=16)
def _real(base: str) -> str:
    return os.path.realpath(base)


def read_small(path: str, most: int) -> bytes:
    """Content of a small file; what lies behind `most` bytes is not read.

    Raises:
        OSError: as the operating system reports it; ELOOP for a link, EINVAL for what is no file.
    """
    fd = os.open(path, TO_READ)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a file", path)
        data = b""
        while len(data) < most and (part := os.read(fd, most - len(data))):
            data += part
        return data
    finally:
        os.close(fd)
