"""Whether a file stands where only kvstrata puts files; asked before anything is deleted."""

import re
from pathlib import Path

from kvstrata.chunks.key import relative_path
from kvstrata.tiers.catalog import RecordFile

_TEMPORARY = re.compile(r"\.tmp-[0-9]+-[0-9a-f]{16}")
_HASH_DIRECTORY = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}")


def is_ours(namespace: Path, file: RecordFile) -> bool:
    """Whether `file` has the name and the place that a tier gives to its files.

    A copy that somebody keeps in a directory of their own has the name but not the place.

    Args:
        namespace: the namespace's directory.
        file: any file below it.
    """
    place = file.path.relative_to(namespace).as_posix()
    if not file.temporary:
        return place == relative_path(file.key)
    directory, _, name = place.rpartition("/")
    if not _TEMPORARY.fullmatch(name):
        return False
    return directory == "" or _HASH_DIRECTORY.fullmatch(directory) is not None
