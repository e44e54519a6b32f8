"""What clients may send, and what becomes of it: every answer is an error with a reason, or right."""

import asyncio
import json
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.router.router_lab import Wire, ask, fleet, get, post, run, until
from tests.unit.router.stub_engine import StubEngine

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model": "tiny"} x', "invalid_json"),
        (b'{"prompt": "\xff\xfe"}', "invalid_utf8"),
        (b'{"unread": "\xc3\x28"}', "invalid_utf8"),
        (b"[1]", "invalid_body"),
        (b'{"model": 5}', "invalid_body"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 100_000, "invalid_json"),
    ],
)
def test_a_body_that_is_no_json_object_never_reaches_an_engine(body: bytes, code: str) -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router:
            wire = await Wire.open(router)
            got = await wire.ask(body)
            assert got.status == 400 and got.code in (code, "invalid_body")
            assert {"message", "type", "param", "code"} == set(got.json["error"])
            assert (await wire.ask({})).status == 200  # the connection is still good
            assert len(engine.posts) == 1

    run(go())


SMUGGLED = b"GET /admin/replicas HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"content-length: 2\r\ncontent-length: 60\r\n\r\n{}" + SMUGGLED,
        HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"transfer-encoding: xchunked\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"content-length: +2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"content-length : 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"x: a\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        HEAD + b"host: y\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        b"POST /v1/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        + SMUGGLED,
        HEAD + b"transfer-encoding: chunked\r\n\r\n2;a\n{}\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n" + SMUGGLED,
        b"POST /v1/completions HTTP/2.0\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        b"POST /v1/completions HTTP/0.9\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" + SMUGGLED,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_and_the_connection_ends(
    request_bytes: bytes,
) -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router:
            wire = await Wire.open(router)
            await wire.send(request_bytes)
            got = await wire.answer()
            assert got.status == 400 and got.headers["connection"] == "close"
            assert await wire.closed()  # and nothing that was hidden behind it is answered
            assert engine.posts == []

    run(go())


def test_an_engine_gets_one_plain_length_however_the_body_came() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router:
            wire = await Wire.open(router)
            body = b'{"echo": true}'
            pieces = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in body)
            trailer = b"0\r\nauthorization: Bearer stolen\r\n\r\n"
            await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + pieces + trailer)
            got = await wire.answer()
            assert got.status == 200 and got.json["body"].encode() == body
            seen = engine.posts[0]
            assert seen.header("content-length") == [str(len(body))]
            assert seen.header("transfer-encoding") == [] and seen.header("authorization") == []

    run(go())


def test_a_large_body_is_refused_before_or_while_it_comes() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, max_body="1MiB") as router:
            clients = router.application.clients
            wire = await Wire.open(router)
            await wire.send(HEAD + b"content-length: 104857600\r\n\r\n")
            got = await wire.answer()
            assert got.status == 413 and got.code == "body_too_large"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            wire = await Wire.open(router)
            await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
            piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
            for _ in range(1600):  # 100 MiB
                try:
                    await wire.send(piece)
                except ConnectionError:
                    break
                assert clients.buffered <= 1 << 20
            got = await wire.answer()
            assert got.status == 413
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert after - before < 64 << 10  # KiB
            assert clients.buffered == 0 and engine.posts == []

    run(go())


def test_all_bodies_together_are_bounded() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), max_body="1MiB", max_buffered="2MiB") as router:
            wires = [await Wire.open(router) for _ in range(4)]
            for wire in wires[:2]:
                await wire.send(HEAD + b"content-length: 1048576\r\n\r\n" + b" " * 1048000)
            await until(lambda: router.application.clients.buffered == 2 * 1048000)
            await wires[2].send(HEAD + b"content-length: 1048576\r\n\r\n" + b" " * 1048000)
            got = await wires[2].answer()
            assert got.status == 503 and got.code == "buffers_full"
            for wire in wires:
                wire.close()
            await until(lambda: router.application.clients.buffered == 0)

    run(go())


def test_half_a_request_does_not_stay() -> None:
    async def go() -> None:
        settings = {"head_timeout": 0.3, "body_timeout": 0.3, "keepalive": 0.3}
        async with fleet(StubEngine("a"), **settings) as router:
            for half in (b"POST /v1/comp", HEAD + b"content-length: 100\r\n\r\n{"):
                wire = await Wire.open(router)
                await wire.send(half)
                got = await wire.answer()
                assert got.status == 408 and await wire.closed()
            wire = await Wire.open(router)
            assert (await wire.ask({})).status == 200
            assert await wire.closed()

    run(go())


def test_many_silent_connections_keep_nobody_out_and_do_not_stay() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), head_timeout=3, max_connections=210) as router:
            silent = [await Wire.open(router) for _ in range(200)]
            connections = router.application.clients.connections
            await until(lambda: len(connections) == 200)
            assert (await ask(router, {})).status == 200
            more = [await Wire.open(router) for _ in range(20)]
            refused = [await one.answer() for one in more[12:]]
            assert {one.code for one in refused} == {"too_many_connections"}
            await until(lambda: not connections)
            for one in silent + more:
                one.close()

    run(go())


