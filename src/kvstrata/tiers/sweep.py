"""Removing what is due from a root, one directory after the other, and what is written down of the root.

Whoever does so holds the lease on `LEASE_FILE`: an engine's keeper, or an operator's command.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kvstrata.errors import RecordError
from kvstrata.fileio.publish import publish
from kvstrata.tiers.catalog import fingerprint_of, names_of
from kvstrata.tiers.ring import Contents
from kvstrata.tiers.shares import Eviction

USAGE_FILE = "usage.json"
LEASE_FILE = "usage.lock"
ORPHANED = 3600.0
"""Seconds after which a temporary file that nobody writes to is removed; by the file system's clock alone."""


class Usage(msgspec.Struct, frozen=True):
    """What a look at a root has shown; content of `USAGE_FILE`.

    Attributes:
        round: number of the look, counted by all processes together.
        used: bytes of all namespaces, estimated.
        bound: bytes that they may be.
        place: where the next eviction begins.
        directories: that were read for it.
    """

    round: int = 0
    used: float = 0.0
    bound: float = 0.0
    place: int = 0
    directories: int = 0


@dataclass(slots=True)
class Swept:
    """What was removed.

    Attributes:
        place: behind the last directory that was gone through.
        removed: paths of chunks.
        nbytes: that went with them.
        around: whether all directories were gone through.
    """

    place: int = 0
    removed: list[str] = field(default_factory=list)
    nbytes: float = 0.0
    around: bool = False


def sweep(
    places: Iterator[tuple[int, Contents]],
    due: Eviction,
    orphaned: float,
    rest: Callable[[], bool],
) -> Swept:
    """Remove what is due.

    Args:
        places: directories, as `tiers.ring.walk` yields them; can be gone on with later.
        due: what is to go.
        orphaned: temporary files that nobody has written to since this time go too.
        rest: called after each directory; true to stop.
    """
    swept = Swept()
    for swept.place, contents in places:
        _remove(contents, due, swept)
        _reap(contents, orphaned)
        if swept.nbytes >= due.nbytes or rest():
            return swept
    swept.around = True
    return swept


def namespaces_of(root: Path) -> list[str]:
    """Directories of a root's namespaces, by name.

    Raises:
        OSError: the root cannot be read.
    """
    with os.scandir(root) as entries:
        return sorted(
            entry.path
            for entry in entries
            if fingerprint_of(entry.name) is not None and entry.is_dir(follow_symlinks=False)
        )


def read_usage(root: Path) -> Usage | None:
    """What is written down of a root; None where nothing is, or nothing that can be read."""
    try:
        with open(f"{root}/{USAGE_FILE}", "rb") as file:
            return msgspec.json.decode(file.read(4096), type=Usage)
    except (OSError, msgspec.DecodeError):
        return None


def write_usage(root: Path, usage: Usage) -> float:
    """Write down what is known of a root; returns when that was, by the file system's clock.

    Raises:
        OSError: it cannot be written.
    """
    path = f"{root}/{USAGE_FILE}"
    publish(path, [memoryview(msgspec.json.encode(usage))])
    return os.stat(path).st_mtime


def _remove(contents: Contents, due: Eviction, swept: Swept) -> None:
    for one in sorted(contents.files, key=lambda one: one.used):
        if one.used > due.until or swept.nbytes >= due.nbytes:
            break
        # The bytes of chunks that share a file go only when all of its names do.
        for path in [one.path] if one.names == 1 else _names(one.path):
            with contextlib.suppress(OSError):
                os.unlink(path)
                swept.nbytes += one.nbytes
                swept.removed.append(path)


def _names(path: str) -> list[str]:
    """All names of a file that holds several chunks, as far as they can be found out."""
    try:
        return [str(one) for one in names_of(Path(path))]
    except (RecordError, OSError):
        return [path]


def _reap(contents: Contents, before: float) -> None:
    """Remove files whose writers died."""
    for path, written in contents.temporaries:
        if written < before:
            with contextlib.suppress(OSError):
                os.unlink(path)
