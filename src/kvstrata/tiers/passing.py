"""A tier that passes everything to another one: the base of whatever wraps a tier."""

from collections.abc import Iterator, Sequence

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.tier import ReadOutcome, Tier, WriteOutcome


class PassingTier(Tier):
    """Passes everything on.

    Attributes:
        inner: the tier that does the work.
    """

    def __init__(self, inner: Tier) -> None:
        self.name = inner.name
        self.owner = inner.owner
        self.inner = inner

    @property
    def usable(self) -> bool:
        """See `Tier.usable`."""
        return self.inner.usable

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`."""
        return self.inner.probe(keys)

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        return self.inner.read(key, into, first_block)

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        return self.inner.write(key, payload, first_block)

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`."""
        return self.inner.remove(key)

    def scan(self) -> Iterator[ChunkKey]:
        """See `Tier.scan`."""
        return self.inner.scan()

    def close(self) -> None:
        """See `Tier.close`."""
        self.inner.close()
