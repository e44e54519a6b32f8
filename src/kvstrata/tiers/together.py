"""Which files of a namespace are worth something only together. Pure.

A boundary needs every full group's chunk to its left and, of each windowed group, the window or state that
ends there. So a windowed group's chunk is worth nothing without those of the other windowed groups at its
boundary, nor without the full groups' chunk there; a full group's chunk still serves longer prefixes when the
windows have gone. All of one boundary have one block hash, and lie in one directory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kvstrata.chunks.key import ChunkKey, group_of, hash_of, make_key
from kvstrata.tiers.shares import Held


def as_one(files: Sequence[Held], windowed: Mapping[int, bool]) -> list[Held]:
    """The same files, each as young as what it has to stay for.

    Windows are as young as the youngest of theirs, a full group's chunk as the youngest of its boundary. So
    an order of age, which is stable, takes a boundary's windows together, and never its full chunk before
    them.

    Args:
        files: of one directory and namespace.
        windowed: of each group of the namespace; files of other groups are for themselves.
    """
    boundaries: dict[bytes, list[Held]] = {}
    alone = []
    for one in files:
        if len(windowed) > 1 and group_of(one.key) in windowed:
            boundaries.setdefault(hash_of(one.key), []).append(one)
        else:
            alone.append(one)
    for members in boundaries.values():
        if len(members) == 1:
            alone += members
            continue
        windows = [one for one in members if windowed[group_of(one.key)]]
        full = [one for one in members if not windowed[group_of(one.key)]]
        for part, needed in ((windows, windows), (full, members)):
            used = max((one.used for one in needed), default=0.0)
            alone += [one if one.used == used else replace(one, used=used) for one in part]
    return alone


def dependents(keys: Iterable[ChunkKey], windowed: Mapping[int, bool]) -> list[ChunkKey]:
    """Chunks that are worth nothing when these go: the windows of their boundaries, in no order."""
    gone = set(keys)
    windows = [group for group, is_windowed in windowed.items() if is_windowed]
    hashes = {hash_of(key) for key in gone if group_of(key) in windowed}
    return [
        key
        for digest in hashes
        for group in windows
        if (key := make_key(digest, group)) not in gone
    ]
