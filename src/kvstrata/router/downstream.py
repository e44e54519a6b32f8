"""Clients' connections: requests in, answers out, with every wait bounded.

Requests of one connection are answered one after the other; what a client sends meanwhile waits in
the kernel.
"""

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Protocol, cast

from kvstrata.router.config import RouterConfig
from kvstrata.router.headers import Headers
from kvstrata.router.inbound import Request, RequestReader
from kvstrata.router.refusals import RefusedError, unavailable

log = logging.getLogger(__name__)

HIGH_WATER = 256 << 10
"""Bytes of an answer that wait for a slow client before the engine is no longer read."""
LINGER = 3.0
"""Seconds for which the rest of a refused body is read, so that the client sees the answer."""
_PIPELINED = 16
_REASONS = {one.value: one.phrase.encode() for one in HTTPStatus}


class Flow(Protocol):
    """Where the bytes of an answer come from."""

    def pause(self) -> None:
        """The client does not keep up: send no more."""
        ...

    def resume(self) -> None:
        """The client keeps up again."""
        ...


class Phase(enum.Enum):
    """What a connection waits for."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    BUSY = "busy"
    LINGER = "linger"


Check = Callable[[Request], None]
Handle = Callable[[Request, "ClientConnection"], Awaitable[None]]


class Clients:
    """All client connections, and what they share.

    Args:
        config: asked for the settings now in force.
        check: called with a request without its body; raises `RefusedError`.
        handle: answers a whole request through the connection it is given.
    """

    def __init__(self, config: Callable[[], RouterConfig], check: Check, handle: Handle) -> None:
        self.settings = config
        self._check = check
        self.handle = handle
        self.connections: set[ClientConnection] = set()
        self.buffered = 0
        self.draining = False

    def check(self, request: Request) -> None:
        """Judge a request without its body. Raises RefusedError."""
        self._check(request)

    def sweep(self, now: float) -> None:
        """End every wait whose time is over. To be called about twice a second."""
        for connection in list(self.connections):
            if now >= connection.deadline:
                connection.expire()

    def close_idle(self) -> None:
        """Close the connections on which nothing is asked."""
        for connection in list(self.connections):
            if connection.phase is Phase.IDLE:
                connection.close()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in list(self.connections):
            connection.abort()


class ClientConnection(asyncio.Protocol):
    """One client's connection.

    Attributes:
        phase: what it waits for.
        deadline: the loop's time at which the wait ends.
        started: whether the head of the current answer is sent.
        flow: source of the current answer, to be paused when the client does not keep up.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(clients, self._loop.time)
        self._queue: deque[Request | RefusedError] = deque()
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._current: Request | None = None
        self._chunked = False
        self._last = False
        self._closing = False
        self._backlog_seen = 0
        self.phase = Phase.IDLE
        self.deadline = float("inf")
        self.started = False
        self.flow: Flow | None = None

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it when there are too many."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        name = transport.get_extra_info("peername")
        self._reader.peer = str(name[0]) if isinstance(name, tuple) and name else ""
        config = self._clients.settings()
        self._clients.connections.add(self)
        self.deadline = self._loop.time() + config.head_timeout
        if len(self._clients.connections) > config.max_connections:
            self._refuse(
                unavailable(
                    "too_many_connections",
                    f"The router serves {config.max_connections} connections, its max_connections.",
                    1,
                )
            )

    def data_received(self, data: bytes) -> None:
        """Take in what a client sent."""
        if self.phase is Phase.LINGER or self._last:
            return
        if self.phase is Phase.IDLE:
            self._expect(Phase.HEAD)
        reader = self._reader
        reader.feed(data)
        self._queue.extend(reader.found)
        reader.found.clear()
        if len(self._queue) > _PIPELINED:
            self._last = True
        if reader.broken is not None:
            self._refuse(reader.broken)
        elif self._task is not None:
            if self._queue or reader.in_body:
                self._reading(False)
        elif self._queue:
            self._next()
        elif reader.in_body:
            self._expect(Phase.BODY)
            if reader.expects:
                reader.expects = False
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def eof_received(self) -> bool:
        """A client that closes its side is gone: it cannot be told from one that died."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop whatever is done for the client."""
        self._clients.connections.discard(self)
        self._reader.drop()
        self._drop_queue()
        self.deadline = float("inf")
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self.deadline = self._loop.time() + self._clients.settings().stall_timeout
        if self.flow is not None:
            self.flow.pause()

    def resume_writing(self) -> None:
        """The client keeps up again."""
        if self.phase is Phase.BUSY:
            self.deadline = float("inf")
        if self.flow is not None:
            self.flow.resume()

    # What an answer is made with.

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer at once. `headers` are without those that frame the body."""
        lines = [b"%b: %b" % pair for pair in headers]
        self.start(status, lines, len(body))
        if self._current is None or self._current.method != "HEAD":
            self.feed(body)
        self.finish()

    def start(self, status: int, lines: list[bytes], length: int | None) -> None:
        """The head of an answer; `length` bytes follow, or an unknown number."""
        assert not self.started
        self.started = True
        request = self._current
        keep = request is not None and request.keep_alive and not self._clients.draining
        keep = keep and (not self._last or bool(self._queue))
        self._chunked = length is None and request is not None and request.persistent
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        elif length is None:
            keep = False
        elif status not in (204, 304):
            lines.append(b"content-length: %d" % length)
        if not keep:
            lines.append(b"connection: close")
            self._last = self._closing = True
        elif request is not None and not request.persistent:
            lines.append(b"connection: keep-alive")
        first = b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b"Unknown"))
        self._write(b"\r\n".join([first, *lines, b"\r\n"]))

    def feed(self, data: bytes) -> None:
        """A piece of the answer's body, sent at once."""
        if self._chunked:
            if data:
                self._write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._write(data)

    def finish(self) -> None:
        """The answer is whole."""
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def close(self) -> None:
        """Close when what is written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, so that the client cannot take what it got for a whole answer."""
        if self._transport is not None:
            self._transport.abort()

    def cut(self) -> None:
        """Send what was written and close, although the answer is not whole."""
        if self._chunked and self._transport is not None:
            self.deadline = self._loop.time() + self._clients.settings().stall_timeout
            self._transport.close()
        else:
            self.abort()  # to some clients an orderly close would mean that this was all

    @property
    def backlog(self) -> int:
        """Bytes that wait for the client."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def expire(self) -> None:
        """The wait's time is over."""
        config = self._clients.settings()
        if (backlog := self.backlog) and backlog != self._backlog_seen:
            self._backlog_seen = backlog  # the client reads, if slowly
            self.deadline = self._loop.time() + config.stall_timeout
        elif self.phase in (Phase.HEAD, Phase.BODY) and self._task is None:
            text = "The request did not arrive in time."
            self._refuse(RefusedError(408, "request_timeout", text, close=True))
        else:
            self.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _expect(self, phase: Phase) -> None:
        config = self._clients.settings()
        waits = {
            Phase.IDLE: config.keepalive,
            Phase.HEAD: config.head_timeout,
            Phase.BODY: config.body_timeout,
            Phase.BUSY: float("inf"),
            Phase.LINGER: LINGER,
        }
        self.phase = phase
        self.deadline = self._loop.time() + waits[phase]

    def _reading(self, on: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading() if on else self._transport.pause_reading()

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer with an error after everything before it, and read no further request."""
        self._reader.drop()
        self._last = True
        self._queue.append(refusal)
        if self._task is None:
            self._next()

    def _next(self) -> None:
        """Answer the next request, wait for one, or close."""
        self._task, self._current, self.flow = None, None, None
        self.started = False
        while self._queue and not self._closing:
            one = self._queue.popleft()
            if isinstance(one, Request):
                self._current = one
                self._expect(Phase.BUSY)
                self._task = self._loop.create_task(self._serve(one))
                return
            self._last |= one.close
            self.respond(one.status, one.headers(), one.body())
            self.started = False
        if self._last:
            self._linger()
        else:
            reader = self._reader
            self._expect(
                Phase.BODY if reader.in_body else Phase.HEAD if reader.begun else Phase.IDLE
            )
            self._reading(True)

    def _drop_queue(self) -> None:
        for one in self._queue:
            if isinstance(one, Request):
                self._clients.buffered -= len(one.body)
        self._queue.clear()

    def _linger(self) -> None:
        self._reader.drop()
        self._drop_queue()
        self._expect(Phase.LINGER)
        self._reading(True)
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self.close()

    async def _serve(self, request: Request) -> None:
        try:
            await self._clients.handle(request, self)
        except RefusedError as refusal:
            self._fail(refusal)
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:  # boundary: one request's bug must not end the others
            log.exception("a request to %s failed inside the router", request.path)
            text = "The router failed at this request; its log says how."
            self._fail(RefusedError(500, "router_error", text, kind="server_error"))
        finally:
            self._clients.buffered -= len(request.body)
        if self._transport is not None and not self._transport.is_closing():
            self._next()

    def _fail(self, refusal: RefusedError) -> None:
        if self.started:
            self.abort()
        else:
            self._last |= refusal.close
            self.respond(refusal.status, refusal.headers(), refusal.body())