def test_heads_are_bounded() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), max_head="4KiB") as router:
            for filler in (b"x: " + b"a" * 5000, b"x: a\r\n" * 2000 + b"x: a"):
                wire = await Wire.open(router)
                await wire.send(HEAD + filler + b"\r\ncontent-length: 2\r\n\r\n{}")
                assert (await wire.answer()).status == 431
                wire = await Wire.open(router)
                await wire.send(HEAD + filler)
                assert (await wire.answer()).status == 431
            wire = await Wire.open(router)
            await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"t: a\r\n" * 2000)
            assert (await wire.answer()).status == 431

    run(go())


def test_a_client_that_asks_first_is_told_to_go_on_or_not() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), max_body=100) as router:
            wire = await Wire.open(router)
            await wire.send(HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await wire.send(b"{}")
            assert (await wire.answer()).status == 200
            wire = await Wire.open(router)
            await wire.send(HEAD + b"expect: 100-continue\r\ncontent-length: 200\r\n\r\n")
            assert (await wire.answer()).status == 413

    run(go())


def test_requests_sent_in_a_row_are_answered_in_their_order() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router:
            wire = await Wire.open(router)
            await wire.send(
                b"".join(
                    post({"echo": True, "n": n, "wait": 0.1 if n == 0 else 0}) for n in range(8)
                )
                + b"garbage\r\n\r\n"
            )
            for number in range(8):
                got = await wire.answer()
                assert json.loads(got.json["body"])["n"] == number
            assert (await wire.answer()).status == 400 and await wire.closed()

    run(go())


def test_old_clients_and_heads_are_served() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a")) as router:
            wire = await Wire.open(router)
            body = b'{"stream": true, "max_tokens": 2}'
            await wire.send(
                b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            got = await wire.answer()
            assert "transfer-encoding" not in got.headers and got.body.endswith(b"data: [DONE]\n\n")
            wire = await Wire.open(router)
            await wire.send(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n" + post({}))
            assert b" 200 " in await wire.reader.readuntil(b"\r\n\r\n")
            assert (await wire.answer()).status == 200

    run(go())


def test_unknown_paths_and_methods() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a")) as router:
            assert (await get(router, "/v1/nothing")).status == 404
            got = await get(router, "/v1/completions")
            assert got.status == 405 and got.headers["allow"] == "post"
            assert (await get(router, "/v1/completions", "DELETE")).status == 405
            assert (await get(router, "http://evil/v1/models")).status in (400, 404)
            text = (await get(router, "/metrics")).body
            assert b'kvstrata_router_refusals_total{code="method_not_allowed"} 2.0' in text
            assert b'kvstrata_router_engine_requests{replica="a",state="waiting"} 7.0' in text

    run(go())


LINES = st.sampled_from(
    [
        *(b"POST /v1/completions HTTP/1.1", b"GET /health HTTP/1.1", b"GET /v1/models HTTP/1.0"),
        *(b"host: x", b"content-length: 2", b"content-length: 7", b"transfer-encoding: chunked"),
        *(b"expect: 100-continue", b"connection: upgrade", b"upgrade: x", b"connection: close"),
        *(b"", b"", b"{}", b"0", b"2", b'{"stream":1}', b"POST / HTTP/1.1"),
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b""])
PIECES = st.one_of(
    st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=14).map(b"".join),
    st.binary(max_size=60),
    st.builds(post, st.dictionaries(st.sampled_from(["model", "stream", "prompt", "user"]),
              st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)), max_size=3)),
)  # fmt: skip


@settings(max_examples=8)
@given(batch=st.lists(st.tuples(st.lists(PIECES, max_size=4).map(b"".join), st.integers(1, 40)),
                      min_size=25, max_size=25))  # fmt: skip
def test_whatever_is_sent_the_router_goes_on(batch: list[tuple[bytes, int]]) -> None:
    async def one(router: object, data: bytes, step: int) -> None:
        wire = await Wire.open(router)  # type: ignore[arg-type]
        try:
            for start in range(0, len(data), step):
                await wire.send(data[start : start + step])
            wire.writer.write_eof()
            answer = await asyncio.wait_for(wire.reader.read(), 20)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            assert b" 500 " not in answer.split(b"\r\n")[0]
        except ConnectionError:
            pass
        finally:
            wire.close()

    async def go() -> None:
        async with fleet(StubEngine("a"), head_timeout=2, body_timeout=2) as router:
            await asyncio.gather(*[one(router, *it) for it in batch])
            assert (await ask(router, {})).status == 200
            await until(lambda: not router.application.clients.connections)
            assert router.application.clients.buffered == 0
            assert router.application.replicas.get("a").in_flight == 0

    run(go())
