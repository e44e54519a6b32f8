"""The namespaces of a root as whoever evicts sees them: what their engines ask for, and their groups.

An engine writes what it asks for beside `namespace.json`, and renews that file's time as long as it lives, so
that a namespace which nobody uses any more can be told by its age. All of it may be missing, old or wrong:
then a namespace asks for nothing, and each of its files is for itself.
"""

import contextlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kvstrata.chunks.geometry import GroupKind
from kvstrata.chunks.key import GROUP_BYTES
from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.fileio.beneath import read_small
from kvstrata.fileio.publish import publish
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.catalog import fingerprint_of
from kvstrata.tiers.shares import Claim

TERMS_FILE = "terms.json"
"""In a namespace's directory: what its engines ask of whoever evicts."""
STAMP_SECONDS = 3600.0
"""An engine says so often that its namespace is in use."""
_TERMS_BYTES = 4096
_FACTS_BYTES = 1 << 20
_MAX_WEIGHT = 1e6
_NAMES = [f"{number:02x}" for number in range(256)]


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a namespace's engines ask for; content of `TERMS_FILE`.

    Attributes:
        floor: bytes that it keeps before others go.
        weight: its files' ages count divided by this.
        ttl: seconds after which what was not used is worth nothing; 0 for never.
    """

    floor: float = 0.0
    weight: float = 1.0
    ttl: float = 0.0


@dataclass(frozen=True, slots=True)
class Space:
    """One namespace.

    Attributes:
        path: of its directory.
        terms: that its engines ask for.
        windowed: for each group, whether a boundary needs only the end of the prefix from it; empty where
            that is not known.
        stamped: when an engine last said that it uses it, seconds by the file system's clock.
    """

    path: str
    terms: Terms = field(default_factory=Terms)
    windowed: Mapping[int, bool] = field(default_factory=dict)
    stamped: float = math.inf


def find_spaces(root: Path) -> list[Space]:
    """Namespaces of a root, by name; links are none.

    Raises:
        OSError: the root cannot be read.
    """
    with os.scandir(root) as entries:
        paths = sorted(
            entry.path
            for entry in entries
            if fingerprint_of(entry.name) is not None and entry.is_dir(follow_symlinks=False)
        )
    return [
        Space(path, read_terms(path), windowed_groups(path), _last_stamp(path)) for path in paths
    ]


def claims_of(
    spaces: Sequence[Space], newest: Mapping[str, float], now: float, unused_after: float
) -> dict[str, Claim]:
    """What namespaces may ask of an eviction, by directory; those that ask for nothing are left out. Pure.

    Args:
        spaces: all of a root.
        newest: when a file of theirs was last used, of those that were seen.
        now: the file system's time.
        unused_after: seconds after which a namespace that nobody uses goes first; 0 for never.
    """
    claims = {}
    for one in spaces:
        last = max(one.stamped, newest.get(one.path, -math.inf))
        unused = 0 < unused_after < now - last
        claim = Claim(one.terms.floor, one.terms.weight, unused)
        if claim != Claim():
            claims[one.path] = claim
    return claims


def read_terms(directory: str) -> Terms:
    """What a namespace's engines ask for; nothing where that cannot be read."""
    try:
        found = msgspec.json.decode(
            read_small(f"{directory}/{TERMS_FILE}", _TERMS_BYTES), type=Terms
        )
    except (OSError, msgspec.DecodeError, RecursionError):
        return Terms()
    return Terms(
        floor=max(found.floor, 0.0),
        weight=min(max(found.weight, 1 / _MAX_WEIGHT), _MAX_WEIGHT),
        ttl=max(found.ttl, 0.0),
    )


def windowed_groups(directory: str) -> dict[int, bool]:
    """For each group of a namespace, whether it is windowed; empty where `namespace.json` does not say."""
    try:
        document = json.loads(read_small(f"{directory}/{NAMESPACE_FILE}", _FACTS_BYTES))
        found = {
            int(group["group"]): GroupKind(group["kind"]) is not GroupKind.FULL
            for group in document["covers"]["groups"]
        }
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return {}
    # What no key can name is nobody's group, and the others are not to be believed either.
    return found if all(0 <= group < 1 << 8 * GROUP_BYTES for group in found) else {}


def declare(directory: Path, terms: Terms, sharing: Sharing = Sharing.USER) -> float:
    """Say what an engine asks for, and that its namespace is in use; the last engine to say so counts.

    Returns:
        The time now by the file system's clock.

    Raises:
        OSError: it cannot be written.
    """
    path = directory / TERMS_FILE
    if terms != Terms():
        publish(str(path), [memoryview(msgspec.json.encode(terms))], sharing=sharing)
    else:
        path.unlink(missing_ok=True)
    return stamp(directory)


def stamp(directory: Path) -> float:
    """Say that a namespace is in use; returns the time now by the file system's clock.

    Raises:
        OSError: its description is missing, or not ours to change.
    """
    # The file server's clock, not ours.
    os.utime(directory / NAMESPACE_FILE, follow_symlinks=False)
    return os.lstat(directory / NAMESPACE_FILE).st_mtime


def remove_shell(directory: str) -> bool:
    """Remove a namespace's directory if no file of a chunk is in it; whether it is gone.

    What is not ours keeps it. An engine that begins to write meanwhile makes everything anew.
    """
    for first in _NAMES:
        # What is removed must not lie elsewhere.
        if os.path.islink(f"{directory}/{first}"):
            return False
        for second in _NAMES if os.path.isdir(f"{directory}/{first}") else ():
            with contextlib.suppress(FileNotFoundError):
                if not _rmdir(f"{directory}/{first}/{second}"):
                    return False
        with contextlib.suppress(FileNotFoundError):
            if not _rmdir(f"{directory}/{first}"):
                return False
    try:
        if set(os.listdir(directory)) - {NAMESPACE_FILE, TERMS_FILE}:
            return False
        for name in (TERMS_FILE, NAMESPACE_FILE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:
        return False
    return True


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _last_stamp(directory: str) -> float:
    try:
        status = os.lstat(f"{directory}/{NAMESPACE_FILE}")
    except OSError:
        return -math.inf
    # Whatever else stands there tells nothing of when it was used.
    return status.st_mtime if stat.S_ISREG(status.st_mode) else -math.inf
