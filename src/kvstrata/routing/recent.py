"""Sums and means that fade: how much lately, and what is usual."""

import math

MOST_NAMES = 4096


class Decayed:
    """Sums by name that lose two thirds in every window of seconds that nothing is added."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, amount: float, now: float) -> None:
        """Add to the sum of a name."""
        self._sums[name] = (self.value(name, now) + amount, now)
        while len(self._sums) > MOST_NAMES:
            del self._sums[next(iter(self._sums))]

    def value(self, name: str, now: float) -> float:
        """The sum as it is now; 0 for an unknown name."""
        found = self._sums.get(name)
        if found is None:
            return 0.0
        return found[0] * math.exp(-max(now - found[1], 0.0) / self._window)

    def rate(self, name: str, now: float) -> float:
        """What is added per second, as an average over the window."""
        return self.value(name, now) / self._window

    def clear(self, name: str) -> None:
        """Begin anew."""
        self._sums.pop(name, None)

    def names(self) -> list[str]:
        """All that were added to."""
        return list(self._sums)


class Typical:
    """A mean of some hundred last values.

    Args:
        assumed: stands for it until the first value.
    """

    def __init__(self, assumed: float) -> None:
        self.mean = assumed
        self._count = 0

    def add(self, value: float) -> None:
        """One more value."""
        self._count = min(self._count + 1, 200)
        self.mean += (value - self.mean) / self._count
