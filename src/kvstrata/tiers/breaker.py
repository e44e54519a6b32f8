"""A tier that is set aside while it keeps failing, so that nobody waits for what does not come."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from kvstrata.chunks.key import ChunkKey
from kvstrata.clock import Clock
from kvstrata.errors import BadReason
from kvstrata.tiers.circuit import Circuit
from kvstrata.tiers.passing import PassingTier
from kvstrata.tiers.tier import (
    SET_ASIDE,
    Bad,
    Failed,
    Loaded,
    ReadOutcome,
    Stored,
    Tier,
    Transfer,
    WriteOutcome,
)

Answer = TypeVar("Answer")
_BROKEN = frozenset({BadReason.IO, BadReason.PERMISSION})
"""Reasons that blame the tier; the others blame one record."""
_REFUSALS = frozenset({"read_only"})
"""Failed writes of a tier that works."""


class Observer(Protocol):
    """Told of changes and refusals, in the thread that caused them."""

    def changed(self, operation: str, set_aside: bool, why: str) -> None:
        """`operation` ("read" or "write") is set aside from now on, or taken back; `why` for people."""
        ...

    def refused(self, operation: str) -> None:
        """One chunk's operation was not tried."""
        ...


class BreakerTier(PassingTier):
    """Passes everything to another tier as long as that makes sense.

    Reads and writes have a circuit each: a full disk can still be read. What is not tried is answered at
    once: a read with `BadReason.SET_ASIDE`, a write with `Failed`, a probe with "perhaps", so that nobody
    takes a chunk for gone. A probe that does not end is a read that has failed; one that ends says nothing of
    the tier. Removals always go through. Several chunks at once are one operation: it fails if it takes too
    long, or if the tier fails for some of them and works for none.

    Args:
        inner: the tier that does the work.
        clock: for pauses and for what takes too long.
        patience: seconds after which an operation that still runs has failed.
        observer: must be safe to call from several threads at once.
    """

    def __init__(self, inner: Tier, clock: Clock, patience: float, observer: Observer) -> None:
        super().__init__(inner)
        self._clock = clock
        self._observer = observer
        self._lock = threading.Lock()
        self._circuits = {"read": Circuit(patience), "write": Circuit(patience)}

    @property
    def usable(self) -> bool:
        """See `Tier.usable`: also true when it is time for a test."""
        return self._ask("read", Circuit.tries) and self.inner.usable

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`."""
        ticket = self._ask("read", Circuit.begin)
        if ticket is None:
            return [True] * len(keys)
        try:
            return self.inner.probe(keys)
        finally:
            self._ask("read", lambda one, now: one.end(ticket, None, now), "reads take too long")

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        (outcome,) = self._read(1, lambda: [self.inner.read(key, into, first_block)])
        return outcome

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        (outcome,) = self._write(1, lambda: [self.inner.write(key, payload, first_block)])
        return outcome

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """See `Tier.read_many`."""
        return self._read(len(wanted), lambda: self.inner.read_many(wanted))

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`."""
        return self._write(len(given), lambda: self.inner.write_many(given))

    def _read(self, chunks: int, work: Callable[[], list[ReadOutcome]]) -> list[ReadOutcome]:
        ticket = self._begin("read", chunks)
        if ticket is None:
            return [Bad(BadReason.SET_ASIDE, f"{self.name} is set aside")] * chunks
        outcomes: list[ReadOutcome] | None = None
        try:
            outcomes = work()
        finally:
            self._end("read", ticket, outcomes)
        return outcomes

    def _write(self, chunks: int, work: Callable[[], list[WriteOutcome]]) -> list[WriteOutcome]:
        ticket = self._begin("write", chunks)
        if ticket is None:
            return [Failed(SET_ASIDE, f"{self.name} is set aside")] * chunks
        outcomes: list[WriteOutcome] | None = None
        try:
            outcomes = work()
        finally:
            self._end("write", ticket, outcomes)
        return outcomes

    def _begin(self, operation: str, chunks: int) -> int | None:
        ticket = self._ask(operation, Circuit.begin)
        if ticket is None:
            for _ in range(chunks):
                self._observer.refused(operation)
        return ticket

    def _end(
        self, operation: str, ticket: int, outcomes: Sequence[ReadOutcome | WriteOutcome] | None
    ) -> None:
        verdict, why = _verdict_of_all(outcomes)
        why = why or f"{operation}s take too long"
        self._ask(operation, lambda one, now: one.end(ticket, verdict, now), why)

    def _ask(
        self, operation: str, ask: Callable[[Circuit, float], Answer], why: str = ""
    ) -> Answer:
        """Ask or tell a circuit something, and say so if it opens or closes by that."""
        circuit = self._circuits[operation]
        with self._lock:
            before = circuit.open
            answer = ask(circuit, self._clock.now())
            after = circuit.open
        if after and not before:
            self._observer.changed(operation, True, why or f"{operation}s do not end")
        elif before and not after:
            self._observer.changed(operation, False, f"{operation}s work again")
        return answer


def _verdict_of_all(
    outcomes: Sequence[ReadOutcome | WriteOutcome] | None,
) -> tuple[bool | None, str]:
    """Whether the tier did its work for any chunk, and why not; None where no outcome tells."""
    if outcomes is None:
        return False, ""
    verdicts = [_verdict(outcome) for outcome in outcomes]
    if True in verdicts or False not in verdicts:
        return (True if True in verdicts else None), ""
    return False, getattr(outcomes[verdicts.index(False)], "detail", "")


def _verdict(outcome: ReadOutcome | WriteOutcome) -> bool | None:
    """Whether the tier did its work; None where the outcome does not tell."""
    match outcome:
        case Loaded() | Stored():
            return True
        case Bad(reason=reason):
            return False if reason in _BROKEN else None
        case Failed(reason=reason):
            return None if reason in _REFUSALS else False
        case _:
            return None
