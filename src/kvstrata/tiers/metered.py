"""A tier that reports what it does. Measuring wraps a tier; it never enters one."""

from collections.abc import Sequence
from typing import Protocol

from kvstrata.chunks.key import ChunkKey
from kvstrata.clock import Clock
from kvstrata.tiers.passing import PassingTier
from kvstrata.tiers.tier import ReadOutcome, Tier, Transfer, WriteOutcome


class Observer(Protocol):
    """Told of each chunk's operation, in the thread that did it."""

    def __call__(self, operation: str, outcome: ReadOutcome | WriteOutcome, seconds: float) -> None:
        """`operation` is "read" or "write"; `seconds` is how long it took: of several at once, its share."""
        ...


class MeteredTier(PassingTier):
    """Passes everything to another tier and reports reads and writes.

    Args:
        inner: the tier that does the work.
        clock: to measure durations.
        observer: must be safe to call from several threads at once.
    """

    def __init__(self, inner: Tier, clock: Clock, observer: Observer) -> None:
        super().__init__(inner)
        self._clock = clock
        self._observer = observer

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        begun = self._clock.now()
        outcome = self.inner.read(key, into, first_block)
        self._observer("read", outcome, self._clock.now() - begun)
        return outcome

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        begun = self._clock.now()
        outcome = self.inner.write(key, payload, first_block)
        self._observer("write", outcome, self._clock.now() - begun)
        return outcome

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """See `Tier.read_many`."""
        begun = self._clock.now()
        outcomes = self.inner.read_many(wanted)
        self._tell("read", outcomes, self._clock.now() - begun)
        return outcomes

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`."""
        begun = self._clock.now()
        outcomes = self.inner.write_many(given)
        self._tell("write", outcomes, self._clock.now() - begun)
        return outcomes

    def _tell(
        self, operation: str, outcomes: Sequence[ReadOutcome | WriteOutcome], seconds: float
    ) -> None:
        for outcome in outcomes:
            self._observer(operation, outcome, seconds / len(outcomes))
