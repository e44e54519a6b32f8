"""Engines that do not keep to HTTP: what a client gets is its own answer, whole, or an error."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.router.router_lab import Wire, ask, fleet, run, until
from tests.unit.router.stub_engine import StubEngine

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""Answers the POST of that number, counted over all connections."""


class RawEngine(StubEngine):
    """Is well, and answers POSTs byte by byte as a test says."""

    def __init__(self, name: str, answer: Answer) -> None:
        super().__init__(name)
        self._as_told = answer
        self._number = 0

    async def _answer(self, seen, writer: asyncio.StreamWriter) -> None:
        if seen.line.startswith("GET"):
            await super()._answer(seen, writer)
            return
        self._number += 1
        await self._as_told(self._number, writer)
        await writer.drain()


def whole(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)


@pytest.mark.parametrize(
    "surplus",
    [
        whole(b"another's"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nano",
        b"HTTP/1.1 200 OK\r\ncontent-",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmore\r\n",
        b"garbage\r\n\r\n",
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_follows_an_answer_is_nobodys(surplus: bytes, at_once: bool) -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        mine = whole(b"answer %d" % number)
        writer.write(mine + surplus if at_once else mine)
        if not at_once:
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(surplus)

    async def go() -> None:
        async with fleet(RawEngine("a", answer), probe_every=600) as router:
            wire = await Wire.open(router)
            for number in range(1, 5):
                got = await wire.ask({})
                assert (got.status, got.body) == (200, b"answer %d" % number)
                await asyncio.sleep(0 if at_once else 0.1)

    run(go())


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 two OK\r\ncontent-length: 5\r\n\r\nhello",
        b"hello",
    ],
)
def test_an_answer_that_can_be_read_in_two_ways_is_none(sent: bytes) -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)

    async def go() -> None:
        async with fleet(RawEngine("a", answer)) as router:
            got = await ask(router, {})
            assert got.status == 502 and got.code == "replica_failed"
            assert b"hello" not in got.body

    run(go())


@pytest.mark.parametrize(
    "piece", [b"x: " + b"a" * 60_000 + b"\r\n", b"HTTP/1.1 102 Processing\r\n\r\n" * 2000]
)
def test_headers_without_an_end_are_given_up(piece: bytes) -> None:
    sent = [0]

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if not piece.startswith(b"HTTP"):
            writer.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(2000):
            writer.write(piece)
            await writer.drain()
            sent[0] += len(piece)

    async def go() -> None:
        async with fleet(RawEngine("a", answer)) as router:
            got = await ask(router, {})
            assert got.status == 502 and "without an end" in got.json["error"]["message"]
            assert sent[0] < 32 << 20  # what sockets hold

    run(go())


def test_no_error_is_written_into_a_body_whose_length_is_known() -> None:
    """The client would take it for the rest of what it waits for."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100\r\n\r\n"
        )
        writer.write(b"data: 1\n\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        raise ConnectionError

    async def go() -> None:
        async with fleet(RawEngine("a", answer)) as router:
            wire = await Wire.open(router)
            try:
                got = await wire.ask({"stream": True})
                assert not got.whole
            except ConnectionError:
                pass  # a reset is as good

    run(go())


def test_a_frozen_replica_is_not_asked_again_over_a_used_connection() -> None:
    """A connection that was used may have been closed meanwhile; one that is silent was not."""
    frozen = asyncio.Event()

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if frozen.is_set():
            await asyncio.sleep(600)
        writer.write(whole(b"answer"))

    async def go() -> None:
        engine = RawEngine("a", answer)
        settings = {"probe_every": 0.1, "probe_timeout": 0.3, "probe_failures": 2}
        async with fleet(engine, StubEngine("b"), policy="round-robin", **settings) as router:
            for _ in range(4):
                assert (await ask(router, {})).status == 200
            frozen.set()
            engine.health = 503
            waiting = [asyncio.create_task(ask(router, {})) for _ in range(4)]
            got = await asyncio.wait_for(asyncio.gather(*waiting), 30)
            assert [one.status for one in got] == [200] * 4
            assert {one.headers["x-kvstrata-replica"] for one in got} == {"b"}
            await until(lambda: not router.application.replicas.get("a").in_flight)

    run(go())


def test_what_was_sent_just_before_a_replica_is_down_is_given_up_too() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(600)

    async def go() -> None:
        engine = RawEngine("a", answer)
        settings = {"probe_every": 0.1, "probe_timeout": 1.0, "probe_failures": 3}
        async with fleet(engine, **settings) as router:
            engine.health = 503
            replica = router.application.replicas.get("a")
            await until(lambda: replica.health.failures == 2)
            got = await asyncio.wait_for(ask(router, {}), 30)
            assert got.status == 502 and "is down" in got.json["error"]["message"]

    run(go())


def test_an_engine_whose_metrics_make_trouble_is_used_all_the_same() -> None:
    def trouble(*_: object) -> None:
        raise RuntimeError("a bug")

    async def go() -> None:
        async with fleet() as router:
            engine = await StubEngine("a").start()
            router.application.replicas.told = trouble
            await ask(router, {"url": engine.url, "name": "a"}, "/admin/replicas")
            await until(lambda: router.application.replicas.get("a").health.state == "up")
            assert (await ask(router, {})).status == 200
            await engine.stop()

    run(go())


def test_what_is_known_of_a_replica_outlives_its_predecessor() -> None:
    async def go() -> None:
        one, two = StubEngine("a"), await StubEngine("b").start()
        async with fleet(one) as router:
            gone: list[str] = []
            router.application.replicas.removed = gone.append
            long = asyncio.create_task(ask(router, {"wait": 0.5}))
            await until(lambda: router.application.replicas.get("a").in_flight == 1)
            config = router.config.replica[0]
            moved = dataclasses.replace(config, url=two.url, port=two.port)
            router.application.replicas.add(moved)
            assert gone == ["a"]
            assert (await long).status == 200
            assert gone == ["a"] and router.application.replicas.get("a").config == moved
        await two.stop()

    run(go())
