"""What a boundary is worth, learned from how boundaries like it were used. Pure arithmetic.

Boundaries are alike when they have the same standing (see `Standing`) and have waited equally long since
their last use. For each standing and each span of ages the table counts uses, and how long boundaries
were watched at that age. Uses over time is a hazard that stays right when a boundary is given up before it
is used, since it is then no longer watched (a Kaplan-Meier estimate).

The worth of a boundary is the best rate of uses that keeping it can earn from now on: the greatest, over
all ages up to which it could be kept, of the uses expected until then per time of keeping (the Gittins
index of a job with that hazard). So a chat whose next turn takes a while is not given up during the pause.

Time is counted in uses of prefixes (requests).
"""

import enum
import itertools
from collections.abc import Sequence


class Standing(enum.IntEnum):
    """How a boundary came about and what became of it; what tells boundaries with a future from others."""

    SUPERSEDED = 0
    """Used once, by a request that left a boundary further on."""
    FRESH = 1
    """Never used, left by a request that began anew or branched off a shared prefix."""
    CONTINUED = 2
    """Never used, left by a request that resumed where only its predecessor had been."""
    LONG = 3
    """As `CONTINUED`, three times or more in a row."""
    SHARED = 4
    """A junction, or used once and not continued."""
    TWICE = 5
    """Used two or three times."""
    OFTEN = 6
    """Used four times or more."""
    ALWAYS = 7
    """Used sixteen times or more."""


def standing(uses: int, generation: int, superseded: bool) -> Standing:
    """Standing of a boundary.

    Args:
        uses: requests that resumed there; a junction counts as used when it is made.
        generation: requests in a row, each resumed where the one before ended, before this boundary.
        superseded: whether its only user, or the answer to its prompt, left a boundary further on.
    """
    if superseded:
        return Standing.SUPERSEDED
    if uses == 0:
        if generation == 0:
            return Standing.FRESH
        return Standing.CONTINUED if generation < 3 else Standing.LONG
    if uses == 1:
        return Standing.SHARED
    if uses < 4:
        return Standing.TWICE
    return Standing.OFTEN if uses < 16 else Standing.ALWAYS


EDGES: tuple[int, ...] = (0, 1, 2, 3, 4, 6, *(b * 2**k for k in range(20) for b in (8, 12)))
"""First age of each span; two spans an octave, since what matters is how old in proportion."""
_SPANS = len(EDGES)
_WIDTHS = (*(high - low for low, high in itertools.pairwise(EDGES)), EDGES[-1])

PRIOR_USES = 1.0
"""Uses that each span is supposed to have seen before anything was; over one span's width, so that without
knowledge worth falls with age as 1 / age, which is plain recency."""
HALF_LIFE = 512
"""Lives after which what was seen counts half, so that the table follows the traffic."""
REFRESH = 8
"""Lives after which one standing's worths are computed anew; all have their turn."""


def span_of(age: int) -> int:
    """Index of the span that `age` lies in."""
    if age < 6:
        return min(age, 4)
    octave = age.bit_length() - 1
    if octave == 2:
        return 5
    return min(6 + (octave - 3) * 2 + (age >> (octave - 1) & 1), _SPANS - 1)


def worth_table(uses: Sequence[float], watched: Sequence[float]) -> list[float]:
    """Worth by span, for one standing.

    Args:
        uses: uses seen at each span of ages.
        watched: time for which boundaries of that age were watched.
    """
    result = [0.0] * _SPANS
    for start in range(_SPANS):
        best, earned, spent = 0.0, 0.0, 0.0
        for span in range(start, _SPANS):
            earned += uses[span]
            spent += watched[span]
            best = max(best, earned / spent)
        result[start] = best
    return result


class Worth:
    """The learned table."""

    def __init__(self) -> None:
        self._uses = [[PRIOR_USES] * _SPANS for _ in Standing]
        self._watched = [[float(w) for w in _WIDTHS] for _ in Standing]
        self._tables = [worth_table(u, w) for u, w in zip(self._uses, self._watched, strict=True)]
        self._lives = 0

    def of(self, standing: Standing, age: int) -> float:
        """Uses per unit of time that a boundary of this standing and age is good for."""
        return self._tables[standing][span_of(age)]

    def ended(self, standing: Standing, age: int, *, used: bool, since: int = 0) -> None:
        """A boundary was watched at the ages from `since` to `age`, and then used or lost from view."""
        watched = self._watched[standing]
        first, last = span_of(since), span_of(age)
        for span in range(first, last):
            watched[span] += _WIDTHS[span]
        watched[first] -= since - EDGES[first]
        watched[last] += age - EDGES[last] + (1 if used else 0)
        if used:
            self._uses[standing][last] += 1.0
        self._lives += 1
        if self._lives % REFRESH == 0:
            self._refresh(self._lives // REFRESH % len(Standing))

    def _refresh(self, index: int) -> None:
        keep = 0.5 ** (REFRESH * len(Standing) / HALF_LIFE)
        uses, watched = self._uses[index], self._watched[index]
        for span in range(_SPANS):
            uses[span] = PRIOR_USES + (uses[span] - PRIOR_USES) * keep
            watched[span] = _WIDTHS[span] + (watched[span] - _WIDTHS[span]) * keep
        self._tables[index] = worth_table(uses, watched)
