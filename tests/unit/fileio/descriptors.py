"""Which files this process holds open."""

import contextlib
import os
from pathlib import Path


def open_files(file: os.stat_result) -> int:
    """Descriptors of this process that stand for a file; other threads open and close their own."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.path.samestat(one.stat(), file)
    return found
