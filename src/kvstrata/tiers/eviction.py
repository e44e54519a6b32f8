"""Which chunk to give up. Pure policies behind one interface.

A policy sees single chunks come and go, and beside them whole *uses*: what one request read and leaves
behind, as boundaries. Chunk keys say nothing about each other, so a policy that wants to keep boundaries
whole learns only from uses which chunks belong together.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from kvstrata.chunks.key import ChunkKey

T = TypeVar("T")
AT_ONCE = 64
"""Keys that `oldest_first` takes at a time."""


class Placed(NamedTuple):
    """A chunk and where it ends.

    Attributes:
        end: tokens of the prompt up to the chunk's last one.
        key: the chunk's.
    """

    end: int
    key: ChunkKey


@dataclass(frozen=True, slots=True)
class Boundary:
    """Everything that resuming at one point of a prompt needs.

    Attributes:
        tokens: before the point.
        chain: how many chunks of the use's `chain` it needs, from the first.
        tail: the windowed groups' chunks that it needs, any order.
    """

    tokens: int
    chain: int
    tail: tuple[Placed, ...] = ()


@dataclass(frozen=True, slots=True)
class PrefixUse:
    """What one request does with a prefix.

    Attributes:
        chain: the full groups' chunks of the prompt, in the order of their ends (ties by group).
        resumed: where the request resumed, or None when it computes from its first token.
        kept: boundaries that it leaves behind, in their order; the last one is the prompt's end, those
            before it are junctions with other prompts. Their chunks need not be in memory yet.
        answered: told again at the request's end: `resumed` is the prompt's end, and the last of `kept` the
            answer's. It is no use of the prompt's end.
    """

    chain: Sequence[Placed]
    resumed: Boundary | None
    kept: Sequence[Boundary]
    answered: bool = False

    def order(self) -> list[ChunkKey]:
        """Every chunk of the use once, head to tail over all groups, as vLLM orders a request's keys."""
        needed = max((b.chain for b in (*self.kept, self.resumed) if b is not None), default=0)
        chunks = {placed.key: placed.end for placed in self.chain[:needed]}
        for boundary in (*self.kept, self.resumed):
            if boundary is not None:
                chunks.update((placed.key, placed.end) for placed in boundary.tail)
        return sorted(chunks, key=chunks.__getitem__)


class EvictionPolicy(ABC):
    """Orders the chunks that may be evicted.

    The caller offers a chunk when it becomes evictable, withdraws it when it is pinned or about to go, and
    says when it is gone. Single chunks cost O(1) or O(log n), a use costs O(chunks of its prefix).

    Attributes:
        late: told of a use when its request has ended, as vLLM tells its policies; else when the request is
            scheduled, so that what it is about to store is known.
    """

    late = False

    @abstractmethod
    def offer(self, key: ChunkKey) -> None:
        """`key` was just used and may be evicted from now on. It must not be held already."""

    @abstractmethod
    def withdraw(self, key: ChunkKey) -> None:
        """`key` may not be evicted any more. It must be held."""

    def offer_all(self, keys: Iterable[ChunkKey]) -> None:
        """`offer` one after the other."""
        for key in keys:
            self.offer(key)

    def withdraw_all(self, keys: Iterable[ChunkKey]) -> None:
        """`withdraw` one after the other."""
        for key in keys:
            self.withdraw(key)

    def gone(self, key: ChunkKey) -> None:
        """`key`, not held, has left memory. Not called for chunks that were never offered."""

    @abstractmethod
    def used(self, use: PrefixUse) -> None:
        """A request used a prefix. Chunks that are not held are allowed in it."""

    @abstractmethod
    def victims(self) -> Iterator[ChunkKey]:
        """Held chunks, the least worth keeping first.

        The caller withdraws what was yielded before it asks for the next; if it does not, the walk ends.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Chunks held."""


def oldest_first(order: dict[ChunkKey, T]) -> Iterator[ChunkKey]:
    """Keys of a dictionary that shrinks meanwhile, oldest first; ends at one that stays.

    Takes some at a time: a dictionary skips what was removed from its front again for every first key.
    """
    while order:
        for key in list(itertools.islice(order, AT_ONCE)):
            if key in order:
                yield key
                if key in order:
                    return


class LeastRecentlyUsed(EvictionPolicy):
    """Evicts what was used longest ago; of one use, the end first."""

    late = True

    def __init__(self) -> None:
        self._order: dict[ChunkKey, None] = {}

    def offer(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.offer`."""
        assert key not in self._order
        self._order[key] = None

    def withdraw(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.withdraw`."""
        del self._order[key]

    def used(self, use: PrefixUse) -> None:
        """See `EvictionPolicy.used`."""
        order = self._order
        for key in reversed(use.order()):
            if key in order:
                del order[key]
                order[key] = None

    def victims(self) -> Iterator[ChunkKey]:
        """See `EvictionPolicy.victims`."""
        yield from oldest_first(self._order)

    def __len__(self) -> int:
        return len(self._order)
