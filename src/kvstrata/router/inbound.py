"""Requests out of a connection's bytes, with every buffer bounded.

llhttp parses, and strictly: two lengths, a length beside chunks, folded lines and bare line feeds
are errors there. What it lets through is bounded and judged here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import httptools

from kvstrata.router.config import RouterConfig
from kvstrata.router.headers import Headers, value_of
from kvstrata.router.refusals import RefusedError, bad_request, too_large, unavailable


@dataclass(slots=True)
class Request:
    """One request, whole.

    Attributes:
        method: in capitals.
        path: without the query, as sent.
        query: what follows the question mark; empty without one.
        headers: names in lower case.
        peer: the client's address.
        arrived: the loop's time at which its head was complete.
        keep_alive: whether the connection can be used again.
        persistent: HTTP/1.1, so that chunks can be sent.
        body: as sent, chunk framing removed.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    peer: str
    arrived: float
    keep_alive: bool
    persistent: bool
    body: bytes = b""


class Rules(Protocol):
    """What all connections share.

    Attributes:
        buffered: bytes of all bodies that are held now; whoever ends a request takes its own off.
    """

    buffered: int

    def settings(self) -> RouterConfig:
        """The settings now in force."""
        ...

    def check(self, request: Request) -> None:
        """Judge a request without its body. Raises RefusedError."""
        ...


@dataclass(slots=True)
class _Incoming:
    url: bytearray = field(default_factory=bytearray)
    headers: Headers = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    trailers: int = 0
    request: Request | None = None
    refusal: RefusedError | None = None


class RequestReader:
    """Reads the requests of one connection.

    Args:
        rules: see `Rules`.
        now: the loop's time.

    Attributes:
        peer: the client's address, for the requests.
        found: whole requests, and refusals of those that may not be; the reader's owner takes them off.
        broken: set when the connection cannot be read further, with what is to be answered.
        expects: the client waits for a word before it sends the body.
    """

    def __init__(self, rules: Rules, now: Callable[[], float]) -> None:
        self._rules = rules
        self._now = now
        self._parser = httptools.HttpRequestParser(self)
        self._incoming = _Incoming()
        self._head_bytes = 0
        self.peer = ""
        self.found: list[Request | RefusedError] = []
        self.broken: RefusedError | None = None
        self.expects = False

    def feed(self, data: bytes) -> None:
        """Read what came."""
        if self._incoming.request is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # it was refused with its head, and what follows is written in another protocol
        except httptools.HttpParserError as error:
            text = f"This is not a request in HTTP/1.1: {error}."
            self.broken = self.broken or bad_request("malformed_http", text, close=True)
        incoming = self._incoming
        limit = self._rules.settings().max_head
        if self.broken is None:
            if incoming.request is None and self._head_bytes > limit:
                self.broken = _head_too_large(limit)
            elif incoming.refusal is not None and incoming.refusal.close:
                self.broken = incoming.refusal
        if self.broken is not None:
            self.drop()

    @property
    def in_body(self) -> bool:
        """Whether the head of a request is read and its body is not."""
        return self._incoming.request is not None

    @property
    def begun(self) -> bool:
        """Whether a part of a request is read."""
        return self._head_bytes > 0 or self.in_body

    def drop(self) -> None:
        """Let go of a request that is read in part."""
        self._drop_pieces()
        self._incoming = _Incoming()

    def _drop_pieces(self) -> None:
        self._rules.buffered -= sum(map(len, self._incoming.pieces))
        self._incoming.pieces.clear()

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._incoming.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header, or a trailer of a body in chunks, which goes nowhere."""
        incoming = self._incoming
        if incoming.request is None:
            incoming.headers.append((name.lower(), value))
        else:
            incoming.trailers += len(name) + len(value) + 4
            if incoming.trailers > (limit := self._rules.settings().max_head):
                incoming.refusal = _head_too_large(limit)

    def on_headers_complete(self) -> None:
        """The head is whole: judge it before any of the body is kept."""
        incoming = self._incoming
        path, _, query = bytes(incoming.url).partition(b"?")
        request = incoming.request = Request(
            self._parser.get_method().decode("latin-1"),
            path.decode("latin-1"),
            query,
            incoming.headers,
            self.peer,
            self._now(),
            self._parser.should_keep_alive(),
            self._parser.get_http_version() == "1.1",
        )
        measured, self._head_bytes = self._head_bytes, 0
        expects = (value_of(incoming.headers, b"expect") or b"").lower() == b"100-continue"
        self.expects = expects and request.persistent
        try:
            self._check_protocol()
            self._check_framing(request, measured)
            self._rules.check(request)
        except RefusedError as refusal:
            incoming.refusal = refusal
            refusal.close |= expects  # the client waits for our word and sends no body

    def _check_protocol(self) -> None:
        if self._parser.should_upgrade():
            raise bad_request("upgrade", "The router speaks HTTP/1.1 only.", close=True)
        # The parser knows others too, which differ in where a message ends.
        if (version := self._parser.get_http_version()) not in ("1.0", "1.1"):
            text = f"The router speaks HTTP/1.1, not HTTP/{version}."
            raise bad_request("malformed_http", text, close=True)

    def _check_framing(self, request: Request, measured: int) -> None:
        settings = self._rules.settings()
        limit = settings.max_head
        if measured > limit and _size_of(request.headers) > limit:
            raise _head_too_large(limit)
        hosts = sum(name == b"host" for name, _ in request.headers)
        if hosts > 1 or (request.persistent and hosts == 0):
            raise bad_request("host", "A request has exactly one host header.", close=True)
        codings = [value for name, value in request.headers if name == b"transfer-encoding"]
        if codings and not request.persistent:
            raise bad_request("framing", "HTTP/1.0 has no transfer-encoding.", close=True)
        # What is coded twice would go to an engine half decoded and without a word about it.
        if codings and [value.strip(b" \t").lower() for value in codings] != [b"chunked"]:
            text = "Of transfer codings the router knows chunked alone."
            raise RefusedError(501, "transfer_coding", text, close=True)
        length = value_of(request.headers, b"content-length")
        if length is not None and int(length) > settings.max_body:
            raise too_large(settings.max_body)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        incoming, rules = self._incoming, self._rules
        settings = rules.settings()
        incoming.size += len(body)
        if incoming.size > settings.max_body:
            incoming.refusal = too_large(settings.max_body)
        elif incoming.refusal is None and rules.buffered + len(body) > settings.max_buffered:
            text = "The router holds as many bodies as its max_buffered allows."
            incoming.refusal = unavailable("buffers_full", text, 1)
            incoming.refusal.close = True
        if incoming.refusal is None and self.broken is None:
            rules.buffered += len(body)
            incoming.pieces.append(body)
        else:
            self._drop_pieces()

    def on_message_complete(self) -> None:
        """The request is whole."""
        incoming = self._incoming
        self._incoming = _Incoming()
        self.expects = False
        if self.broken is not None:
            return  # what comes behind a request that ends the connection is not read
        if incoming.refusal is not None and incoming.refusal.close:
            self.broken = incoming.refusal
        elif incoming.refusal is not None:
            self.found.append(incoming.refusal)
        elif incoming.request is not None:
            incoming.request.body = b"".join(incoming.pieces)
            self.found.append(incoming.request)


def _size_of(headers: Headers) -> int:
    return sum(
        len(name) + len(value) + 4 for name, value in headers
    )  # a colon, a space, a line's end


def _head_too_large(limit: int) -> RefusedError:
    text = f"A request's line and headers are limited to {limit} bytes, the router's max_head."
    return RefusedError(431, "head_too_large", text, close=True)
