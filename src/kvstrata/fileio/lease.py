"""Being the only process that does something with a directory, as long as it lives."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from kvstrata.fileio.sharing import Sharing

_BUSY = frozenset({errno.EAGAIN, errno.EACCES})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@contextlib.contextmanager
def lease(path: str, sharing: Sharing = Sharing.USER) -> Iterator[bool]:
    """Hold a lock on a file while the block runs.

    The operating system, or the file server, takes it from a process that dies; no clock is asked. Where the
    file system knows no locks everybody gets the lease, so what is done under one must do no harm when two do
    it at once.

    Args:
        path: of the file; made where it is missing, never removed.
        sharing: who may lock it.

    Yields:
        Whether this process has it; false while another has.

    Raises:
        OSError: the file can be neither opened nor made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, sharing.file_mode)
    try:
        if sharing is Sharing.GROUP:  # the process's mask has taken bits away
            with contextlib.suppress(OSError):  # whoever made it has done so
                os.fchmod(fd, sharing.file_mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            got = True
        except OSError as error:
            if error.errno not in _BUSY | _NO_LOCKS:
                raise
            got = error.errno in _NO_LOCKS
        yield got
    finally:
        os.close(fd)
