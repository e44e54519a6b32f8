"""What may be believed of one engine's events: order, gaps, restarts. Pure: no socket, no clock.

An engine numbers its batches from 0 and keeps the newest in a ring, from which it answers replay requests
(vLLM's `ZmqEventPublisher`). Batches get lost, come twice or late, and a restarted engine begins again at 0
under the same address. A `Stream` is told what arrives and says what to do: apply a batch, forget the
engine's blocks, ask for a replay. Whatever it cannot prove to be complete it calls stale, with the reason.

Batches carry no sign of the engine's life that they are of. So a batch of an earlier life is told from one
of this life only until the replay that follows a new connection was answered; by then the old connection
has to be read to its end.
"""

import enum
from collections import OrderedDict
from dataclasses import dataclass

import xxhash


class Trust(enum.StrEnum):
    """How far the applied batches can be believed."""

    SYNCED = "synced"
    """Everything that the engine published up to the last batch has been applied, in order."""
    CATCHING_UP = "catching up"
    """Batches are missing and a replay is under way."""
    STALE = "stale"
    """Batches are lost for good: some blocks may be gone, others unknown. A snapshot mends it."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply this batch."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget all blocks of the engine: it restarted."""

    reason: str


@dataclass(frozen=True, slots=True)
class Replay:
    """Ask the engine for its batches from this number on; tell the stream each, then that they ended."""

    start: int


Action = Apply | Reset | Replay

REMEMBERED = 1024
"""Applied batches whose content is remembered, to tell a repetition from a restart."""


