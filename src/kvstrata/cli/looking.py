"""Looking at a root: at all of its directories, or at a fair share of them."""

import contextlib
import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from kvstrata.chunks.key import ChunkKey, parse_file_name
from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.chunks.record import NO_TENANT
from kvstrata.cli import console, pool
from kvstrata.cli.estimates import Sum
from kvstrata.cli.holdings import Holdings, Seen
from kvstrata.errors import RecordError
from kvstrata.fileio.beneath import TO_READ
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.tiers.place import PLACE_FILE
from kvstrata.tiers.records import tenant_of
from kvstrata.tiers.ring import Contents, Directories, gather, walk
from kvstrata.tiers.shares import Held
from kvstrata.tiers.spaces import TERMS_FILE
from kvstrata.tiers.sweep import LEASE_FILE, ORPHANED, USAGE_FILE

NOBODY, UNREADABLE = "none", "unreadable"
"""What stands for the tenant of a chunk that has none, and of one whose file cannot tell."""
_HEXADECIMAL = frozenset("0123456789abcdef")
_OF_ROOT = frozenset({USAGE_FILE, LEASE_FILE, PLACE_FILE})
_OF_NAMESPACE = frozenset({NAMESPACE_FILE, TERMS_FILE})


@dataclass(slots=True)
class Beside:
    """Files beside the chunks.

    Attributes:
        temporary: that are being written, or were: their bytes, as parts of a sum.
        files: the same, as files.
        left_over: those of them that nobody has written to for `ORPHANED` seconds.
        foreign: entries of directories that are not ours.
    """

    temporary: Sum = field(default_factory=Sum)
    files: Sum = field(default_factory=Sum)
    left_over: Sum = field(default_factory=Sum)
    foreign: Sum = field(default_factory=Sum)

    def add_temporary(self, path: str, now: float) -> None:
        """Count a temporary file, if it is still there. `now`: seconds since 1970."""
        try:
            status = os.lstat(path)
        except OSError:
            return
        if stat.S_ISREG(status.st_mode):
            self.files.add(1)
            self.temporary.add(status.st_size / max(status.st_nlink, 1))
            if now - status.st_mtime > ORPHANED:
                self.left_over.add(1)


@dataclass(slots=True)
class Look:
    """What a look at a root has shown.

    Attributes:
        share: of the hash directories that were read, above 0, at most 1.
        directories: that were read.
        chunks: that were seen.
        spread: what else stands in the directories that were read.
        above: what else stands in the root and in its namespaces' directories, all of it.
    """

    share: float = 1.0
    directories: int = 0
    chunks: Holdings = field(default_factory=Holdings)
    spread: Beside = field(default_factory=Beside)
    above: Beside = field(default_factory=Beside)


def look(
    root: Path,
    namespaces: Iterable[str],
    *,
    enough: int | None,
    tenants: bool,
    now: float,
    chance: random.Random,
    advance: console.Advance,
) -> Look:
    """Look at a root.

    Args:
        root: its directory.
        namespaces: directories of its namespaces.
        enough: chunks after which no more directories are read; None reads all.
        tenants: open each file that is seen for its tenant.
        now: seconds since 1970.
        chance: chooses directories.
        advance: told of each chunk.

    Raises:
        OSError: the root cannot be read.
    """
    bases = list(namespaces)
    directories = Directories(bases)
    found = Look()
    _look_above(root, bases, found.above, now)
    if enough is None:
        places: Iterable[Contents] = (contents for _, contents in walk(directories, 0))
    else:
        found.share, contents = gather(directories, chance, enough=enough)
        places = _by_directory(contents)
    work = pool.each(places, lambda one: _seen(one, tenants, now), pool.default_threads())
    for contents, seen in work:
        found.directories += contents.directories
        found.chunks.add(seen)
        found.spread.foreign.add(contents.foreign)
        for path, _ in contents.temporaries:
            found.spread.add_temporary(path, now)
        for one in seen:
            advance(int(one.nbytes))
    return found


def tenant_in(path: str, key: ChunkKey) -> str:
    """Whose chunk a file holds: 16 hexadecimal digits, `NOBODY` or `UNREADABLE`."""
    try:
        fd = os.open(path, TO_READ)
    except OSError:
        return UNREADABLE
    try:
        tenant = tenant_of(fd, key)
    except (RecordError, OSError):
        return UNREADABLE
    finally:
        os.close(fd)
    return NOBODY if tenant == NO_TENANT else tenant.hex()


def _by_directory(contents: Contents) -> Iterator[Contents]:
    """The same directory by directory, so that several threads can open their files."""
    rest = Contents([], contents.temporaries, contents.directories, contents.foreign)
    yield rest
    for _, files in groupby(contents.files, lambda one: one.path.rpartition("/")[0]):
        yield Contents(list(files))


def _seen(contents: Contents, tenants: bool, now: float) -> list[Seen]:
    return [one for file in contents.files for one in _chunk(file, tenants, now)]


def _chunk(file: Held, tenants: bool, now: float) -> Iterator[Seen]:
    base, _, _, name = file.path.rsplit("/", 3)
    key = parse_file_name(name)
    if key is not None:
        tenant = tenant_in(file.path, key) if tenants else ""
        yield Seen(Path(base).name, key, file.nbytes, now - file.used, tenant)


def _look_above(root: Path, namespaces: list[str], beside: Beside, now: float) -> None:
    names = {Path(one).name for one in namespaces}
    _look_in(str(root), lambda name: name in _OF_ROOT or name in names, beside, now)
    for base in namespaces:
        with contextlib.suppress(OSError):  # it went away
            _look_in(base, _is_of_namespace, beside, now)


def _is_of_namespace(name: str) -> bool:
    return name in _OF_NAMESPACE or (len(name) == 2 and set(name) <= _HEXADECIMAL)


def _look_in(directory: str, ours: Callable[[str], bool], beside: Beside, now: float) -> None:
    """Count temporary files and what is not ours."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY):
                beside.add_temporary(entry.path, now)
            elif not ours(entry.name):
                beside.foreign.add(1)
