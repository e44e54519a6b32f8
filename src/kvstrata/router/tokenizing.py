"""Token ids by asking an engine: its `/tokenize`, within bounds."""

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.chunks.beginnings import Beginnings
from kvstrata.router.ids import parse_ids
from kvstrata.router.replicas import Replica, fetch, own_lines
from kvstrata.router.upstream import EngineError

Tokens = npt.NDArray[np.uint32]

LEAST = 512
"""Bytes of a question; the prompt of a shorter one fills next to no block, and is not worth it."""
_CLOSED = frozenset({401, 403, 404, 405, 501})
"""Statuses of an engine that will not answer other questions either."""


class UntoldError(Exception):
    """An engine did not tell token ids; the message says why.

    Attributes:
        refused: it would not, whenever it is asked.
    """

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


def _weight(ids: Tokens) -> int:
    return ids.nbytes + 200  # what an entry takes besides, about


class _Answer(msgspec.Struct):
    tokens: msgspec.Raw


class EngineTokenizer:
    """Asks engines for token ids. Its methods are called from the event loop's thread.

    Args:
        seconds: that one question may take.
        at_once: questions on their way at one time; further ones are not asked.
        capacity: bytes of answers that are remembered.
    """

    def __init__(self, seconds: float = 1.0, at_once: int = 32, capacity: int = 32 << 20) -> None:
        self._seconds = seconds
        self._at_once = at_once
        self._asking = 0
        self._closed: set[str] = set()
        self._capacity = capacity
        self._known: Beginnings[Tokens] = Beginnings(capacity, _weight)

    def forget(self) -> None:
        """Remember no answers: an engine may make others now."""
        self._closed.clear()
        self._known = Beginnings(self._capacity, _weight)

    async def ask(self, replica: Replica, question: bytes, *, anew: bool = False) -> Tokens:
        """Token ids, uint32 (n,).

        Args:
            replica: whom to ask.
            question: body of a `/tokenize`.
            anew: whether it counts what this replica says now.

        Raises:
            UntoldError: it did not tell them, or not in time.
        """
        if len(question) < LEAST and not anew:
            raise UntoldError("it is too short to ask for")
        if replica.name in self._closed and not anew:
            raise UntoldError(f"{replica.name} does not answer /tokenize")
        running = self._known.digest()
        running.update(question)
        name = running.digest()
        known = self._known.known([name])
        if known and not anew:
            return known[0]
        if self._asking >= self._at_once:
            raise UntoldError("too many prompts are being asked for")
        self._asking += 1
        try:
            tokens = await self._ask(replica, question)
        finally:
            self._asking -= 1
        self._known.remember(name, tokens)
        return tokens

    async def _ask(self, replica: Replica, question: bytes) -> Tokens:
        try:
            status, body = await fetch(
                replica, b"/tokenize", own_lines(replica), self._seconds, question
            )
        except EngineError as error:
            raise UntoldError(f"{replica.name} {error.why}") from None
        if status in _CLOSED:
            self._closed.add(replica.name)
        if status != 200:
            raise UntoldError(
                f"{replica.name} answers /tokenize with status {status}", refused=status < 500
            )
        try:
            tokens = parse_ids(bytes(msgspec.json.decode(body, type=_Answer).tokens))
        except (ValueError, RecursionError):
            tokens = None
        if tokens is None:
            raise UntoldError(f"{replica.name} answers /tokenize without token ids", refused=True)
        return tokens
