"""Connections to one engine: requests out, answers in, with connections used again."""

import asyncio
import ssl
from typing import Protocol, cast

import httptools

from kvstrata.router.config import ReplicaConfig
from kvstrata.router.headers import Headers, value_of

_LONGEST_HEAD = 1 << 20
"""Bytes of an answer's headers, those of interim answers included."""


class EngineError(Exception):
    """An engine did not answer as HTTP asks.

    Attributes:
        why: completes "replica A ...".
        sent: whether the engine may have seen the request.
        unread: the engine closed a connection that was used before, and sent nothing of this answer:
            most likely it closed it while it lay unused, and never saw the request.
    """

    def __init__(self, why: str, *, sent: bool, unread: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.sent = sent
        self.unread = unread


class Receiver(Protocol):
    """Takes one answer, as it comes. Called in this order: head, data any number of times, and end;
    or failed, once, at any point."""

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        """Status, headers with names in lower case, and bytes of the body if they are known."""
        ...

    def data(self, data: bytes) -> None:
        """A piece of the body, not empty, in the pieces in which it came."""
        ...

    def end(self) -> None:
        """The answer is whole."""
        ...

    def failed(self, error: EngineError) -> None:
        """There will be no more of it."""
        ...


class EngineConnection(asyncio.Protocol):
    """One connection to an engine; one request at a time.

    Attributes:
        used: whether it carried a request before: such a one may have been closed by the engine
            at the moment at which it is used again.
        idle_since: the loop's time of its last answer's end.
        answered: whether the current answer has begun.
    """

    def __init__(self, pool: "EnginePool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._complete = False
        self._surplus = False
        self._until_close = False
        self._keep = False
        self._last = False
        self.used = False
        self.idle_since = 0.0
        self.answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def send(self, head: bytes, body: bytes, receiver: Receiver, *, last: bool = False) -> None:
        """Send one request, perhaps the last one; `head` ends with the blank line.

        The answer goes to `receiver`.
        """
        assert self._receiver is None and self._transport is not None
        self._receiver = receiver
        self._headers, self._complete, self._until_close = [], False, False
        self._head_bytes = 0
        self.answered, self._last = False, last
        self._transport.writelines([head, body])

    @property
    def closed(self) -> bool:
        """Whether it cannot be used."""
        return self._transport is None or self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; an engine takes that for a client that gave up, and stops computing."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: EngineError) -> None:
        """End the current answer here."""
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.failed(error)

    def pause(self) -> None:
        """Read no more for now."""
        if not self.closed and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self.closed and self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Parse what the engine sent and hand it on in one piece."""
        if self._receiver is None:
            self.abort()  # nobody asked: it must not become the beginning of the next answer
            return
        if not self.answered:
            self._head_bytes += len(data)
        wrong = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            wrong = f"sent something that is not HTTP ({error})"
        if not self.answered and self._head_bytes > _LONGEST_HEAD:
            wrong = "sent headers without an end"
        self._hand_on()
        if self._complete:
            # What follows a whole answer is no part of it, whatever that is.
            self._surplus |= bool(wrong)
            self._finish()
        elif wrong:
            self.fail(EngineError(wrong, sent=True))

    def eof_received(self) -> bool:
        """The engine closed; `connection_lost` follows."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by the engine or by us."""
        self._pool.lost(self)
        if self._until_close and exc is None:
            self._complete = True
            self._finish()
        elif self._receiver is not None:
            unread = self.used and not self._head_bytes
            self.fail(EngineError("closed the connection", sent=True, unread=unread))

    def on_message_begin(self) -> None:
        """An answer begins: the second one to a request, if the first is whole."""
        self._surplus |= self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header; trailers go nowhere."""
        if not self.answered and not self._complete:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        status = self._parser.get_status_code()
        if status < 200 or self._receiver is None or self._complete:
            return  # 1xx: the answer itself follows
        self.answered = True
        length = value_of(self._headers, b"content-length")
        chunked = value_of(self._headers, b"transfer-encoding") is not None
        self._until_close = length is None and not chunked and status not in (204, 304)
        known = int(length) if length is not None else None
        self._receiver.head(status, self._headers, 0 if status in (204, 304) else known)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._complete:
            return
        if self._parser.get_status_code() < 200:
            self._headers = []
        else:
            self._complete = True
            self._keep = self._parser.should_keep_alive()  # which the parser forgets right after

    def _hand_on(self) -> None:
        pieces, receiver = self._pieces, self._receiver
        if pieces:
            self._pieces = []
            if receiver is not None:
                receiver.data(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _finish(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        self.used = True
        if self._surplus:
            self.abort()  # its next answer could be another one's
        elif self._keep and not self._until_close and not self._last:
            self._pool.give_back(self)
        elif self._transport is not None:
            self._transport.close()
        receiver.end()


class EnginePool:
    """The connections to one engine.

    Args:
        replica: where they go.
        keepalive: seconds for which an unused one is kept; shorter than the engine keeps it, or it
            would close under the request that uses it.
    """

    def __init__(self, replica: ReplicaConfig, keepalive: float) -> None:
        self.replica = replica
        self._keepalive = keepalive
        self._idle: list[EngineConnection] = []
        self._tls = ssl.create_default_context() if replica.tls else None

    def idle(self) -> EngineConnection | None:
        """An open connection, the one used last, or None."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def connect(self, timeout: float) -> EngineConnection:
        """A new connection.

        Raises:
            EngineError: none within `timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self),
                    self.replica.host,
                    self.replica.port,
                    ssl=self._tls,
                )
        except TimeoutError:
            raise EngineError(f"took no connection within {timeout:g} s", sent=False) from None
        except OSError as error:
            text = error.strerror or str(error)
            raise EngineError(f"took no connection ({text})", sent=False) from None
        return connection

    def give_back(self, connection: EngineConnection) -> None:
        """Keep it for the next request."""
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def lost(self, connection: EngineConnection) -> None:
        """It is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close those that were not used for long; `now` is the loop's time."""
        old = [one for one in self._idle if now - one.idle_since >= self._keepalive]
        for connection in old:
            self._idle.remove(connection)
            connection.abort()

    def close(self) -> None:
        """Close the unused ones; those in use end with their answers."""
        self._keepalive = 0.0
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()
