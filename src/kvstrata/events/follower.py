"""Following one engine: from frames to a sink, in the order and with the trust that its stream says.

Neither socket nor clock: frames and the time come in as arguments, questions go out by a callable.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvstrata.events.connection import Feed
from kvstrata.events.stream import Action, Apply, Ask, Replay, Reset, Stream, Trust
from kvstrata.wire import batches, snapshot
from kvstrata.wire.batches import Batch, WireError
from kvstrata.wire.snapshot import ANSWER, END, Question, Snapshot

LARGEST_SEQUENCE = 1 << 62
LARGEST_ANSWER = 4 << 30
"""Bytes of a snapshot's parts; an engine with 100 million blocks needs less."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times and sizes.

    Attributes:
        answer_seconds: without a message before a question counts as not answered.
        check_seconds: between checks of a feed on which nothing arrives.
        late_seconds: that a batch may be late which the engine says it has published.
        connect_seconds: after which "no connection yet" becomes "no connection".
        snapshot_seconds: between two snapshots of one engine, at least.
        slice_batches: batches of one feed that are applied before it is another's turn.
        slice_bytes: the same in bytes of their payloads.
        queue_batches: batches of one feed that wait here; further ones wait in its socket.
        queue_bytes: the same in bytes of their payloads.
    """

    answer_seconds: float = 2.0
    check_seconds: float = 0.4
    late_seconds: float = 0.1
    connect_seconds: float = 1.0
    snapshot_seconds: float = 0.25
    slice_batches: int = 64
    slice_bytes: int = 256 << 10
    queue_batches: int = 10_000
    queue_bytes: int = 64 << 20


class Sink(Protocol):
    """Who is told; always from one thread."""

    def apply(self, feed: Feed, batch: Batch, payload: bytes) -> None:
        """A feed's next batch; `payload` is what it was read from."""
        ...

    def reset(self, feed: Feed, reason: str) -> None:
        """All that the feed's engine itself held is gone."""
        ...

    def restore(self, feed: Feed, held: Snapshot) -> None:
        """What follows replaces all that the feed's engine was known to hold."""
        ...


@dataclass(frozen=True, slots=True)
class Counts:
    """What one feed brought so far.

    Attributes:
        batches: applied.
        events: in them.
        blocks: that those named.
        nbytes: of payloads applied.
        malformed: messages, batches and events that could not be read, and answers.
        repeated: batches that came again.
        dropped: batches that the engine itself did not know.
        restarts: of the engine, as noticed.
        replays: asked for.
        snapshots: taken.
        unanswered: questions.
        connections: made.
    """

    batches: int = 0
    events: int = 0
    blocks: int = 0
    nbytes: int = 0
    malformed: int = 0
    repeated: int = 0
    dropped: int = 0
    restarts: int = 0
    replays: int = 0
    snapshots: int = 0
    unanswered: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """How it stands with one feed.

    Attributes:
        trust: see `Trust`.
        reason: why it is not synced.
        epoch: of the engine's life, where it says so.
        sequence: number of the last batch applied; -1 before the first.
        behind: batches that are known to be published and not applied.
        queued_bytes: of those that have arrived.
        level_at: by our own clock, when nothing was known to be missing last; None when nothing is now.
        changed_at: by our own clock, when trust changed last.
        counts: see `Counts`.
    """

    trust: Trust = Trust.CATCHING_UP
    reason: str = "no connection yet"
    epoch: bytes | None = None
    sequence: int = -1
    behind: int = 0
    queued_bytes: int = 0
    level_at: float | None = 0.0
    changed_at: float = 0.0
    counts: Counts = field(default_factory=Counts)

    def lag(self, now: float) -> float:
        """Seconds since nothing was known to be missing; 0 when that is so now."""
        return 0.0 if self.level_at is None else max(now - self.level_at, 0.0)


