"""What a stream keeps of batches: those that wait, and digests of those that were applied. Pure."""

import enum
import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import xxhash

REMEMBERED = 1024
"""Applied batches whose content is remembered, to tell a repetition from a restart."""


class Held:
    """Batches by number that cannot be applied yet; when there are too many the oldest go.

    Args:
        limit: most batches.
        limit_bytes: most bytes of their payloads.
    """

    def __init__(self, limit: int, limit_bytes: int) -> None:
        assert limit > 0 and limit_bytes > 0
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._payloads: dict[int, bytes] = {}
        self._order: list[int] = []
        self._newest = -1
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._payloads)

    def __iter__(self) -> Iterator[int]:
        return iter(self._payloads)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._payloads

    @property
    def oldest(self) -> int:
        """Smallest number; only of what is not empty."""
        while self._order[0] not in self._payloads:
            heapq.heappop(self._order)
        return self._order[0]

    @property
    def newest(self) -> int:
        """Largest number; -1 when empty."""
        if self._newest not in self._payloads:
            self._newest = max(self._payloads, default=-1)
        return self._newest

    def add(self, sequence: int, payload: bytes) -> None:
        """Keep a batch; one of the same number is replaced."""
        before = self._payloads.get(sequence)
        if before is None:
            heapq.heappush(self._order, sequence)
        else:
            self.nbytes -= len(before)
        self._payloads[sequence] = payload
        self.nbytes += len(payload)
        self._newest = max(self._newest, sequence)
        while len(self._payloads) > self._limit or self.nbytes > self._limit_bytes:
            self.take(self.oldest)

    def take(self, sequence: int) -> bytes | None:
        """Give up a batch; its payload, or None if it is not there."""
        payload = self._payloads.pop(sequence, None)
        if payload is not None:
            self.nbytes -= len(payload)
            if not self._payloads:
                self._order.clear()
        return payload

    def clear(self) -> None:
        """Give up all."""
        self._payloads.clear()
        self._order.clear()
        self._newest = -1
        self.nbytes = 0


class Seen(enum.Enum):
    """What is known of a batch that comes again."""

    SAME = enum.auto()
    """It was applied with this content."""
    OTHER = enum.auto()
    """Another content was applied under its number."""
    UNKNOWN = enum.auto()
    """It is too long ago."""


class Recent:
    """Digests of the last batches that were applied, by number."""

    def __init__(self) -> None:
        self._digests: OrderedDict[int, bytes] = OrderedDict()

    def add(self, sequence: int, payload: bytes) -> None:
        """Remember an applied batch."""
        self._digests[sequence] = xxhash.xxh3_128_digest(payload)
        if len(self._digests) > REMEMBERED:
            self._digests.popitem(last=False)

    def seen(self, sequence: int, payload: bytes) -> Seen:
        """Compare a batch with the one that was applied under its number."""
        digest = self._digests.get(sequence)
        if digest is None:
            return Seen.UNKNOWN
        return Seen.SAME if digest == xxhash.xxh3_128_digest(payload) else Seen.OTHER

    def restore(self, last: int, digests: Sequence[bytes]) -> None:
        """Replace all by an engine's own digests of its last batches, which end with number `last`."""
        kept = digests[-REMEMBERED:]
        self._digests = OrderedDict(zip(range(last + 1 - len(kept), last + 1), kept, strict=True))

    def clear(self) -> None:
        """Forget all."""
        self._digests.clear()
