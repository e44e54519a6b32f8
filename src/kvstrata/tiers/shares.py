"""How full a root is, and what is old enough to go: from a fair sample of its directories. Pure.

Chunks spread by their hash over 65 536 directories (`chunks.key.relative_path`), so what a few of them hold,
divided by their share of all, is what the root holds. With n files seen the error is some 1 / sqrt(n), since
files fall into directories as chance has it: 8 000 files keep it within 3 % in 95 cases of 100, with sizes
that differ threefold, be there 10⁴ files or 10⁸. The same sample, ordered by age, tells before which time so
many bytes were used last.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RING = 65_536
"""Places where a chunk's directory may stand, in the order of their names."""
ENOUGH = 8_000
"""Files of a sample after which it is good enough."""
HIGH, LOW = 0.97, 0.95
"""Shares of the bound: above the first something is evicted, down to the second."""
WRITERS = 8
"""Engines that may write at the same time before anyone looks again; each may take so large a share of the
room. More of them, all at full speed, can exceed the bound by what the others take."""
BURST = 0.05
"""Share of what is held that goes at a time, whatever the bound says: one that was lowered by mistake can be
raised again before all is gone."""
SWEEP = 0.5
"""Share of all directories that one eviction goes through. What it takes there is up to the inverse as much
as is too much, so that it reaches that much further into what is younger; and it reads as much less."""


@dataclass(frozen=True, slots=True)
class Held:
    """One file of ours.

    Attributes:
        path: of the file.
        nbytes: its share, if it stands under several names.
        used: when it was last written or read, seconds by the file system's clock.
        names: that it stands under.
    """

    path: str
    nbytes: float
    used: float
    names: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What some directories hold.

    Attributes:
        share: of all directories, above 0, at most 1.
        files: in them.
        directories: that were read.
    """

    share: float
    files: Sequence[Held]
    directories: int = 0

    @property
    def nbytes(self) -> float:
        """Estimate of all bytes."""
        return sum(one.nbytes for one in self.files) / self.share

    def age_of(self, nbytes: float) -> float:
        """The time until which about `nbytes` of all bytes, more than 0, were last used.

        -inf where nothing was seen, inf where less was than that.
        """
        left = nbytes * self.share
        for one in sorted(self.files, key=lambda one: one.used):
            left -= one.nbytes
            if left <= 0:
                return one.used
        return math.inf if self.files else -math.inf


@dataclass(frozen=True, slots=True)
class Bound:
    """How many bytes a root may hold.

    Attributes:
        capacity: bytes of our files, or None.
        share: of the file system's size, or None.
        free: bytes of the file system that are left to others.
    """

    capacity: int | None = None
    share: float | None = None
    free: int = 0

    def __bool__(self) -> bool:
        """Whether anything is bounded."""
        return self.capacity is not None or self.share is not None or self.free > 0

    def bytes_of(self, used: float, available: int, total: int) -> float:
        """The bound now.

        Args:
            used: bytes of our files.
            available: bytes that the file system has left.
            total: bytes of the file system.
        """
        bounds: list[float] = [used + available - self.free] if self.free else []
        if self.capacity is not None:
            bounds.append(self.capacity)
        if self.share is not None:
            bounds.append(self.share * total)
        return max(min(bounds, default=math.inf), 0.0)


@dataclass(frozen=True, slots=True)
class Eviction:
    """What is to go.

    Attributes:
        until: files that were not used after this time, seconds by the file system's clock.
        nbytes: of them, until so much is gone.
    """

    until: float
    nbytes: float


def evict(sample: Sample, bound: float, chunk: int = 0) -> Eviction | None:
    """What is to go so that the bound holds and something can be written; None while that is so.

    Args:
        sample: of the root.
        bound: bytes that it may hold.
        chunk: bytes of the largest chunk.
    """
    used = sample.nbytes
    least = bound / 4
    high = max(min(HIGH * bound, bound - WRITERS * chunk), least)
    low = max(min(LOW * bound, bound - 2 * WRITERS * chunk), least)
    if used <= high:
        return None
    surplus = min(used - low, max(BURST * used, WRITERS * chunk))
    return Eviction(sample.age_of(surplus / SWEEP), surplus)


def room(used: float, bound: float) -> float:
    """Bytes that one of `WRITERS` may add before anyone looks again.

    Args:
        used: bytes held when somebody looked last.
        bound: bytes that may be held.
    """
    return max((bound - used) / WRITERS, 0.0)
