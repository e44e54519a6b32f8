"""Removing what is due from a root, one directory after the other, and what is written down of the root.

Whoever does so holds the lease on `LEASE_FILE`: an engine's keeper, or an operator's command.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kvstrata.chunks.key import ChunkKey, hash_of, parse_file_name, relative_path
from kvstrata.errors import RecordError
from kvstrata.fileio.beneath import check_path, read_small
from kvstrata.fileio.publish import publish
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.catalog import names_of
from kvstrata.tiers.ring import Contents
from kvstrata.tiers.shares import RING, Eviction, Held
from kvstrata.tiers.together import dependents

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
        age: seconds since the files that go next, or would, were used; 0 where that is not known.
        patrol: where the search for what is past its time goes on.
        patrolled: when it got there, seconds by the file system's clock.
        samples: that were taken; several rounds may tell of one. 0 where an older release wrote it.
    """

    round: int = 0
    used: float = 0.0
    bound: float = 0.0
    place: int = 0
    directories: int = 0
    age: float = 0.0
    patrol: int = 0
    patrolled: float = 0.0
    samples: int = 0


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


Windowed = Mapping[str, Mapping[int, bool]]
"""For each group of a namespace, by its directory, whether it is windowed."""


def sweep(
    places: Iterator[tuple[int, Contents]],
    due: Eviction,
    orphaned: float,
    rest: Callable[[], bool],
    windowed: Windowed | None = None,
) -> Swept:
    """Remove what is due.

    Args:
        places: directories, as `tiers.ring.walk` yields them; can be gone on with later.
        due: what is to go.
        orphaned: temporary files that nobody has written to since this time go too.
        rest: called after each directory; true to stop.
        windowed: of namespaces whose boundaries go as one.
    """
    swept = Swept()
    spare: dict[str, float] = {}
    for swept.place, contents in places:
        _remove(contents, due, swept, spare, windowed or {})
        _reap(contents, orphaned)
        if swept.nbytes >= due.nbytes or rest():
            return swept
    swept.around = True
    return swept


def file_system_time(root: Path) -> float:
    """The time now by the clock of the file system, or of its server: seconds as files' times are.

    Raises:
        OSError: nothing can be written, or nobody has asked for the lease yet.
    """
    path = f"{root}/{LEASE_FILE}"
    os.utime(path, follow_symlinks=False)
    return os.lstat(path).st_mtime


def read_usage(root: Path) -> Usage | None:
    """What is written down of a root; None where nothing is, or nothing that can be read."""
    try:
        found = msgspec.json.decode(read_small(f"{root}/{USAGE_FILE}", 4096), type=Usage)
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    # Whoever can write it can lie; what follows must only be wrong, and only until somebody looks again.
    return msgspec.structs.replace(
        found,
        round=found.round % 2**62,
        samples=found.samples % 2**62,
        used=max(found.used, 0.0),
        bound=max(found.bound, 0.0),
        age=max(found.age, 0.0),
        place=found.place % RING,
        patrol=found.patrol % RING,
    )


def write_usage(root: Path, usage: Usage, sharing: Sharing = Sharing.USER) -> float:
    """Write down what is known of a root; returns when that was, by the file system's clock.

    Raises:
        OSError: it cannot be written.
    """
    path = f"{root}/{USAGE_FILE}"
    publish(path, [memoryview(msgspec.json.encode(usage))], sharing=sharing)
    return os.stat(path).st_mtime


def _remove(
    contents: Contents,
    due: Eviction,
    swept: Swept,
    spare: dict[str, float],
    windowed: Windowed,
) -> None:
    """Remove what is due of one directory, the oldest first."""
    # The same prompts have the same hashes in every namespace.
    before = ("", b"")
    # Equally old ones stay in their order: a boundary's windows before its full chunk.
    for one in sorted(contents.files, key=lambda one: one.used):
        part = due.of(one.space)
        if one.used > part.until:
            continue
        # Of a boundary that has begun to go the rest goes too, though enough was removed.
        boundary = (one.space, hash_of(one.key))
        if not one.key or boundary != before:
            if swept.nbytes >= due.nbytes:
                return
            if spare.setdefault(one.space, part.nbytes) <= 0:
                continue
        before = boundary
        nbytes = swept.nbytes
        _unlink(one, swept, windowed.get(one.space, {}))
        if one.space in spare:
            spare[one.space] -= swept.nbytes - nbytes


def _unlink(one: Held, swept: Swept, windowed: Mapping[int, bool]) -> None:
    """Remove a file with all its names, and of other files what depends on chunks in it."""
    if one.names == 1:
        _unlink_one(one.path, one.nbytes, swept)
        return
    # The bytes of chunks that share a file go only when all of its names do.
    paths = _names(one.path)
    for path in paths:
        _unlink_one(path, one.nbytes, swept, one.space)
    keys: list[ChunkKey] = [
        key for path in paths if (key := parse_file_name(os.path.basename(path))) is not None
    ]
    for key in dependents(keys, windowed):
        path = f"{one.space}/{relative_path(key)}"
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            _unlink_one(path, status.st_size / max(status.st_nlink, 1), swept, one.space)


def _unlink_one(path: str, nbytes: float, swept: Swept, base: str = "") -> None:
    """Remove one name; `base`: the namespace's directory, below which links are not followed."""
    with contextlib.suppress(OSError):
        if base:
            check_path(path, base)
        os.unlink(path)
        swept.nbytes += nbytes
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
