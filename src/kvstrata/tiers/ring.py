"""Reading the directories that chunks are spread over: some by chance, or one after the other."""

import math
import os
import random
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvstrata.chunks.key import parse_file_name
from kvstrata.fileio.beneath import check_path
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.tiers.shares import ENOUGH, RING, Held, Sample
from kvstrata.tiers.together import as_one

_DIGITS = "0123456789abcdef"
_BYTES = [first + second for first in _DIGITS for second in _DIGITS]
_KNOWN = frozenset(_BYTES)
LEAST_DIRECTORIES = 16
"""Of a sample, whatever they hold: one that was cleared by hand must not pass for all."""
FIRST_LEVELS = 4
"""First-level directories that a sample comes from at least, where there are so many."""


@dataclass(slots=True)
class Contents:
    """What some directories hold.

    Attributes:
        files: published chunks.
        temporaries: files that are, or were, being written: path and when they were last written.
        directories: that were read.
        foreign: entries that are not ours.
    """

    files: list[Held] = field(default_factory=list)
    temporaries: list[tuple[str, float]] = field(default_factory=list)
    directories: int = 0
    foreign: int = 0


class Directories:
    """The directories of a root's chunks.

    Args:
        namespaces: their directories.
        windowed: for each group of a namespace, by its directory, whether it is windowed; files of others
            are for themselves.
        latest: files whose time is later, seconds by the file system's clock, count as the oldest: nobody
            knows when they were used. Reading renews them.
    """

    def __init__(
        self,
        namespaces: Sequence[str],
        windowed: Mapping[str, Mapping[int, bool]] | None = None,
        latest: float = math.inf,
    ) -> None:
        self._namespaces = namespaces
        self._latest = latest
        self._windowed = windowed or {}

    def below(self, first: str) -> list[str]:
        """Names of the second level that exist below one of the first in any namespace, in order."""
        names: set[str] = set()
        for base in self._namespaces:
            try:
                names.update(os.listdir(f"{base}/{first}"))
            except OSError:
                continue
        return sorted(name for name in names if name in _KNOWN)

    def read(self, first: str, second: str, into: Contents) -> None:
        """Add what one place holds in all namespaces. What cannot be read counts as empty."""
        for base in self._namespaces:
            before = len(into.files)
            try:
                with os.scandir(f"{base}/{first}/{second}") as entries:
                    # What is removed later must not lie elsewhere.
                    check_path(f"{base}/{first}/{second}/", base)
                    into.directories += 1
                    for entry in entries:
                        _add(entry, into, base, self._latest)
            except OSError:
                pass
            windowed = self._windowed.get(base)
            if windowed:
                into.files[before:] = as_one(into.files[before:], windowed)


def sample(root: Directories, chance: random.Random, *, enough: int = ENOUGH) -> Sample:
    """Some directories, chosen evenly.

    Args:
        root: to choose from.
        chance: chooses.
        enough: files after which no more directories are read.
    """
    share, found = gather(root, chance, enough=enough)
    return Sample(share, found.files, found.directories)


def gather(
    root: Directories, chance: random.Random, *, enough: int = ENOUGH
) -> tuple[float, Contents]:
    """All that stands in some directories, and their share of all; see `sample`."""
    found = Contents()
    places, first_levels = 0.0, 0
    for first in chance.sample(_BYTES, len(_BYTES)):
        below = root.below(first)
        if not below:
            places += 256
            continue
        first_levels += 1
        # From several first levels, should one of them be odd.
        wanted = min(enough, enough * first_levels // FIRST_LEVELS)
        least = min(LEAST_DIRECTORIES, LEAST_DIRECTORIES * first_levels // FIRST_LEVELS)
        read = 0
        for second in chance.sample(below, len(below)):
            root.read(first, second, found)
            read += 1
            if len(found.files) >= wanted and found.directories >= least:
                break
        # Places that do not exist are spread among the others as chance has it.
        places += 256 * read / len(below)
        if first_levels >= FIRST_LEVELS and len(found.files) >= enough:
            break
    return max(places / RING, 1 / RING), found


def walk(root: Directories, begin: int) -> Iterator[tuple[int, Contents]]:
    """Every directory once, from a place on and around.

    Args:
        root: to go through.
        begin: 0 to 65 535.

    Yields:
        The place behind each one that exists, and what it holds in all namespaces.
    """
    for turn in range(257):
        first = (begin // 256 + turn) % 256
        for name in root.below(_BYTES[first]):
            second = int(name, 16)
            inside = 256 * first + second
            # The first level where it began is gone through in two parts.
            if (turn == 0 and inside < begin) or (turn == 256 and inside >= begin):
                continue
            found = Contents()
            root.read(_BYTES[first], name, found)
            yield (inside + 1) % RING, found


def stretch(root: Directories, begin: int, length: int) -> Iterator[tuple[int, Contents]]:
    """As `walk`, but only so many places, up to `RING`; it ends behind the last one."""
    for place, contents in walk(root, begin):
        yield place, contents
        if (place - begin) % RING >= length:
            return


def _add(entry: "os.DirEntry[str]", into: Contents, base: str, latest: float) -> None:
    temporary = entry.name.startswith(TEMPORARY)
    key = b"" if temporary else parse_file_name(entry.name)
    if key is None:
        into.foreign += 1
        return
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        into.foreign += 1
        return
    if temporary:
        into.temporaries.append((entry.path, status.st_mtime))
    else:
        # A file that holds several chunks stands under the name of each.
        names = max(status.st_nlink, 1)
        used = status.st_mtime if status.st_mtime <= latest else 0.0
        into.files.append(Held(entry.path, status.st_size / names, used, names, key, base))
