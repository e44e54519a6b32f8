"""Which load's reads go first: the one that would be whole first if it were alone. Pure.

Among equal loads that is the one that came first, so that each has its chunks as early as it can. A short
load that comes behind a long one goes before what is left of it, and does not wait for all of it. Only those
go before a long load that come while it would be under way alone, so what it waits for is bounded.
"""

FIRST_RATE = 1e9
"""Bytes a second that a thread is supposed to move before any was seen to."""
WEIGHT = 1 / 16
"""Of a new observation."""
LEAST_SECONDS = 1e-6


class Pace:
    """Bytes a second that a thread moves, learned, and what follows for the order of loads.

    Attributes:
        rate: bytes a second.
    """

    def __init__(self) -> None:
        self.rate = FIRST_RATE

    def took(self, nbytes: int, seconds: float) -> None:
        """A thread has moved so much in so long."""
        if nbytes > 0:
            # The mean of times, not of rates: a thread that hung counts for what it cost.
            cost = max(seconds, LEAST_SECONDS) / nbytes
            self.rate = 1 / ((1 - WEIGHT) / self.rate + WEIGHT * cost)

    def due(self, started: float, nbytes: int, deadline: float) -> float:
        """When a load is due, by the clock of `started`; of two the one that is due earlier goes first.

        Args:
            started: when it began.
            nbytes: that it needs.
            deadline: when it is given up.
        """
        return min(started + nbytes / self.rate, deadline)
