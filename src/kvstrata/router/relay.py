"""The way of one answer from an engine to a client: no task runs while it flows."""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from kvstrata.router.downstream import ClientConnection
from kvstrata.router.headers import Headers, to_client, value_of
from kvstrata.router.refusals import broken_stream
from kvstrata.router.replicas import Attempt
from kvstrata.router.upstream import EngineConnection, EngineError

RETRIED = frozenset({500, 502, 503, 504})
"""Statuses with which an engine says that it could not, whatever the request was."""
TAIL = 16 << 10
_HELD = 64 << 10

End = Literal["whole", "held", "broken"]


class Relay:
    """Passes one answer on. Receives from an `EngineConnection`, and is the client's `Flow`.

    Args:
        client: who gets it.
        connection: where it comes from.
        attempt: that it belongs to.
        marks: the decision's id and the replica's name, for the client's headers.
        hold: keep an answer that says that the engine could not, since another one may.
        idle: seconds of silence that are allowed once the answer has begun.
        begun: called with the first piece of a stream of events that is no error.

    Attributes:
        done: "whole" when the client has it all; "held" when it is kept in `status`, `lines` and
            `body`; "broken" when it began and did not end. An `EngineError` when nothing of it was sent
            on.
        status: of the answer; 0 before there is one.
        first: `time.monotonic` of the first byte of the body; 0 before there is one.
        streamed: whether it is a stream of events.
        error: what broke it.
    """

    def __init__(
        self,
        client: ClientConnection,
        connection: EngineConnection,
        attempt: Attempt,
        marks: tuple[bytes, bytes],
        *,
        hold: bool,
        idle: float,
        begun: Callable[["Relay"], None],
    ) -> None:
        self._begun = begun
        self._client = client
        self._connection = connection
        self._attempt = attempt
        self._marks = marks
        self._hold = hold
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._length: int | None = None
        self._previous = self._latest = b""
        self._holding = False
        self._paused = False
        self.lines: list[bytes] = []
        self.body = bytearray()
        self.done: asyncio.Future[End] = self._loop.create_future()
        self.status = 0
        self.first = 0.0
        self.streamed = False
        self.error: EngineError | None = None

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        """The answer begins."""
        self.status, self._length = status, length
        self._heard()
        self._attempt.patience = self._idle
        self.lines = to_client(headers, *self._marks)
        kind = value_of(headers, b"content-type") or b""
        self.streamed = kind.startswith(b"text/event-stream")
        self._holding = self._hold and status in RETRIED and (length or 0) <= _HELD
        if not self._holding:
            self._begin()

    def _begin(self) -> None:
        self._client.flow = self
        self._client.start(self.status, self.lines, self._length)

    def data(self, data: bytes) -> None:
        """A piece of it."""
        if self.first == 0.0:
            self.first = time.monotonic()
            if self.streamed and self.status == 200:
                self._begun(self)
        self._heard()
        if self._holding:
            self.body += data
            if len(self.body) > _HELD:  # too much to keep: it becomes the answer
                self._holding = False
                self._begin()
                self._client.feed(bytes(self.body))
                self.body.clear()
            return
        self._previous, self._latest = self._latest, data
        self._client.feed(data)

    def end(self) -> None:
        """It is whole."""
        if self._holding:
            self._finish("held")
        else:
            self._client.finish()
            self._finish("whole")

    def failed(self, error: EngineError) -> None:
        """There will be no more of it."""
        self.error = error
        if not self.done.done():
            if self._client.started:
                self._finish("broken")
            else:
                self.done.set_exception(error)

    def _finish(self, end: End) -> None:
        if not self.done.done():
            self.done.set_result(end)

    def _heard(self) -> None:
        self._attempt.heard = self._loop.time()

    def pause(self) -> None:
        """The client does not keep up."""
        if not self._paused:
            self._paused = True
            # The engine is not silent when it is we who do not listen.
            self._attempt.patience = float("inf")
            self._connection.pause()

    def resume(self) -> None:
        """The client keeps up again."""
        if self._paused:
            self._paused = False
            self._heard()
            self._attempt.patience = self._idle
            if not self.done.done():
                self._connection.resume()

    def break_off(self, name: str) -> None:
        """Tell the client that what it got is not whole, in the only ways that are left."""
        # Where the length was told, an event would count as the rest of what is missing.
        if self.streamed and self._length is None and self.error is not None:
            self._client.feed(broken_stream(name, self.error.why))
        # The body's end is never sent: whoever looks at framing alone sees that it is cut.
        self._client.cut()

    @property
    def unfinished(self) -> bool:
        """Whether the engine may still send more of it: the client went away."""
        return not self.done.done() or self.done.cancelled()

    def tail(self) -> bytes:
        """The last bytes of the body, at most 16 KiB."""
        return (self._previous[-TAIL:] + self._latest)[-TAIL:]