class Follower:
    """One feed's stream, and what is asked and answered about it.

    Args:
        feed: see `Feed`.
        sink: is told batches, resets and snapshots.
        ask: sends a question's frame.
        hang_up: makes sure that no answer to an earlier question arrives any more.
        now: the time; the other methods' `now` is of the same clock, in seconds.
        limits: see `Limits`.

    Attributes:
        status: see `Status`; replaced as a whole, so that any thread may read it.
    """

    def __init__(
        self,
        feed: Feed,
        sink: Sink,
        ask: Callable[[bytes], None],
        hang_up: Callable[[], None],
        now: float,
        limits: Limits,
    ) -> None:
        self._feed = feed
        self._sink = sink
        self._send = ask
        self._hang_up = hang_up
        self._limits = limits
        self._stream = Stream(
            limits.queue_batches, limits.queue_bytes, askable=feed.replay is not None
        )
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queued_bytes = 0
        self._connected = False
        self._deadline = now + limits.connect_seconds
        self._question: Replay | Ask | None = None
        self._unsent: bytes | None = None
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._snapshot_at = now
        self._check_at = now
        self._level_at: float | None = now
        self._batches = self._events = self._blocks = self._nbytes = self._malformed = 0
        self._replays = self._snapshots = self._unanswered = self._connections = 0
        self.status = Status(level_at=now, changed_at=now)

    @property
    def has_room(self) -> bool:
        """Whether more batches may be handed in; what is not waits in the socket."""
        limits = self._limits
        return (
            self._connected
            and len(self._queue) < limits.queue_batches
            and self._queued_bytes < limits.queue_bytes
        )

    @property
    def busy(self) -> bool:
        """Whether batches wait for `work`."""
        return bool(self._queue)

    def connected(self, now: float) -> None:
        """A new connection was made; nothing that an earlier one brought may follow."""
        self._connected = True
        self._connections += 1
        self._forget_queue()
        self._check_at = now + self._limits.check_seconds
        self._act(self._stream.connected(), now)

    def lost(self, reason: str, now: float) -> None:
        """The connection is gone; another is being made."""
        self._connected = False
        self._deadline = now + self._limits.connect_seconds
        self._forget_queue()
        self._stream.disconnected(reason)
        self._end_question()
        self._publish(now)

    def published(self, frames: Sequence[bytes]) -> None:
        """A message of the events' socket."""
        if len(frames) != 3 or len(frames[1]) != 8:
            self._malformed += 1
            return
        sequence = int.from_bytes(frames[1], "big")
        if sequence > LARGEST_SEQUENCE:
            self._malformed += 1
            return
        self._queue.append((sequence, frames[2]))
        self._queued_bytes += len(frames[2])

    def work(self, now: float) -> None:
        """Take in some of the batches that wait."""
        done = nbytes = 0
        while (
            self._queue and done < self._limits.slice_batches and nbytes < self._limits.slice_bytes
        ):
            sequence, payload = self._queue.popleft()
            self._queued_bytes -= len(payload)
            done += 1
            nbytes += len(payload)
            self._act(self._stream.received(sequence, payload), now, publish=False)
        self._check_at = now + self._limits.check_seconds
        self._publish(now)

    def answered(self, frames: Sequence[bytes], now: float) -> None:
        """A message of the answers' socket."""
        if self._question is None:
            return
        if len(frames) != 4 or len(frames[2]) != 8:
            self._malformed += 1
            return
        _, _, number, payload = frames
        self._deadline = now + self._limits.answer_seconds
        if number == END:
            self._answer_ended(now)
        elif number == ANSWER:
            self._parts_bytes += len(payload)
            self._parts.append(payload)
            if self._parts_bytes > LARGEST_ANSWER:
                self._fail(f"an answer of more than {LARGEST_ANSWER} bytes", now)
        elif isinstance(self._question, Replay):
            sequence = int.from_bytes(number, "big")
            if sequence <= LARGEST_SEQUENCE:
                self._act(self._stream.replayed(sequence, payload), now)

    def tick(self, now: float) -> None:
        """Time has passed: give up what is not answered, ask whether all is well."""
        if not self._connected:
            if now >= self._deadline and self._stream.trust is not Trust.STALE:
                within = f"within {self._limits.connect_seconds:g} s"
                self._stream.disconnected(f"no connection to {self._feed.events} {within}")
                self._publish(now)
            return
        if self._unsent is not None:
            if now >= self._snapshot_at:
                self._send_question(self._unsent, now)
        elif self._question is not None:
            if now >= self._deadline:
                self._unanswered += 1
                seconds = self._limits.answer_seconds
                self._fail(f"no answer from {self._feed.replay} within {seconds:g} s", now)
        elif now >= self._check_at and not self._queue:
            self._check_at = now + self._limits.check_seconds
            self._act(self._stream.check(), now)

    # Inner workings.

    def _answer_ended(self, now: float) -> None:
        question, parts = self._question, self._parts
        self._end_question(answered=True)
        if isinstance(question, Replay):
            self._act(self._stream.replay_ended(), now)
            return
        assert question is not None
        if not parts:
            if question.question is Question.STATE:
                self._act(self._stream.stated(None), now)
            else:
                self._act(self._stream.failed("the engine answered without a snapshot"), now)
            return
        try:
            held = snapshot.decode(parts)
        except WireError as error:
            self._malformed += 1
            self._act(self._stream.failed(str(error)), now)
            return
        if question.question is Question.STATE:
            self._act(self._stream.stated(held.header), now)
            if self._stream.behind:
                self._check_at = now + self._limits.late_seconds
            return
        self._snapshots += 1
        self._sink.restore(self._feed, held)
        self._act(self._stream.restored(held.header), now)

    def _act(self, actions: Sequence[Action], now: float, *, publish: bool = True) -> None:
        if self._stream.trust is not self.status.trust is Trust.SYNCED:
            self._publish(now)  # nobody may believe what is about to change
        for action in actions:
            if isinstance(action, Apply):
                self._apply(action)
            elif isinstance(action, Reset):
                self._sink.reset(self._feed, action.reason)
            else:
                self._ask(action, now)
        if publish:
            self._publish(now)

    def _apply(self, action: Apply) -> None:
        try:
            batch = batches.decode(action.payload)
        except WireError as error:
            self._malformed += 1
            self._stream.damaged(f"batch {action.sequence} cannot be read: {error}")
            return
        self._malformed += batch.skipped
        self._batches += 1
        self._events += len(batch.events)
        self._blocks += batch.blocks
        self._nbytes += len(action.payload)
        self._sink.apply(self._feed, batch, action.payload)

    def _ask(self, question: Replay | Ask, now: float) -> None:
        if self._question is not None:
            self._end_question()
        self._question = question
        if isinstance(question, Replay):
            self._replays += 1
            self._send_question(question.start.to_bytes(8, "big"), now)
        elif question.question is Question.SNAPSHOT and now < self._snapshot_at:
            self._unsent = question.question.value
        else:
            self._send_question(question.question.value, now)

    def _send_question(self, frame: bytes, now: float) -> None:
        self._unsent = None
        if frame == Question.SNAPSHOT.value:
            self._snapshot_at = now + self._limits.snapshot_seconds
        self._deadline = now + self._limits.answer_seconds
        self._send(frame)

    def _fail(self, reason: str, now: float) -> None:
        self._end_question()
        self._act(self._stream.failed(reason), now)

    def _end_question(self, *, answered: bool = False) -> None:
        if self._question is not None and not answered:
            self._hang_up()
        self._question = self._unsent = None
        self._parts = []
        self._parts_bytes = 0

    def _forget_queue(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0

    def _publish(self, now: float) -> None:
        stream, before = self._stream, self.status
        trust, behind = stream.trust, stream.behind + len(self._queue)
        if trust is Trust.SYNCED and not behind:
            self._level_at = None
        elif self._level_at is None:
            self._level_at = now
        counts = Counts(
            self._batches,
            self._events,
            self._blocks,
            self._nbytes,
            self._malformed,
            stream.repeated,
            stream.dropped,
            stream.restarts,
            self._replays,
            self._snapshots,
            self._unanswered,
            self._connections,
        )
        self.status = Status(
            trust,
            stream.reason,
            stream.epoch,
            stream.expected - 1,
            behind,
            self._queued_bytes,
            self._level_at,
            before.changed_at if trust is before.trust else now,
            counts,
        )
