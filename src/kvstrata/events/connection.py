"""The sockets to one engine: its events, its answers, and whether it is there. No policy.

A connection that was lost is never used again: a new one is opened, so that nothing which an engine sent
in an earlier life can arrive after what it sends in this one.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

from kvstrata.errors import ConfigError
from kvstrata.wire.batches import MAX_BYTES

MOST_ANSWERS = 20_000
"""Messages of an answer that wait: all of vLLM's ring of 10 000, twice."""
RECONNECT_MS = (50, 400)
"""First and longest pause between attempts to connect."""
HEARTBEAT_MS = (1000, 3000)
"""Between signs of life that are asked for, and until the connection counts as lost without one."""
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_TRANSPORTS = ("tcp://", "ipc://", "inproc://")


@dataclass(frozen=True, slots=True)
class Feed:
    """Where one engine, or one data-parallel rank of it, publishes.

    Attributes:
        name: by which it is told from all others.
        events: ZMQ address to connect to, such as tcp://10.0.0.7:5557.
        replay: the address that answers replay requests, or None.
        topic: what its messages begin with (vLLM's `topic`).

    Raises:
        ConfigError: an address that nobody can connect to.
    """

    name: str
    events: str
    replay: str | None = None
    topic: str = ""

    def __post_init__(self) -> None:
        for address in (self.events, self.replay):
            if address is None:
                continue
            wild = address.startswith(("tcp://*", "tcp://0.0.0.0:"))
            if wild or not address.startswith(_TRANSPORTS):
                raise ConfigError(
                    f"{self.name}: {address!r} is no address to connect to; give one such as "
                    f"tcp://10.0.0.7:5557, with the host that the engine runs on"
                )


class Change(enum.Enum):
    """What happened to the connection."""

    MADE = enum.auto()
    LOST = enum.auto()


class Connection:
    """Sockets of one feed; all methods from one thread.

    Args:
        context: of all sockets.
        feed: whom to connect to.
        waiting: batches that may wait in the socket; further ones are dropped, which shows as a gap.

    Attributes:
        events: the socket of the events.
        monitor: the socket that tells of the connection.
        answers: the socket of the answers; None before the first question and after `hang_up`.

    Raises:
        zmq.ZMQError: the address is malformed.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], feed: Feed, waiting: int) -> None:
        self._context = context
        self._feed = feed
        self.answers: zmq.Socket[bytes] | None = None
        self.events = context.socket(zmq.SUB)
        try:
            self.events.setsockopt(zmq.RCVHWM, waiting)
            self._prepare(self.events)
            self.events.setsockopt(zmq.SUBSCRIBE, feed.topic.encode())
            self.monitor = self.events.get_monitor_socket(_WATCHED)
            self.events.connect(feed.events)
        except zmq.ZMQError:
            self.events.close(0)
            raise

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """Those to be polled now."""
        return tuple(s for s in (self.monitor, self.answers, self.events) if s is not None)

    def change(self) -> Change | None:
        """The next thing that happened to the connection; None when nothing did."""
        try:
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)["event"]
        except zmq.Again:
            return None
        return Change.MADE if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else Change.LOST

    def ask(self, question: bytes) -> None:
        """Send one question."""
        assert self._feed.replay is not None
        if self.answers is None:
            self.answers = self._context.socket(zmq.DEALER)
            self.answers.setsockopt(zmq.RCVHWM, MOST_ANSWERS)
            self._prepare(self.answers)
            self.answers.connect(self._feed.replay)
        self.answers.send_multipart((b"", question), zmq.NOBLOCK)

    def hang_up(self) -> None:
        """Give up what was asked: no answer to it arrives any more."""
        if self.answers is not None:
            self.answers.close(0)
            self.answers = None

    def close(self) -> None:
        """Close all sockets."""
        self.hang_up()
        self.events.disable_monitor()
        self.monitor.close(0)
        self.events.close(0)

    @staticmethod
    def _prepare(socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS[0])
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS[1])
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS[0])
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MS[1])


def messages(socket: zmq.Socket[bytes], most: int) -> Iterator[list[bytes]]:
    """What has arrived at a socket, at most so many messages."""
    for _ in range(most):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
