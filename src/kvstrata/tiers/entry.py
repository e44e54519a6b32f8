"""A chunk's place in the host arena, as the memory tier books it."""

from collections.abc import Iterable

import msgspec

from kvstrata.chunks.record import NO_TENANT
from kvstrata.tiers.lifecycle import State


class Entry(msgspec.Struct, gc=False):
    """One chunk's place.

    Python's garbage collector does not walk these: there are as many as chunks, and nothing in them refers
    to anything else, so a collection would stop the scheduler for nothing.

    Attributes:
        offset: bytes from the start of the arena's data area.
        state: see `kvstrata.tiers.lifecycle`; never ABSENT.
        first_block: blocks before this one hold no valid bytes.
        pins: readers.
        origin: name of the tier that the bytes came from ("device" or a storage tier).
        withheld: whether storage was not given the bytes, though it may lack them.
        owner: mark of the tenant that the chunk belongs to, 8 bytes; see `kvstrata.chunks.record`.
    """

    offset: int
    state: State
    first_block: int = 0
    pins: int = 0
    origin: str = "device"
    withheld: bool = False
    owner: bytes = NO_TENANT


def census(entries: Iterable[tuple[Entry, int]]) -> dict[State, tuple[int, int]]:
    """For each state (ABSENT aside): chunks, and bytes of their slots.

    Args:
        entries: each with the bytes of its slot.
    """
    totals: dict[State, tuple[int, int]] = dict.fromkeys({*State} - {State.ABSENT}, (0, 0))
    for entry, slot_bytes in entries:
        chunks, nbytes = totals[entry.state]
        totals[entry.state] = (chunks + 1, nbytes + slot_bytes)
    return totals
