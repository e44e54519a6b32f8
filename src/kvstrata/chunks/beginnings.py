"""What was found out about beginnings of texts or prompts, remembered within bounds."""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import xxhash

Found = TypeVar("Found")


class Beginnings(Generic[Found]):
    """Remembers a value for each piece of a text, under a digest of all up to the piece's end.

    Digests are keyed with a random value, so that nobody can make two texts meet. Not for use by several
    threads at once.

    Args:
        capacity: what all values may weigh together; those not used for longest go first.
        weigh: what one value weighs, at least 1.
    """

    def __init__(self, capacity: int, weigh: Callable[[Found], int]) -> None:
        assert capacity > 0
        self._capacity = capacity
        self._weigh = weigh
        self._weight = 0
        self._held: OrderedDict[bytes, Found] = OrderedDict()
        self._key = secrets.token_bytes(16)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def weight(self) -> int:
        """Of all values that are remembered; never above the capacity."""
        return self._weight

    def digest(self, context: bytes = b"") -> xxhash.xxh3_128:
        """A running digest to name pieces by; `context` is what else decides their values."""
        return xxhash.xxh3_128(self._key + context)

    def known(self, names: Iterable[bytes]) -> list[Found]:
        """Values of the first pieces of a text, up to the first that is not remembered.

        Args:
            names: of its pieces, in order.
        """
        found = []
        for name in names:
            held = self._held.get(name)
            if held is None:
                break
            self._held.move_to_end(name)
            found.append(held)
        return found

    def remember(self, name: bytes, value: Found) -> None:
        """Keep the value of a piece, for a while."""
        before = self._held.pop(name, None)
        self._weight += self._weigh(value) - (0 if before is None else self._weigh(before))
        self._held[name] = value
        while self._weight > self._capacity:
            self._weight -= self._weigh(self._held.popitem(last=False)[1])
