"""One measurement at a time: two would take each other's files away, and each other's processor."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OccupiedError(Exception):
    """Another process holds the lock; the message says what that means to a person."""


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock file for as long as the block runs; the kernel frees it with the process.

    Args:
        lock: made if it is missing, and left behind.

    Raises:
        OccupiedError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OccupiedError(
                "another demo or benchmark runs in this working tree; try again when it has ended"
            ) from None
        yield
