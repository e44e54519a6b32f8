"""Which namespace an engine turns to when its cache is reset."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvstrata.chunks.namespace import Namespace


class Held(NamedTuple):
    """What an engine holds now.

    Attributes:
        facts: of the namespace that are otherwise than at the engine's start.
        model: name of the model; None for the one at the start.
    """

    facts: Mapping[str, Any]
    model: str | None = None


class Turns:
    """The namespaces of one engine, one after the other.

    Unless it was said what the engine holds now, a reset leads to a namespace that nobody else can have,
    since nothing says whether its bytes are still interchangeable.

    Args:
        first: the engine's at its start.
    """

    def __init__(self, first: Namespace) -> None:
        self._first = first
        self._count = 0
        self._wanted: Held | None = None

    def want(self, held: Held | None) -> None:
        """What the next reset, and no other, turns to; None where nobody knows."""
        self._wanted = held

    @property
    def wanted(self) -> bool:
        """Whether it was said what the next reset turns to."""
        return self._wanted is not None

    def next(self) -> Namespace:
        """The namespace after a reset."""
        wanted, self._wanted = self._wanted, None
        if wanted is None:
            self._count += 1
            wanted = Held({"reset": [self._count, os.getpid(), os.urandom(8).hex()]})
        return Namespace(wanted.model or self._first.model, {**self._first.facts, **wanted.facts})
