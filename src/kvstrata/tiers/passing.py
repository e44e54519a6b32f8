"""A tier that passes everything to another one: the base of whatever wraps a tier."""

from collections.abc import Iterator, Mapping, Sequence

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.tier import ReadOutcome, Tier, Transfer, WriteOutcome


class PassingTier(Tier):
    """Passes everything on.

    Whoever changes what `read` or `write` does changes it for each chunk of several, too, without a word
    more: these are passed on together only as long as one alone is passed on as it is.

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

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """See `Tier.read_many`."""
        if type(self).read is not PassingTier.read:
            return super().read_many(wanted)
        return self.inner.read_many(wanted)

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`."""
        if type(self).write is not PassingTier.write:
            return super().write_many(given)
        return self.inner.write_many(given)

    def attribute(self, marks: Mapping[ChunkKey, bytes]) -> None:
        """See `Tier.attribute`."""
        self.inner.attribute(marks)

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`."""
        return self.inner.remove(key)

    def scan(self) -> Iterator[ChunkKey]:
        """See `Tier.scan`."""
        return self.inner.scan()

    def take_removed(self) -> list[ChunkKey]:
        """See `Tier.take_removed`."""
        return self.inner.take_removed()

    def close(self) -> None:
        """See `Tier.close`."""
        self.inner.close()
