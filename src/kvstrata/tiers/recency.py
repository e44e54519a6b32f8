"""When a file's time is renewed, and when it is past its time. Pure but for the clock that is passed in.

A file's time says when it was last used, by the file system's clock. To renew it at each use would cost a
write for each read; to renew it once an hour makes an order of age worthless where files go after an hour. So
it is renewed once it is older than an eighth of the age at which files go.
"""

import time
from collections.abc import Callable

SHARE = 1 / 8
"""Of the age at which files go."""
TOUCH_SECONDS = 3600.0
"""A time is never more wrong than that, however old files grow."""
LEAST_SECONDS = 1.0
PER_SECOND = 2000.0
"""Files that one engine renews at most; others keep their time until their next use."""
BURST_SECONDS = 2.0


class Recency:
    """See the module. Several threads may use one; a race costs a renewal more or less.

    Args:
        ttl: seconds after which what was not used counts as absent; 0 for never.
        now: this machine's time, seconds since 1970.
        enabled: whether anything is renewed.
    """

    def __init__(
        self, ttl: float = 0.0, now: Callable[[], float] = time.time, *, enabled: bool = True
    ) -> None:
        self._ttl = ttl
        self._now = now
        self._enabled = enabled
        self._after = self._limit(0.0)
        self._ahead = 0.0
        self._allowed = PER_SECOND * BURST_SECONDS
        self._filled = now()

    @property
    def after(self) -> float:
        """Seconds since its last use after which a file's time is renewed."""
        return self._after

    def learn(self, file_system: float, age: float = 0.0) -> None:
        """Take note of what is known now.

        Args:
            file_system: its time now, as a file shows that was just written.
            age: at which files go now, seconds; 0 where that is not known.
        """
        self._ahead = file_system - self._now()
        self._after = self._limit(age)

    def expired(self, used: float) -> bool:
        """Whether a file that was last used then is past its time."""
        return self._ttl > 0 and self._age(used) > self._ttl

    def due(self, used: float) -> bool:
        """Whether the time of a file, that is used now, is to be renewed; the caller does so then.

        One that lies in the future tells nothing, so it is.
        """
        if not self._enabled or abs(self._age(used)) <= self._after:
            return False
        now = self._now()
        # Clocks that go backwards take nothing away.
        self._allowed += PER_SECOND * min(max(now - self._filled, 0.0), BURST_SECONDS)
        self._filled = now
        self._allowed = min(self._allowed, PER_SECOND * BURST_SECONDS)
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    def _age(self, used: float) -> float:
        return self._now() + self._ahead - used

    def _limit(self, age: float) -> float:
        shortest = min((one for one in (age, self._ttl) if one > 0), default=0.0)
        return (
            min(max(SHARE * shortest, LEAST_SECONDS), TOUCH_SECONDS) if shortest else TOUCH_SECONDS
        )
