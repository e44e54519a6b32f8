"""How much there is of something, by what a fair share of all directories holds, and how sure that is. Pure.

Chunks fall into directories as the first bytes of their hash have it, each independent of the others, but for
the chunks of one hash (one for each group), which lie together. So a hash is what is drawn, with the share as
its chance. The sum over what was seen, by the share, is then right on average; how far off it may be follows
from how many hashes it stands on and how different they are. The interval is that of a Poisson number whose
mean is estimated from as many equal parts as the hashes are worth (their sum squared by the sum of their
squares), which stays right where only a few were seen, and gets narrower as the share approaches all.
"""

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
_DEVIATIONS = 1.959964
"""Of a normal distribution, on both sides of its mean, that hold `CONFIDENCE` of it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, and between which two it lies in `CONFIDENCE` of all cases; both equal it if counted."""

    value: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether it was counted."""
        return self.low == self.high

    @property
    def error(self) -> float:
        """How far the further end of the interval is off, as a share of the value; 0 where that is 0."""
        far = max(self.high - self.value, self.value - self.low)
        return far / self.value if self.value else 0.0


@dataclass(slots=True)
class Sum:
    """Adds up what was seen.

    Attributes:
        total: of all parts.
        squares: sum of the parts' squares.
    """

    total: float = 0.0
    squares: float = 0.0

    def add(self, part: float) -> None:
        """One part, at least 0: all that belongs to one hash."""
        self.total += part
        self.squares += part * part

    def estimate(self, share: float, typical: float = 0.0) -> Estimate:
        """How much there is in all.

        Args:
            share: of all directories that were looked at, above 0, at most 1.
            typical: a part's size, for the interval of what was never seen.
        """
        value = self.total / share
        if share >= 1.0:
            return Estimate(value, value, value)
        worth = self.typical or typical  # squares of the smallest numbers there are vanish
        parts = self.total / worth if worth else 0.0
        unit, narrower = worth / share, math.sqrt(1.0 - share)
        low, high = _poisson_interval(parts)
        return Estimate(
            value,
            max(value - (value - low * unit) * narrower, self.total),
            value + (high * unit - value) * narrower,
        )

    @property
    def typical(self) -> float:
        """Size of a part, larger ones counting for more; 0 where there is none."""
        return self.squares / self.total if self.total else 0.0


def _poisson_interval(count: float) -> tuple[float, float]:
    """Means for which `count` is not too few nor too many: Garwood's, by Wilson's and Hilferty's cubes."""
    return (
        _cube(count, -_DEVIATIONS) if count else 0.0,
        _cube(count + 1.0, _DEVIATIONS),
    )


def _cube(count: float, deviations: float) -> float:
    root = 1.0 - 1.0 / (9.0 * count) + deviations / (3.0 * math.sqrt(count))
    return float(count * max(root, 0.0) ** 3)
