"""The life of a chunk in one tier, as one table.

A chunk is *absent* until somebody reserves a place for it. While bytes flow into that place (from the
device or from another tier) it is *writing*: it exists, but nobody may read it. Once the bytes are whole
and verified it is *ready*. A reader *pins* it, and pins are counted: a pinned chunk keeps its place. A
ready chunk without pins may be evicted. A place whose bytes may still be touched by someone who cannot be
called back (a hung read, a device copy after a reset) is *evicting*: it is unreadable and not reusable
until that someone reports.

Everything else (who may pin, what is evicted when) is policy and stands elsewhere; this table says only
what can happen to a chunk at all.
"""

import enum
from types import MappingProxyType


class State(enum.Enum):
    """Where a chunk stands in one tier."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and every step looks in a table
    ABSENT = "absent"
    WRITING = "writing"
    READY = "ready"
    PINNED = "pinned"
    EVICTING = "evicting"


class Event(enum.Enum):
    """What can happen to a chunk in one tier."""

    __hash__ = object.__hash__
    RESERVE = "reserve"
    """A place was found for it; bytes will flow in."""
    COMMIT = "commit"
    """Its bytes are whole and verified."""
    ABORT = "abort"
    """Its bytes did not come, and nobody writes into its place any more."""
    ABANDON = "abandon"
    """Its bytes are not wanted any more, but somebody may still touch its place."""
    PIN = "pin"
    """First reader."""
    UNPIN = "unpin"
    """Last reader left."""
    EVICT = "evict"
    """Its place is given to another chunk."""
    RELEASE = "release"
    """Nobody can touch its place any more."""


TABLE = MappingProxyType(
    {
        (State.ABSENT, Event.RESERVE): State.WRITING,
        (State.WRITING, Event.COMMIT): State.READY,
        (State.WRITING, Event.ABORT): State.ABSENT,
        (State.WRITING, Event.ABANDON): State.EVICTING,
        (State.READY, Event.PIN): State.PINNED,
        (State.PINNED, Event.UNPIN): State.READY,
        (State.READY, Event.EVICT): State.ABSENT,
        (State.PINNED, Event.ABANDON): State.EVICTING,
        (State.EVICTING, Event.RELEASE): State.ABSENT,
    }
)
"""Every legal step. Anything else is a bug of ours."""


def advance(state: State, event: Event) -> State:
    """The state after `event`; an illegal step is an assertion, since no input can cause it."""
    following = TABLE.get((state, event))
    assert following is not None, f"a chunk that is {state.value} cannot {event.value}"
    return following
