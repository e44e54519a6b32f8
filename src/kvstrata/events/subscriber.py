"""Following many engines at once: one thread, one poller, a fair share for each.

A thread of its own rather than a part of an event loop: a router must not stop passing tokens on while a
million blocks of one engine are taken in, and a command without an event loop follows a fleet as well.
Whoever has no use for the thread calls `poll` instead.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import zmq

from kvstrata.clock import Clock, MonotonicClock
from kvstrata.events.connection import Change, Connection, Feed, messages
from kvstrata.events.follower import Follower, Limits, Sink, Status
from kvstrata.events.stream import Trust

log = logging.getLogger(__name__)

LONGEST_WAIT = 0.05
"""Seconds until what was asked of the subscriber from another thread is looked at."""
TICK_SECONDS = 0.02
MESSAGES_AT_ONCE = 256
REOPEN_SECONDS = 1.0


class _Line:
    """One feed: its connection and its follower."""

    def __init__(self, feed: Feed, subscriber: "Subscriber", now: float) -> None:
        self.feed = feed
        self._subscriber = subscriber
        self.connection: Connection | None = None
        self.reopen_at = math.inf
        self.follower = Follower(
            feed, subscriber.sink, self._ask, self._hang_up, now, subscriber.limits
        )

    def open(self, now: float) -> None:
        """Connect; an address that cannot be used is a state of trust, and tried again."""
        try:
            self.connection = Connection(
                self._subscriber.context, self.feed, self._subscriber.limits.queue_batches
            )
        except zmq.ZMQError as error:
            self.reopen_at = now + REOPEN_SECONDS
            self.follower.lost(f"cannot connect to {self.feed.events}: {error}", now)
            return
        self.reopen_at = math.inf
        self._subscriber.watch(self, self.connection)

    def close(self) -> None:
        """Close the sockets."""
        if self.connection is not None:
            self._subscriber.unwatch(self.connection)
            self.connection.close()
            self.connection = None

    def follow_connection(self, now: float) -> None:
        """Take in what happened to the connection."""
        while self.connection is not None and (change := self.connection.change()) is not None:
            if change is Change.MADE:
                self.follower.connected(now)
                continue
            self.close()
            self.follower.lost(f"the connection to {self.feed.events} was lost", now)
            self.open(now)

    def read(self, socket: "zmq.Socket[bytes]", now: float) -> None:
        """Take in what has arrived at one of the sockets."""
        connection, follower = self.connection, self.follower
        if connection is None:
            return
        if socket is connection.answers:
            for frames in messages(socket, MESSAGES_AT_ONCE):
                follower.answered(frames, now)
                if connection.answers is not socket:
                    break  # it was given up for another question
        elif socket is connection.events:
            for frames in messages(socket, MESSAGES_AT_ONCE if follower.has_room else 0):
                follower.published(frames)

    def _ask(self, frame: bytes) -> None:
        assert self.connection is not None
        before = self.connection.answers
        try:
            self.connection.ask(frame)
        except zmq.ZMQError as error:
            # The question goes nowhere, and is found not answered in its time.
            log.debug("%s: %s: %s", self.feed.name, self.feed.replay, error)
        if before is None and self.connection.answers is not None:
            self._subscriber.watch_socket(self, self.connection.answers)

    def _hang_up(self) -> None:
        if self.connection is not None and self.connection.answers is not None:
            self._subscriber.unwatch_socket(self.connection.answers)
            self.connection.hang_up()


class Subscriber:
    """Follows any number of feeds and tells one sink.

    `add`, `remove`, `status` and `names` may be called from any thread. All calls of the sink come from
    the thread that `start` begins, or from whoever calls `poll`.

    Args:
        sink: see `Sink`.
        limits: see `Limits`.
        clock: ours; engines' clocks are not asked.
    """

    def __init__(
        self, sink: Sink, limits: Limits | None = None, clock: Clock | None = None
    ) -> None:
        self.sink = sink
        self.limits = limits or Limits()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clock = clock or MonotonicClock()
        self._poller = zmq.Poller()
        self._sockets: dict[zmq.Socket[bytes], _Line] = {}
        self._lines: dict[str, _Line] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._ticked_at = self._clock.now()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._failure = ""

    def add(self, feed: Feed) -> None:
        """Follow this feed from now on.

        Raises:
            ValueError: one of that name is followed already.
        """
        if feed.name in self._lines:
            raise ValueError(f"{feed.name} is followed already")
        line = _Line(feed, self, self._clock.now())
        # A copy, so that other threads may go through what was there.
        self._lines = {**self._lines, feed.name: line}
        self._commands.append(lambda: line.open(self._clock.now()))

    def remove(self, name: str, then: Callable[[], None] = lambda: None) -> None:
        """Follow this feed no longer.

        Args:
            name: of the feed.
            then: called when the sink is told nothing of it any more, from the thread that tells it.

        Raises:
            KeyError: none of that name is followed.
        """
        line = self._lines[name]
        self._lines = {other: one for other, one in self._lines.items() if other != name}

        def close() -> None:
            line.close()
            then()

        self._commands.append(close)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all feeds."""
        return tuple(self._lines)

    def status(self, name: str) -> Status:
        """How it stands with a feed.

        Raises:
            KeyError: none of that name is followed.
        """
        status = self._lines[name].follower.status
        if self._failure:
            return replace(status, trust=Trust.STALE, reason=self._failure)
        return status

    def poll(self, seconds: float) -> None:
        """Wait at most so long for something to happen, and take in a fair share of it."""
        while self._commands:
            self._commands.popleft()()
        if any(line.follower.busy for line in self._lines.values()):
            seconds = 0.0
        ready = self._poller.poll(int(min(seconds, LONGEST_WAIT) * 1000))
        now = self._clock.now()
        for socket, _ in ready:
            line = self._sockets.get(socket)
            if line is not None and line.connection and socket is line.connection.monitor:
                line.follow_connection(now)
        for socket, _ in ready:
            line = self._sockets.get(socket)
            if line is not None:
                line.read(socket, now)
        for line in self._lines.values():
            if line.follower.busy:
                line.follower.work(now)
        if not 0 <= now - self._ticked_at < TICK_SECONDS:
            self._ticked_at = now
            self._tick(now)

    def start(self) -> None:
        """Poll in a thread until `stop`."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="kvstrata-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if there is one, and close all sockets."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for line in self._lines.values():
            line.close()
        self.context.destroy(linger=0)

    def watch(self, line: _Line, connection: Connection) -> None:
        """Poll the sockets of a connection."""
        for socket in connection.sockets:
            self.watch_socket(line, socket)

    def unwatch(self, connection: Connection) -> None:
        """Poll them no longer."""
        for socket in connection.sockets:
            self.unwatch_socket(socket)

    def watch_socket(self, line: _Line, socket: "zmq.Socket[bytes]") -> None:
        """Poll a socket."""
        self._sockets[socket] = line
        self._poller.register(socket, zmq.POLLIN)

    def unwatch_socket(self, socket: "zmq.Socket[bytes]") -> None:
        """Poll it no longer."""
        if self._sockets.pop(socket, None) is not None:
            self._poller.unregister(socket)

    def _tick(self, now: float) -> None:
        for line in self._lines.values():
            if line.connection is None and now >= line.reopen_at:
                line.open(now)
            line.follower.tick(now)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.poll(LONGEST_WAIT)
        except Exception as error:  # boundary: a thread must not end without anybody knowing
            self._failure = f"events are no longer followed: {error!r}"
            log.exception("events are no longer followed")
