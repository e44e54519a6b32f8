"""How full a root is, and what is old enough to go: from a fair sample of its directories. Pure.

Chunks spread by their hash over 65 536 directories (`chunks.key.relative_path`), so what a few of them hold,
divided by their share of all, is what the root holds. With n files seen the error is some 1 / sqrt(n), since
files fall into directories as chance has it: 8 000 files keep it within 3 % in 95 cases of 100, with sizes
that differ threefold, be there 10⁴ files or 10⁸. The same sample, ordered by age, tells before which time so
many bytes were used last.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvstrata.chunks.key import ChunkKey

RING = 65_536
"""Places where a chunk's directory may stand, in the order of their names."""
ENOUGH = 9_800
"""Files of a sample after which it is good enough."""
HIGH, LOW = 0.97, 0.95
"""Shares of the bound: above the first something is evicted, down to the second."""
WRITERS = 8
"""Engines that may write at the same time before anyone looks again; each may take so large a share of the
room. More of them, all at full speed, can exceed the bound by what the others take."""
BURST = 0.05
"""Share of what is held that goes at a time, whatever the bound says: one that was lowered by mistake can be
raised again before all is gone."""
PATROL = 1 / 8
"""Share of the time after which unused files go, in which all directories are looked through for them."""
SWEEP = 0.5
"""Share of all directories that one eviction goes through. What it takes there is up to the inverse as much
as is too much, so that it reaches that much further into what is younger; and it reads as much less."""


@dataclass(frozen=True, slots=True)
class Held:
    """One file of ours.

    Attributes:
        path: of the file.
        nbytes: its share, if it stands under several names.
        used: when it was last written or read, seconds by the file system's clock; where a younger file needs
            it, when that was.
        names: that it stands under.
        key: of the chunk that this name stands for.
        space: its namespace's directory.
    """

    path: str
    nbytes: float
    used: float
    names: int = 1
    key: ChunkKey = b""
    space: str = ""


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

        Whatever is asked for, no more than there is place for: others fill the file system too.

        Args:
            used: bytes of our files.
            available: bytes that the file system has left.
            total: bytes of the file system; 0 where it does not tell.
        """
        bounds: list[float] = [used + available - self.free] if total > 0 else []
        if self.capacity is not None:
            bounds.append(self.capacity)
        if self.share is not None:
            bounds.append(self.share * total)
        return max(min(bounds, default=math.inf), 0.0)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one namespace may ask of an eviction.

    Attributes:
        floor: bytes that it keeps as long as others have any.
        weight: its files' ages count divided by this; above 0.
        unused: whether nobody uses it any more, so that it goes first.
    """

    floor: float = 0.0
    weight: float = 1.0
    unused: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What is to go of one namespace; see `Eviction`."""

    until: float
    nbytes: float = math.inf


@dataclass(frozen=True, slots=True)
class Eviction:
    """What is to go.

    Attributes:
        until: files that were not used after this time, seconds by the file system's clock.
        nbytes: of them, until so much is gone.
        parts: namespaces of which something else is to go, by their directories.
    """

    until: float
    nbytes: float
    parts: Mapping[str, Part] = field(default_factory=dict)

    def of(self, space: str) -> Part:
        """What is to go of a namespace, at most."""
        return self.parts.get(space) or Part(self.until)


def evict(
    sample: Sample,
    bound: float,
    chunk: int = 0,
    claims: Mapping[str, Claim] | None = None,
    now: float = 0.0,
    *,
    burst: float = BURST,
    reach: float = SWEEP,
) -> Eviction | None:
    """What is to go so that the bound holds and something can be written; None while that is so.

    Args:
        sample: of the root.
        bound: bytes that it may hold.
        chunk: bytes of the largest chunk.
        claims: of namespaces, by their directories; others ask for nothing.
        now: the file system's time, where there are claims.
        burst: share of what is held that goes at most.
        reach: share of the directories that will be gone through.
    """
    used = sample.nbytes
    least = bound / 4
    high = max(min(HIGH * bound, bound - WRITERS * chunk), least)
    low = max(min(LOW * bound, bound - 2 * WRITERS * chunk), least)
    if used <= high:
        return None
    surplus = min(used - low, max(burst * used, WRITERS * chunk))
    if not claims:
        return Eviction(sample.age_of(surplus / reach), surplus)
    return _shared_out(sample, surplus, surplus / reach, claims, now)


def _shared_out(
    sample: Sample, surplus: float, wanted: float, claims: Mapping[str, Claim], now: float
) -> Eviction:
    """An eviction that heeds claims: of each namespace its oldest, by how much its ages count."""
    none = Claim()

    def rank(one: Held) -> tuple[bool, float]:
        claim = claims.get(one.space, none)
        return not claim.unused, (one.used - now) / claim.weight

    spare: dict[str, float] = {}
    for one in sample.files:
        spare[one.space] = spare.get(one.space, 0.0) + one.nbytes / sample.share
    for space, claim in claims.items():
        floor = 0.0 if claim.unused else claim.floor
        spare[space] = max(spare.get(space, 0.0) - floor, 0.0)
    ordered = sorted(sample.files, key=rank)
    taken = _take(ordered, wanted, sample.share, spare)
    if sum(one.nbytes for one in taken) / sample.share < surplus:
        # The floors are more than the root may hold.
        spare = dict.fromkeys(spare, math.inf)
        taken = _take(ordered, wanted, sample.share, spare)
    until = dict.fromkeys(claims, -math.inf)
    for one in taken:
        until[one.space] = max(until.get(one.space, -math.inf), one.used)
    in_use, age = max(map(rank, taken), default=(False, 0.0))
    parts = {space: Part(until[space], spare[space]) for space in claims}
    return Eviction(now + age if in_use else -math.inf, surplus, parts)


def _take(
    ordered: Sequence[Held], wanted: float, share: float, spare: Mapping[str, float]
) -> list[Held]:
    """The first files that make up so many bytes, and of no namespace more than it can spare."""
    taken, left = [], dict(spare)
    for one in ordered:
        if wanted <= 0:
            break
        nbytes = one.nbytes / share
        # Its last one may go beyond what it can spare by less than its own size.
        if left[one.space] > 0:
            left[one.space] -= nbytes
            wanted -= nbytes
            taken.append(one)
    return taken


def age_that_goes(sample: Sample, now: float) -> float:
    """Seconds since the files that an eviction would take next were used; 0 where nothing was seen.

    Args:
        sample: of the root.
        now: the file system's time.
    """
    until = sample.age_of(BURST * sample.nbytes) if sample.files else now
    return max(now - until, 0.0)


def patrol_length(since: float, ttl: float) -> int:
    """Places to look through for what is past its time, so that a round takes a fraction of it.

    Args:
        since: seconds since the last look.
        ttl: seconds.
    """
    return max(min(math.ceil(RING * since / (PATROL * ttl)), RING), 1)


def room(used: float, bound: float) -> float:
    """Bytes that one of `WRITERS` may add before anyone looks again.

    Args:
        used: bytes held when somebody looked last.
        bound: bytes that may be held.
    """
    return max((bound - used) / WRITERS, 0.0)