class Stream:
    """One engine's batches, of one data-parallel rank.

    Args:
        limit: batches held back during a replay; beyond it the oldest are given up.

    Attributes:
        trust: see `Trust`.
        reason: why it is not synced, for an operator; empty when it is.
        expected: number of the next batch to apply.
        repeated: batches that came again and were passed over.
        dropped: batches that the engine does not know itself: delayed ones of an earlier life.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self.trust = Trust.CATCHING_UP
        self.reason = "nothing was received yet"
        self.expected = 0
        self.repeated = 0
        self.dropped = 0
        self._limit = limit
        self._held: dict[int, bytes] = {}
        self._asked: set[int] = set()
        self._replaying = False
        self._replayed = -1
        self._suspect = True
        self._digests: OrderedDict[int, bytes] = OrderedDict()

    def connected(self) -> list[Action]:
        """A connection was made, the first or a new one: the engine may be another by now."""
        self._suspect = True
        return self._ask("a connection was made")

    def received(self, sequence: int, payload: bytes) -> list[Action]:
        """A batch was published."""
        if sequence < self.expected:
            return self._from_the_past(sequence, payload)
        if sequence > self.expected or self._replaying:
            self._hold(sequence, payload)
            if self._replaying:
                return []
            return self._ask(f"batches {self.expected} to {sequence - 1} did not arrive")
        actions: list[Action] = [self._apply(sequence, payload)]
        if self.trust is Trust.CATCHING_UP:
            self._synced()
        return actions

    def replayed(self, sequence: int, payload: bytes) -> list[Action]:
        """One batch of the replay that was asked for; in order."""
        self._replayed = max(self._replayed, sequence)
        if sequence < self.expected:
            if self._is_repetition(sequence, payload):
                return []
            return self._restart(sequence, payload, "a batch has other content than before")
        if sequence > self.expected:
            self._lose(sequence, "the engine's ring does not reach back to them")
        return [self._apply(sequence, payload)]

    def replay_ended(self) -> list[Action]:
        """The engine has sent all that its ring holds."""
        actions: list[Action] = []
        self._replaying = False
        if self._replayed < self.expected - 1:
            # It does not even know the last batch that was applied.
            restart = Reset(f"the engine's last batch is {self._replayed}, not {self.expected - 1}")
            self._begin_again()
            actions.append(restart)
            self._asked.clear()
            return [*actions, *self._ask(restart.reason)]
        for sequence in self._asked:
            if sequence > self._replayed and self._held.pop(sequence, None) is not None:
                self.dropped += 1
        self._asked.clear()
        if self._suspect and any(sequence > self._replayed for sequence in self._held):
            # Came after the question, so that the answer does not tell which life of the engine's it is of.
            return self._ask("batches arrived around a new connection")
        self._suspect = False
        actions += self._drain()
        if self._held:
            return [*actions, *self._ask(f"batch {self.expected} did not arrive")]
        if self.trust is Trust.CATCHING_UP:
            self._synced()
        return actions

    def replay_failed(self, reason: str) -> list[Action]:
        """No replay can be had: the engine offers none, or did not answer."""
        self._replaying = False
        self._asked.clear()
        actions: list[Action] = []
        while self._held:
            first = min(self._held)
            if first > self.expected:
                self._lose(first, reason)
            actions += self._drain()
        if self.trust is not Trust.STALE:
            self._stale(f"nothing says that no batch was missed: {reason}")
        return actions

    def restored(self, sequence: int) -> list[Action]:
        """The engine's whole content up to and with batch `sequence` was taken from a snapshot."""
        self._digests.clear()
        self._held = {number: held for number, held in self._held.items() if number > sequence}
        self.expected = sequence + 1
        self._asked.clear()
        self._replaying = self._suspect = False
        self._synced()
        actions = self._drain()
        if self._held:
            actions += self._ask(f"batch {self.expected} did not arrive")
        return actions

    # Inner workings.

    def _from_the_past(self, sequence: int, payload: bytes) -> list[Action]:
        if self._is_repetition(sequence, payload):
            self.repeated += 1
            return []
        if self._replaying:
            self._hold(sequence, payload)  # the replay tells which life it belongs to
            return []
        return self._restart(sequence, payload, f"batch {sequence} came after {self.expected - 1}")

    def _restart(self, sequence: int, payload: bytes, why: str) -> list[Action]:
        self._begin_again()
        self._hold(sequence, payload)
        self._replaying = False
        return [Reset(why), *self._ask(why)]

    def _begin_again(self) -> None:
        self.expected = 0
        self._digests.clear()
        self._replayed = -1
        self._suspect = True
        self.trust, self.reason = Trust.CATCHING_UP, "the engine restarted"

    def _ask(self, why: str) -> list[Action]:
        if self._replaying:
            return []
        self._replaying = True
        self._replayed = -1
        self._asked = set(self._held)
        if self.trust is not Trust.STALE:
            self.trust, self.reason = Trust.CATCHING_UP, why
        # The last applied batch is asked for too: if it is another now, so is the engine.
        return [Replay(max(self.expected - 1, 0))]

    def _hold(self, sequence: int, payload: bytes) -> None:
        self._held[sequence] = payload
        while len(self._held) > self._limit:
            del self._held[min(self._held)]

    def _drain(self) -> list[Action]:
        actions: list[Action] = []
        for sequence in sorted(self._held):
            if sequence < self.expected:
                del self._held[sequence]
            elif sequence == self.expected:
                actions.append(self._apply(sequence, self._held.pop(sequence)))
            else:
                break
        return actions

    def _apply(self, sequence: int, payload: bytes) -> Apply:
        self.expected = sequence + 1
        self._held.pop(sequence, None)
        self._digests[sequence] = xxhash.xxh3_128_digest(payload)
        if len(self._digests) > REMEMBERED:
            self._digests.popitem(last=False)
        return Apply(sequence, payload)

    def _is_repetition(self, sequence: int, payload: bytes) -> bool:
        return self._digests.get(sequence) == xxhash.xxh3_128_digest(payload)

    def _lose(self, until: int, why: str) -> None:
        self._stale(f"batches {self.expected} to {until - 1} are lost: {why}")
        self.expected = until

    def _stale(self, reason: str) -> None:
        self.trust, self.reason = Trust.STALE, reason

    def _synced(self) -> None:
        self.trust, self.reason = Trust.SYNCED, ""
