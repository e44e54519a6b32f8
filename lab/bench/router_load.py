"""Clients of `lab.bench.router`: one request at a time, many streams, many short requests."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop

LONGEST = 60.0
"""Seconds after which a client gives up."""
_ENGINE = re.compile(rb'"id":\s*"cmpl-(\d+)"')
_TOKEN, _END = b"data: {", b"[DONE]"
_KEPT = len(_TOKEN) - 1


class WrongAnswerError(Exception):
    """An answer that is none of the stub engines'; the message shows it."""


def post(body: bytes, path: str = "/v1/completions") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nhost: router\r\ncontent-type: application/json\r\ncontent-length: "
    return head.encode() + b"%d\r\n\r\n%b" % (len(body), body)


class Line:
    """One connection that is kept, for one request at a time.

    Args:
        port: of the router, on this machine.
        name: of it, for errors.
    """

    def __init__(self, port: int, name: str) -> None:
        self._name = name
        self._socket = socket.create_connection(("127.0.0.1", port), LONGEST)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> tuple[float, int]:
        """Seconds from the first byte sent to the first token, and the engine that answered.

        Args:
            request: for a stream.

        Raises:
            WrongAnswerError: the answer is no stream of an engine, breaks off, or does not come.
        """
        try:
            return self._ask(request)
        except TimeoutError:
            raise WrongAnswerError(f"{self._name} gave no answer in {LONGEST:g} s") from None

    def _ask(self, request: bytes) -> tuple[float, int]:
        begin = time.perf_counter()
        self._socket.sendall(request)
        got, first = b"", 0.0
        while not got.endswith(b"\r\n0\r\n\r\n"):
            data = self._socket.recv(1 << 16)
            got += data
            if not first and _TOKEN in got:
                first = time.perf_counter()
            if not data or not got.startswith(b"HTTP/1.1 200"):
                raise WrongAnswerError(f"{self._name} answered {got[:500]!r}")
        found = _ENGINE.search(got)
        if found is None:
            raise WrongAnswerError(f"{self._name} answered {got[:500]!r}")
        return first - begin, int(found.group(1))

    def close(self) -> None:
        """No more requests."""
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Work:
    """What was done in some time.

    Attributes:
        done: tokens or requests.
        seconds: that it took.
        cpu: seconds of the router's processor time meanwhile.
    """

    done: int
    seconds: float
    cpu: float

    @property
    def per_cpu_second(self) -> float:
        """Of the router's processor time."""
        return self.done / self.cpu


class _Stream(asyncio.Protocol):
    """Counts the tokens of one stream."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.tokens = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        self.tokens += seen.count(_TOKEN)
        self._tail = seen[-_KEPT:]
        if _END in seen and not self.over.done():
            self.over.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or WrongAnswerError("a stream broke off"))


class _Caller(asyncio.Protocol):
    """Asks again as soon as it has its answer, until told to end."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request, self._until = request, until
        self._parser = httptools.HttpResponseParser(self)
        self.answers = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """What the parser calls at an answer's end."""
        if self._parser.get_status_code() != 200:
            self.over.set_exception(WrongAnswerError(f"status {self._parser.get_status_code()}"))
            self._transport.close()
            return
        self.answers += 1
        if time.monotonic() < self._until:
            self._transport.write(self._request)
        else:
            self.over.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or WrongAnswerError("a connection broke off"))


def streams(ports: list[int], request: bytes, count: int, cpu: Callable[[], float]) -> Work:
    """Tokens of `count` streams at one time, each on a connection of its own.

    Args:
        ports: of routers, which get them in turn.
        request: for each stream.
        count: of streams.
        cpu: the routers' processor time by now, seconds.

    Raises:
        WrongAnswerError, OSError, TimeoutError: not all came whole.
    """

    async def run() -> Work:
        loop = asyncio.get_running_loop()
        begin, spent = time.perf_counter(), cpu()
        made = []
        for number in range(count):
            port = ports[number % len(ports)]
            _, one = await loop.create_connection(lambda: _Stream(request), "127.0.0.1", port)
            made.append(one)
        async with asyncio.timeout(LONGEST):
            await asyncio.gather(*(one.over for one in made))
        tokens = sum(one.tokens for one in made)
        return Work(tokens, time.perf_counter() - begin, cpu() - spent)

    return uvloop.run(run())


def requests(
    ports: list[int], request: bytes, callers: int, seconds: float, cpu: Callable[[], float]
) -> Work:
    """Short requests, one after the other on each of `callers` connections, for some time.

    Args and Raises: see `streams`.
    """

    async def run() -> Work:
        loop = asyncio.get_running_loop()
        begin, spent = time.perf_counter(), cpu()
        until = time.monotonic() + seconds
        made = []
        for number in range(callers):
            port = ports[number % len(ports)]
            _, one = await loop.create_connection(
                lambda: _Caller(request, until), "127.0.0.1", port
            )
            made.append(one)
        async with asyncio.timeout(LONGEST):
            await asyncio.gather(*(one.over for one in made))
        answers = sum(one.answers for one in made)
        return Work(answers, time.perf_counter() - begin, cpu() - spent)

    return uvloop.run(run())
