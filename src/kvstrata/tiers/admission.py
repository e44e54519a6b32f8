"""Which chunks are worth a write to storage. Pure policies behind one interface.

A policy is told of every request's prompt when it is scheduled, and asked of chunks when they could be
written. All of it goes by prefixes, not by groups: a window or a state serves where its prefix is asked
again, as the full groups' chunks of that prefix do, so a boundary is written as one thing or not at all.
What a policy remembers is bounded (`Sights`).
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from kvstrata.tiers.admission_sights import ENTRIES, Prefixes, Sights

Flags = NDArray[np.bool_]


class Admission(ABC):
    """Says which prefixes are worth writing.

    Attributes:
        learns: whether it wants to be told of requests at all.
    """

    learns = True

    @abstractmethod
    def saw(self, chain: Prefixes, step: int, held: int) -> None:
        """A request is scheduled.

        Args:
            chain: every prefix of its prompt that ends with a chunk, in order.
            step: tokens from one to the next; the first one's length.
            held: tokens of the prompt that the device or a tier held, so that somebody asked before.
        """

    @abstractmethod
    def offered(self, prefixes: Prefixes) -> None:
        """Chunks with these prefixes are about to be stored; those not seen yet are of an answer."""

    @abstractmethod
    def admits(self, prefixes: Prefixes) -> Flags:
        """Of each prefix, whether its chunks are worth a write now. Shape (n,)."""


class Always(Admission):
    """Writes everything at first sight."""

    learns = False

    def saw(self, chain: Prefixes, step: int, held: int) -> None:
        """See `Admission.saw`."""

    def offered(self, prefixes: Prefixes) -> None:
        """See `Admission.offered`."""

    def admits(self, prefixes: Prefixes) -> Flags:
        """See `Admission.admits`."""
        return np.ones(len(prefixes), dtype=np.bool_)


_AGAIN = 1
"""Bit of a note: seen a second time, or worth it at the first."""
_SEEN_TWICE = 2
_NOTED = 4
"""Set in every note, since a note is never 0."""
_KIND_SHIFT = 3


def _admitted(sights: Sights, prefixes: Prefixes) -> Flags:
    places = sights.find(prefixes)
    admitted: Flags = (places >= 0) & (sights.notes(places) & _AGAIN != 0)
    return admitted


class SecondSight(Admission):
    """Writes a prefix when it is seen the second time.

    Args:
        entries: prefixes that it remembers; see `Sights`.
    """

    def __init__(self, entries: int = ENTRIES) -> None:
        self._sights = Sights(entries)

    def saw(self, chain: Prefixes, step: int, held: int) -> None:
        """See `Admission.saw`."""
        places = self._sights.find(chain)
        known = places >= 0
        seen = places[known]
        self._sights.note(seen, self._sights.notes(seen) | _AGAIN | _SEEN_TWICE)
        new = np.full(len(chain), _NOTED, dtype=np.int64)
        new[: held // step] |= _AGAIN | _SEEN_TWICE
        self._sights.add(chain[~known], new[~known])

    def offered(self, prefixes: Prefixes) -> None:
        """See `Admission.offered`."""
        new = prefixes[self._sights.find(prefixes) < 0]
        self._sights.add(new, np.full(len(new), _NOTED, dtype=np.int64))

    def admits(self, prefixes: Prefixes) -> Flags:
        """See `Admission.admits`."""
        return _admitted(self._sights, prefixes)


class Kind(enum.IntEnum):
    """How a prefix came about; what tells those that are asked again from others."""

    FRESH = 0
    """Of a request that nothing was known of."""
    BRANCHED = 1
    """Behind a prefix that several requests had."""
    CONTINUED = 2
    """Behind a prefix that one request had before."""
    ELSEWHERE = 3
    """Behind a prefix that other engines had."""
    ANSWERED = 4
    """Of an answer."""


OCTAVES = 24
"""Depths are alike when they lie in the same octave of tokens."""
CLASSES = len(Kind) * OCTAVES
PRIOR = 16.0
"""Chunks of each class that are supposed to have been asked again before anything was seen."""
HALF_LIFE = 16384
"""Chunks of a class after which what was seen counts half, so that the rates follow the traffic."""
FLOOR = 0.1
"""Share of a class that must be asked again for its chunks to be written at first sight."""


class Measured(Admission):
    """Writes a prefix at first sight where enough of those like it were asked again, else at the second.

    Prefixes are alike when they are of the same `Kind` and their lengths lie in the same octave. The shares
    of those asked again are learned from all that is seen, written or not, with decay. Within a request a
    prefix is asked again whenever a longer one is, so it counts for as much as the best of those.

    Args:
        entries: prefixes that it remembers; see `Sights`.
        floor: see `FLOOR`.
    """

    def __init__(self, entries: int = ENTRIES, floor: float = FLOOR) -> None:
        self._sights = Sights(entries)
        self._floor = floor
        self._first = np.zeros(CLASSES)
        self._again = np.zeros(CLASSES)
        self._here = 0.0
        self._elsewhere = 0.0

    def shares(self) -> Mapping[tuple[Kind, int], float]:
        """Share of each class that was asked again, by kind and octave."""
        rates = self._rates()
        return {
            (kind, octave): float(rates[kind * OCTAVES + octave])
            for kind in Kind
            for octave in range(OCTAVES)
        }

    def saw(self, chain: Prefixes, step: int, held: int) -> None:
        """See `Admission.saw`."""
        if not len(chain):
            return
        places = self._sights.find(chain)
        known = places >= 0
        count = len(chain)
        held_chunks = min(held // step, count)
        asked = known.copy()
        asked[:held_chunks] = True
        kind = self._kind(places, known, asked)
        classes = kind * OCTAVES + np.minimum(
            np.log2(np.arange(1, count + 1) * step).astype(np.int64), OCTAVES - 1
        )
        seen = places[known]
        notes = self._sights.notes(seen)
        fresh = notes[notes & _SEEN_TWICE == 0]
        # A prefix that another engine was first with counts here, as those that this one was first with
        # count there.
        self._elsewhere += int((~known & asked).sum())
        self._here += len(fresh)
        self._count(self._again, fresh >> _KIND_SHIFT)
        self._count(self._first, classes[~asked])
        self._sights.note(seen, notes | _AGAIN | _SEEN_TWICE)
        rates = self._rates()[classes]
        best = np.maximum.accumulate(rates[::-1])[::-1]
        new = (classes << _KIND_SHIFT) | _NOTED
        new[asked] |= _AGAIN | _SEEN_TWICE
        new[~asked & (best >= self._floor)] |= _AGAIN
        self._sights.add(chain[~known], new[~known])

    def offered(self, prefixes: Prefixes) -> None:
        """See `Admission.offered`."""
        new = prefixes[self._sights.find(prefixes) < 0]
        classes = np.full(len(new), Kind.ANSWERED * OCTAVES, dtype=np.int64)
        self._count(self._first, classes)
        worth = self._rates()[Kind.ANSWERED * OCTAVES] >= self._floor
        note = _NOTED | (_AGAIN if worth else 0)
        self._sights.add(new, (classes << _KIND_SHIFT) | note)

    def admits(self, prefixes: Prefixes) -> Flags:
        """See `Admission.admits`."""
        return _admitted(self._sights, prefixes)

    def _kind(self, places: NDArray[np.int64], known: Flags, asked: Flags) -> Kind:
        """Of what is new in a request, by the last prefix that was asked before."""
        if not asked[0]:
            return Kind.FRESH
        last = len(asked) - 1 if asked.all() else int(asked.argmin()) - 1
        if not known[last]:
            return Kind.ELSEWHERE
        (note,) = self._sights.notes(places[last : last + 1])
        return Kind.BRANCHED if note & _SEEN_TWICE else Kind.CONTINUED

    def _rates(self) -> NDArray[np.float64]:
        """Share of each class that was asked again by anybody: what is seen here is a part of it."""
        fleet = 1 + self._elsewhere / max(self._here, 1.0)
        return np.minimum((PRIOR + self._again * fleet) / (PRIOR + self._first), 1.0)

    def _count(self, counts: NDArray[np.float64], classes: NDArray[np.int64]) -> None:
        if not len(classes):
            return
        counts += np.bincount(classes, minlength=CLASSES)
        if counts is self._first:
            keep = np.where(self._first > HALF_LIFE, 0.5, 1.0)
            self._first *= keep
            self._again *= keep


ADMISSIONS: Mapping[str, Callable[[], Admission]] = {
    "always": Always,
    "second-sight": SecondSight,
    "measured": Measured,
}
"""Policies by the name that the option `admission` gives them."""
