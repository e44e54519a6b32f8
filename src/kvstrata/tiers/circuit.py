"""Whether an operation that keeps failing is worth another try. Pure: the clock is passed in.

The usual circuit breaker. Closed, everything is tried. After some failures in a row it opens: nothing is
tried for a pause, then one operation alone, the test. A test that succeeds closes the circuit; one that
fails doubles the pause, up to a bound. An operation that takes longer than anyone waits for it has failed,
also while it still runs: a dead server's calls may never end.
"""

FAILURES = 4
"""Failures in a row that open a circuit: one bad file is no broken disk."""
PAUSE = 1.0
"""Seconds before the first test."""
LONGEST_PAUSE = 60.0
"""Seconds beyond which the pause does not grow: a disk that came back is found within a minute."""


class Circuit:
    """One kind of operation on one tier. Not for several threads at once.

    Attributes:
        open: whether the tier is set aside.

    Args:
        patience: seconds after which an operation that runs counts as failed.
    """

    def __init__(self, patience: float) -> None:
        self.open = False
        self._patience = patience
        self._streak = 0
        self._pause = PAUSE
        self._until = 0.0
        self._tickets = 0
        self._running: dict[int, float] = {}
        self._test: int | None = None

    def tries(self, now: float) -> bool:
        """Whether an operation that begins at `now` seconds would be let through."""
        self._look(now)
        return not self.open or (self._test is None and now >= self._until)

    def begin(self, now: float) -> int | None:
        """An operation wants to begin.

        Returns:
            A ticket for `end`, or None: it must not begin.
        """
        if not self.tries(now):
            return None
        self._tickets += 1
        self._running[self._tickets] = now
        if self.open:
            self._test = self._tickets
        return self._tickets

    def end(self, ticket: int, succeeded: bool | None, now: float) -> None:
        """An operation has ended.

        Args:
            ticket: from `begin`.
            succeeded: None when its outcome says nothing of the tier, such as a miss.
            now: seconds.
        """
        self._look(now)
        if self._running.pop(ticket, None) is None:
            return  # it has failed before: it took too long
        test = ticket == self._test
        if test:
            self._test = None
        if succeeded is None:
            return
        if not succeeded:
            self._failed(now, test)
        elif test or not self.open:
            self.open, self._streak, self._pause = False, 0, PAUSE

    def _look(self, now: float) -> None:
        """Operations that run for too long have failed."""
        while self._running:
            ticket, begun = next(iter(self._running.items()))
            if now - begun <= self._patience:
                return
            del self._running[ticket]
            test = ticket == self._test
            if test:
                self._test = None
            self._failed(now, test)

    def _failed(self, now: float, test: bool) -> None:
        self._streak += 1
        if test:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif self.open or self._streak < FAILURES:
            return
        self.open = True
        self._until = now + self._pause
