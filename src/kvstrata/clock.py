"""Time as a value that is passed in, so that everything above can run in virtual time."""

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds; its zero has no meaning."""

    def now(self) -> float:
        """Seconds since an arbitrary origin; never goes backwards."""
        ...


class MonotonicClock:
    """The system's monotonic clock."""

    def now(self) -> float:
        """Seconds of `time.monotonic`."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to; for tests and simulation."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Seconds, as last set by `advance`."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward. `seconds` must not be negative."""
        assert seconds >= 0
        self._now += seconds
