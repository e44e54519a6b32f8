"""Which blocks of one prompt a replica holds, by place: for explanations, not for the hot path."""

import numpy as np
import numpy.typing as npt

from kvstrata.compiled import compiled
from kvstrata.fleet.index import DEVICE, GROUPS, MEMORY, SHARED, STORAGE, FleetIndex
from kvstrata.fleet.table import Words, find, key_of, mask_word
from kvstrata.wire.snapshot import Place

_MEDIA = {DEVICE: "GPU", MEMORY: "CPU", STORAGE: "STORAGE", SHARED: "STORAGE"}


@compiled
def _holds(
    rows: Words,
    seeds: Words,
    place: int,
    words: int,
    holder: int,
    hashes: Words,
    found: npt.NDArray[np.bool_],
) -> None:
    for index in range(len(hashes)):
        entry = find(rows, seeds, key_of(seeds, place, hashes[index]))
        mask = mask_word(rows, entry, words, holder // 64)
        found[index] = mask >> np.uint64(holder % 64) & np.uint64(1) != np.uint64(0)


def held_of(index: FleetIndex, replica: int, hashes: Words) -> dict[Place, frozenset[int]]:
    """Those of `hashes` (uint64[n]) that a replica can reach, by place; places without any are left out.

    An owner of shared storage is named by its number.
    """
    table = index.table
    holders: list[tuple[int, int, str | None]] = [
        (tier, replica, None) for tier in (DEVICE, MEMORY, STORAGE)
    ]
    bit = np.uint64(1 << replica % 64)
    for owner in np.flatnonzero(index.mounts[:, replica // 64] & bit).tolist():
        holders.append((SHARED, owner, str(owner)))
    found = np.zeros(len(hashes), np.bool_)
    result = {}
    for tier, holder, owner in holders:
        for group in range(GROUPS):
            place = tier * GROUPS + group
            if not index.totals[place, holder]:
                continue
            _holds(table.rows, table.seeds, place, table.words, holder, hashes, found)
            if found.any():
                result[Place(_MEDIA[tier], group, owner)] = frozenset(hashes[found].tolist())
    return result
