"""What may be believed of one engine's events: order, gaps, restarts. Pure: no socket, no clock.

An engine numbers its batches from 0 and keeps the newest in a ring, from which it answers replay requests
(vLLM's `ZmqEventPublisher`). Batches get lost, come twice or late, and a restarted engine begins again at 0
under the same address. A `Stream` is told what arrives and says what to do: apply a batch, forget the
engine's blocks, ask the engine something. Whatever it cannot prove to be complete it calls stale, with the
reason; it never guesses.

An engine that runs this package answers questions too (`wire.snapshot`): which life it lives (its epoch)
and what it holds. Then the remedy for a gap is a replay, and where the ring does not reach back, a
snapshot. With any other engine it is a replay alone, and its restart shows in what it replays.

Batches carry no sign of the engine's life that they are of. So whoever runs a stream opens a new
connection where one was lost, and hands on nothing of the old one after `connected`.
"""

import enum
from dataclasses import dataclass

from kvstrata.events.memory import Held, Recent, Seen
from kvstrata.wire.snapshot import Header, Question


class Trust(enum.StrEnum):
    """How far the applied batches can be believed."""

    SYNCED = "synced"
    """Everything that the engine published up to the last batch has been applied, in order."""
    CATCHING_UP = "catching up"
    """Something is missing or doubtful, and a question about it is under way."""
    STALE = "stale"
    """Some blocks may be gone, others unknown, and nothing that is under way will tell."""


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
    """Ask for the batches from this number on; tell the stream each, then that they ended."""

    start: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this; tell the stream the answer by `stated` or `restored`."""

    question: Question


Action = Apply | Reset | Replay | Ask
"""A question takes the place of one that is still under way: its answer must not be handed on."""

FRUITLESS = 3
"""Replays in a row that bring nothing new, after which what they should bring is given up."""
NO_REPLAY = "it has no replay endpoint"


class Stream:
    """One engine's batches, of one data-parallel rank.

    Args:
        limit: batches held back while a question is under way; beyond it the oldest are given up.
        limit_bytes: the same for their bytes.
        askable: whether the engine has an endpoint that answers.

    Attributes:
        expected: number of the next batch to apply.
        epoch: of the engine's life, where it says so; else None.
        repeated: batches that came again and were passed over.
        dropped: batches that the engine itself does not know: of an earlier life, or invented.
        restarts: of the engine, as far as noticed.
    """

    def __init__(
        self, limit: int = 10_000, limit_bytes: int = 64 << 20, *, askable: bool = True
    ) -> None:
        self.expected = 0
        self.epoch: bytes | None = None
        self.repeated = 0
        self.dropped = 0
        self.restarts = 0
        self._askable = askable
        self._deaf = "" if askable else NO_REPLAY
        self._held = Held(limit, limit_bytes)
        self._recent = Recent()
        self._speaks: bool | None = None  # whether the engine answers our questions
        self._away = ""
        self._catching = "no connection yet"
        self._lost = ""
        self._doubt = ""
        self._contradicted = False
        self._question: Replay | Ask | None = None
        self._quiet = False
        self._asked: frozenset[int] = frozenset()
        self._expected_then = 0
        self._replayed = -1
        self._fruitless = 0
        self._promised = -1

    @property
    def trust(self) -> Trust:
        """See `Trust`."""
        if self._away:
            return Trust.STALE
        if self._catching and not (self._lost and not self._speaks):
            return Trust.CATCHING_UP
        return Trust.STALE if self._lost or self._doubt else Trust.SYNCED

    @property
    def reason(self) -> str:
        """Why it is not synced, for an operator; empty when it is."""
        trust = self.trust
        if trust is Trust.SYNCED:
            return ""
        if trust is Trust.CATCHING_UP:
            return self._catching
        return self._away or self._lost or self._doubt

    @property
    def behind(self) -> int:
        """Batches that the engine is known to have published beyond those applied."""
        return max(self._promised, self._held.newest) + 1 - self.expected if self._is_behind else 0

    @property
    def question(self) -> Replay | Ask | None:
        """What is under way."""
        return self._question

    def connected(self) -> list[Action]:
        """A connection was made, the first or a new one: the engine may be another by now."""
        self._away = self._catching = ""
        self._held.clear()
        self._question = None
        self._promised = -1
        self._deaf = "" if self._askable else NO_REPLAY
        return self._ask(Ask(Question.STATE), "a connection was made")

    def disconnected(self, reason: str) -> None:
        """There is no connection, or no longer."""
        self._away, self._catching = reason, ""
        self._question = None

    def check(self) -> list[Action]:
        """Time for a question whether anything was missed: a lost last batch, a silent restart.

        What is synced stays so while it is under way. What is stale is mended if it can be.
        """
        if self._away or not self._askable or self._question is not None or self._catching:
            return []
        if self._speaks:
            if self._lost:
                return self._ask(Ask(Question.SNAPSHOT))
            if self._promised >= self.expected:
                return self._ask_replay(self._missing(self._promised))
        if self._speaks is False and not self._lost and not self._deaf:
            return self._ask_replay()
        return self._ask(Ask(Question.STATE))

    def received(self, sequence: int, payload: bytes) -> list[Action]:
        """A batch was published."""
        if sequence < self.expected:
            return self._from_the_past(sequence, payload)
        if self._holding:
            self._held.add(sequence, payload)
            return []
        if sequence > self.expected:
            self._held.add(sequence, payload)
            if self._question is not None:
                self._quiet, self._catching = False, self._missing(sequence - 1)
                return []
            return self._ask_replay(self._missing(sequence - 1))
        if sequence == 0:
            self._doubt = ""  # the first of all: nothing can have been missed
        return [self._apply(sequence, payload), *self._drain()]

    def replayed(self, sequence: int, payload: bytes) -> list[Action]:
        """One batch of the replay that was asked for; in order."""
        if not isinstance(self._question, Replay):
            return []
        first = self._replayed < 0
        hole = not first and sequence > self._replayed + 1
        self._replayed = max(self._replayed, sequence)
        if first and sequence > self._expected_then - 1 >= 0:
            # What proves that it is still the same engine is missing, even if nothing else is.
            last = self._expected_then - 1
            self._lost = f"the engine's ring does not reach back to batch {last}, the last applied"
        if sequence < self.expected:
            if self._recent.seen(sequence, payload) is not Seen.OTHER:
                return []
            why = f"batch {sequence} has other content than before"
            return self._ask_for_all(why) if self._speaks else self._restart(why)
        if sequence == self.expected:
            return [self._apply(sequence, payload)]
        self._held.add(sequence, payload)
        if hole or sequence - 1 in self._held:
            return []  # a part of the answer was lost on the way; its end shows
        self._lose(sequence, "the engine's ring does not reach back to them")
        return self._drain()

    def replay_ended(self) -> list[Action]:
        """The engine has sent all that its ring holds."""
        if not isinstance(self._question, Replay):
            return []
        self._question, self._catching = None, ""
        if self._replayed < self._expected_then - 1:
            # It does not even know the last batch that was applied.
            why = f"the engine's last batch is not {self._expected_then - 1}"
            return self._ask_for_all(why) if self._speaks else self._restart(why)
        if self._replayed < 0 and self._asked:
            # Not even those that it just published.
            self._deaf = "its ring of batches is empty"
            return self.failed(self._deaf)
        self._doubt = ""
        for sequence in self._asked:
            if sequence > self._replayed and self._held.take(sequence) is not None:
                self.dropped += 1
        actions = self._drain()
        self._fruitless = 0 if self.expected > self._expected_then else self._fruitless + 1
        if self._held and self._fruitless >= FRUITLESS:
            self._lose(self._held.oldest, "the engine does not replay them")
            actions += self._drain()
        if self._lost and self._speaks:
            return [*actions, *self._ask_for_all(self._lost)]
        if self._held:
            return [*actions, *self._ask_replay(self._missing(self._held.newest - 1))]
        self._promised = -1
        return actions

    def stated(self, header: Header | None) -> list[Action]:
        """The answer to `Question.STATE`; None when the engine does not know the question."""
        if self._question != Ask(Question.STATE):
            return []
        quiet = self._quiet
        self._question, self._catching = None, ""
        self._speaks = header is not None
        if header is None:
            if self.epoch is None:
                return self._ask_replay("" if quiet else "batches since the last one are asked for")
            return self._restart("the engine runs without kvstrata now")
        self._deaf = ""
        if header.epoch != self.epoch:
            actions: list[Action] = []
            if self.epoch is not None or self.expected:
                actions.append(self._begin_again("the engine restarted"))
            self.epoch = header.epoch
            return [*actions, *self._ask_for_all("a snapshot of an engine not known before")]
        if self._contradicted or self._lost or header.sequence < self._expected_then - 1:
            return self._ask_for_all(self._lost or "its batches contradict each other")
        self._doubt = ""
        actions = self._drain()
        if header.sequence >= self.expected:
            if not quiet:
                return [*actions, *self._ask_replay(self._missing(header.sequence))]
            # It may be on its way. If it still is at the next check, it was lost.
            self._promised = header.sequence
        elif self._held:
            actions += self._ask_replay(self._missing(self._held.oldest - 1))
        return actions

    def restored(self, header: Header) -> list[Action]:
        """The engine's whole content, up to the header's batch, was taken from a snapshot."""
        if self.epoch not in (None, header.epoch):
            self.restarts += 1
        self.epoch, self._speaks = header.epoch, True
        self._question, self._catching = None, ""
        self._lost = self._doubt = ""
        self._contradicted = False
        self._promised, self._fruitless = -1, 0
        self.expected = header.sequence + 1
        self._recent.restore(header.sequence, header.recent)
        actions = self._drain()
        if self._held:
            actions += self._ask_replay(self._missing(self._held.oldest - 1))
        return actions

    def failed(self, reason: str) -> list[Action]:
        """What was asked is not answered, or not understandably."""
        actions: list[Action] = []
        snapshot = self._question == Ask(Question.SNAPSHOT)
        why, self._catching, self._question = self._catching, "", None
        if self._held and self._held.oldest < self.expected:
            # Nobody tells which life the batches of smaller numbers are of: they came last.
            actions.append(self._begin_again(f"batch {self._held.oldest} came after others"))
        if snapshot and not self._lost:
            self._lost = f"{why}, and no snapshot is to be had: {reason}"
        actions += self._drain()
        while self._held:
            self._lose(self._held.oldest, reason)
            actions += self._drain()
        whole = bool(actions) and isinstance(actions[0], Reset) and not self._lost
        if not (self._lost or (whole and self.expected)):
            self._doubt = f"nothing says that no batch was missed: {reason}"
        return actions

    def damaged(self, reason: str) -> None:
        """A batch that was to be applied cannot be read."""
        self._lost = self._lost or reason

    # Inner workings.

    @property
    def _holding(self) -> bool:
        """A snapshot takes the place of all that was applied; a doubt must be settled first."""
        return self._question is not None and (
            not self._quiet or self._question == Ask(Question.SNAPSHOT)
        )

    @property
    def _is_behind(self) -> bool:
        return max(self._promised, self._held.newest) >= self.expected

    def _missing(self, last: int) -> str:
        if last <= self.expected:
            return f"batch {self.expected} did not arrive"
        return f"batches {self.expected} to {last} did not arrive"

    def _from_the_past(self, sequence: int, payload: bytes) -> list[Action]:
        seen = self._recent.seen(sequence, payload)
        if seen is Seen.SAME:
            self.repeated += 1
            return []
        self._held.add(sequence, payload)  # the answer tells which life it belongs to
        if self._holding:
            return []
        why = f"batch {sequence} came after {self.expected - 1}"
        if self._speaks and seen is Seen.OTHER:
            self._contradicted = True
            return self._ask(Ask(Question.STATE), why)
        return self._ask(Ask(Question.STATE), why) if self._speaks else self._ask_replay(why)

    def _restart(self, why: str) -> list[Action]:
        return [self._begin_again(why), *self._ask_replay(f"the engine restarted: {why}")]

    def _begin_again(self, why: str) -> Reset:
        self.expected = 0
        self.epoch = None
        self.restarts += 1
        self._recent.clear()
        self._lost = self._doubt = ""
        self._contradicted = False
        self._promised, self._fruitless = -1, 0
        return Reset(why)

    def _ask_for_all(self, why: str) -> list[Action]:
        return self._ask(Ask(Question.SNAPSHOT), why)

    def _ask_replay(self, why: str = "") -> list[Action]:
        # The last applied batch is asked for too: if it is another now, so is the engine.
        return self._ask(Replay(max(self.expected - 1, 0)), why)

    def _ask(self, question: Replay | Ask, why: str = "") -> list[Action]:
        """Ask; without a reason it is a mere check, and trust stays what it is."""
        self._question, self._quiet = question, not why
        self._catching = why
        self._asked = frozenset(self._held)
        self._expected_then = self.expected
        self._replayed = -1
        if self._deaf and (isinstance(question, Replay) or not self._askable):
            return self.failed(self._deaf)
        return [question]

    def _apply(self, sequence: int, payload: bytes) -> Apply:
        self.expected = sequence + 1
        self._held.take(sequence)
        self._recent.add(sequence, payload)
        return Apply(sequence, payload)

    def _drain(self) -> list[Action]:
        """Apply what is held and next in line; what lies before it is not of this life."""
        actions: list[Action] = []
        while self._held and (sequence := self._held.oldest) <= self.expected:
            payload = self._held.take(sequence)
            assert payload is not None
            if sequence == self.expected:
                actions.append(self._apply(sequence, payload))
            elif self._recent.seen(sequence, payload) is Seen.SAME:
                self.repeated += 1
            else:
                self.dropped += 1
        return actions

    def _lose(self, until: int, why: str) -> None:
        if until > self.expected:
            self._lost = f"batches {self.expected} to {until - 1} are lost: {why}"
            self.expected = until
