"""A tier that reports what it does. Measuring wraps a tier; it never enters one."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from kvstrata.chunks.key import ChunkKey
from kvstrata.clock import Clock
from kvstrata.tiers.tier import ReadOutcome, Tier, WriteOutcome


class Observer(Protocol):
    """Told of each operation, in the thread that did it."""

    def __call__(self, operation: str, outcome: ReadOutcome | WriteOutcome, seconds: float) -> None:
        """`operation` is "read" or "write"; `seconds` is how long it took."""
        ...


class MeteredTier(Tier):
    """Passes everything to another tier and reports reads and writes.

    Args:
        inner: the tier that does the work.
        clock: to measure durations.
        observer: must be safe to call from several threads at once.
    """

    def __init__(self, inner: Tier, clock: Clock, observer: Observer) -> None:
        self.name = inner.name
        self.owner = inner.owner
        self._inner = inner
        self._clock = clock
        self._observer = observer

    @property
    def usable(self) -> bool:
        """See `Tier.usable`."""
        return self._inner.usable

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`."""
        return self._inner.probe(keys)

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        begun = self._clock.now()
        outcome = self._inner.read(key, into, first_block)
        self._observer("read", outcome, self._clock.now() - begun)
        return outcome

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        begun = self._clock.now()
        outcome = self._inner.write(key, payload, first_block)
        self._observer("write", outcome, self._clock.now() - begun)
        return outcome

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`."""
        return self._inner.remove(key)

    def scan(self) -> Iterator[ChunkKey]:
        """See `Tier.scan`."""
        return self._inner.scan()

    def close(self) -> None:
        """See `Tier.close`."""
        self._inner.close()
