"""The tier interface: one place that holds chunks.

A tier answers with closed types, never with exceptions: a chunk that cannot be had is a miss to the
caller, whatever the cause. Every method may block on I/O and may be called from several threads at once;
callers run them where blocking is harmless (see `kvstrata.tiering.runner`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvstrata.chunks.key import ChunkKey
from kvstrata.errors import BadReason


@dataclass(frozen=True, slots=True)
class Loaded:
    """The blocks asked for are in the buffer and verified. `nbytes` were read for them."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Missing:
    """The tier does not hold these blocks of the chunk; the buffer is as it was."""


@dataclass(frozen=True, slots=True)
class Bad:
    """The tier holds something under this key that cannot be used; the buffer's content is undefined."""

    reason: BadReason
    detail: str


@dataclass(frozen=True, slots=True)
class Stored:
    """The chunk is readable from now on. `nbytes` were written."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Present:
    """The chunk was there already, at least as complete; nothing was written."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing was stored and nothing half-stored is visible. `reason` is a short label, such as ENOSPC."""

    reason: str
    detail: str


SET_ASIDE = "set_aside"
"""Reason of a write that was not tried; see `kvstrata.tiers.breaker`."""

ReadOutcome = Loaded | Missing | Bad
WriteOutcome = Stored | Present | Failed

Transfer = tuple[ChunkKey, memoryview, int]
"""One of several reads or writes: the arguments of `Tier.read` or `Tier.write`."""


class Tier(ABC):
    """One place that holds chunks.

    The caller guarantees that keys belong to groups the tier was made for and that buffers have the
    group's `payload_bytes`. The tier guarantees that a reader sees a chunk whole or not at all, that
    `Loaded` bytes are those that were stored, and that concurrent writers of one key (whose bytes are
    equal by definition of the key) do no harm.
    """

    name: str
    """Label in metrics and messages, such as "memory" or "filesystem"."""

    owner: str | None = None
    """Of a tier that several engines may share: names what it holds and where; equal for all who share."""

    @property
    def usable(self) -> bool:
        """Whether reads are worth asking for now; false while a tier that keeps failing is set aside."""
        return True

    @abstractmethod
    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """For each key, whether a read would probably find it. Cheap; a hint, not a promise."""

    @abstractmethod
    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """Bring blocks `first_block` to the chunk's end into `into` and verify them.

        Args:
            key: the chunk.
            into: writable uint8 view of `payload_bytes` in whole-chunk layout: block b belongs at
                `b * block_bytes`. Bytes of blocks before `first_block` are left alone.
            first_block: where to start; only these blocks are read, so a window's tail is cheap.

        Returns:
            `Loaded`; `Missing` if the chunk, or one of these blocks, is not here; `Bad`.
        """

    @abstractmethod
    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """Publish a chunk.

        Args:
            key: the chunk.
            payload: uint8 view of `payload_bytes` in whole-chunk layout; not changed by anyone until
                the call returns.
            first_block: blocks before this one are not valid and are not stored.
        """

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """Read several chunks; the same as to read each, but what they have in common is done once.

        Args:
            wanted: in any order; chunks that were written together are best read together.

        Returns:
            The outcome of each.
        """
        return [self.read(key, into, first_block) for key, into, first_block in wanted]

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """Publish several chunks; the same as to write each, but what they have in common is done once.

        Args:
            given: of one group they become visible in this order.

        Returns:
            The outcome of each.
        """
        return [self.write(key, payload, first_block) for key, payload, first_block in given]

    def attribute(self, marks: Mapping[ChunkKey, bytes]) -> None:
        """Say whose chunks are, before they are written: a mark of 8 bytes for each, zeros to forget it.

        Whoever writes a chunk that has no mark writes it for nobody in particular.
        """
        return

    @abstractmethod
    def remove(self, key: ChunkKey) -> bool:
        """Forget a chunk. Returns whether it was there."""

    @abstractmethod
    def scan(self) -> Iterator[ChunkKey]:
        """Every chunk held, in no order; may miss or repeat chunks that change meanwhile."""

    def take_removed(self) -> list[ChunkKey]:
        """Chunks that this tier itself removed since the last call, such as to keep within a bound."""
        return []

    def close(self) -> None:
        """Release what the tier holds. Chunks on persistent tiers stay."""
