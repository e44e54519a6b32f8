"""Requests in bytes that two servers could read in two ways: the router and h11, another parser, agree.

What the router takes for a request is what h11 takes for one, with the same body, in the same order: nothing
can be hidden in a request from one of them. The bytes are put together from pieces of requests, right ones
and such as requests are smuggled with.
"""

import asyncio
import contextlib
import itertools
import os
from dataclasses import dataclass

import h11
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from kvstrata.router.config import RouterConfig
from kvstrata.router.inbound import Request, RequestReader
from kvstrata.router.refusals import RefusedError
from kvstrata.router.service import Router
from tests.unit.router.honest_engine import HonestEngine
from tests.unit.router.router_lab import Wire, ask, fleet, run, until

MORE = int(os.environ.get("KVSTRATA_MORE_CASES", "1"))
CONFIG = RouterConfig.parse({"max_head": "16KiB", "max_body": "1MiB"})
HIDDEN = b'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n{"hidden":1}'


class Rules:
    buffered = 0

    def settings(self) -> RouterConfig:
        return CONFIG

    def check(self, request: Request) -> None:
        pass


@dataclass(frozen=True)
class Seen:
    method: str
    target: bytes
    body: bytes


def by_router(data: bytes, cuts: list[int]) -> tuple[list[Seen], str]:
    """Requests, and why there are no more of them."""
    rules = Rules()
    reader = RequestReader(rules, lambda: 0.0)
    found: list[Seen] = []
    ended = ""
    marks = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(marks):
        reader.feed(data[begin:end])
        for one in reader.found:
            if isinstance(one, RefusedError):
                ended = ended or one.code
                continue
            rules.buffered -= len(one.body)
            if not ended:
                target = one.path.encode("latin-1") + (b"?" + one.query if one.query else b"")
                found.append(Seen(one.method, target, one.body))
                if not one.keep_alive:
                    ended = "closed"
        reader.found.clear()
        if reader.broken is not None:
            ended = ended or reader.broken.code
            break
    reader.drop()
    assert rules.buffered == 0
    return found, ended


def by_h11(data: bytes) -> tuple[list[Seen], str]:
    """The same, as h11 reads it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    found: list[Seen] = []
    try:
        while True:
            now = connection.next_event()
            if now is h11.NEED_DATA or now is h11.PAUSED:
                return found, "more" if now is h11.NEED_DATA else "closed"
            if isinstance(now, h11.Request):
                asked, body = now, b""
            elif isinstance(now, h11.Data):
                body += bytes(now.data)
            elif isinstance(now, h11.EndOfMessage):
                found.append(Seen(asked.method.decode(), bytes(asked.target), body))
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return found, "closed"
                connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        return found, str(error)


def among(*values: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(values)


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


LINE = joined(
    among(b"POST", b"POST", b"GET", b"PUT", b"OPTIONS", b"post", b"P\0ST", b"CONNECT", b""),
    among(b" ", b" ", b" ", b"  ", b"\t", b""),
    among(b"/v1/completions", b"/v1/models?a=b", b"*", b"http://x/", b"/\x80", b"/a b", b"/#", b""),
    among(b" ", b" ", b" ", b"  "),
    among(b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.10", b"http/1.1",
          b"HTTP/0.9", b"HTTP/1.1 ", b""),
)  # fmt: skip
END = among(*[b"\r\n"] * 12, b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"")
NUMBER = among(b"12", b"0", b"5", b"+5", b"-1", b"0x5", b"5 ", b"5, 5", b"5,6", b"1e1", b"\x0b5",
               b"18446744073709551616", b"", b"00005", b"5;q=1", b"\xb2")  # fmt: skip
CODING = among(b"chunked", b"chunked", b"Chunked", b" chunked ", b"identity", b"gzip, chunked", b"chunked,",
               b"chunked, chunked", b"chunked, identity", b"\x0bchunked", b"xchunked",
               b'"chunked"', b"")  # fmt: skip
NAME = among(b"content-length", b"Content-Length", b"transfer-encoding", b"Transfer-Encoding",
             b"content_length", b"content-length ", b" content-length", b"content-length\0", b"x",
             b"connection", b"expect", b"upgrade", b"host", b"")  # fmt: skip
VALUE = among(b"close", b"keep-alive", b"a\0b", b"a\rb", b"\xff")
COLON = among(b": ", b": ", b":", b" : ", b":\t", b"", b":\r\n ", b": \x0b")
HEADER = st.one_of(
    joined(among(b"content-length: "), NUMBER, END),
    joined(among(b"transfer-encoding: ", b"Transfer-Encoding:"), CODING, END),
    joined(NAME, COLON, st.one_of(NUMBER, CODING, VALUE), END),
    joined(among(b"connection: close", b"connection: keep-alive, upgrade", b"upgrade: h2c", b"x: 1\r\n 2",
                 b"expect: 100-continue", b"x: " + b"a" * 3000), END),
)  # fmt: skip
SIZE = among(b"5", b"5", b"05", b"5 ", b"5;a=b", b"5;a=\n", b"5\t", b"+5", b"0x5", b"F", b"", b"g",
             b"FFFFFFFFFFFFFFFFF", b"-5", b"5\r\n\r\n")  # fmt: skip
PIECE = joined(SIZE, END, among(b"hello", b"hello", b"hell", b"helloo"), END)
BODY = st.one_of(
    among(b"hello", b'{"a": "bcd"}', b"", HIDDEN),
    joined(
        st.lists(PIECE, max_size=3).map(b"".join),
        among(b"0", b"0", b"00", b"0;a"),
        END,
        among(b"", b"", b"x: y\r\n", b"content-length: 5\r\n"),
        END,
    ),
)
WILD = joined(
    LINE, END, among(b"host: x\r\n", b"host: x\r\n", b"", b"host: x\r\nhost: y\r\n"),
    st.lists(HEADER, max_size=3).map(b"".join), END, BODY,
)  # fmt: skip


def _framed(body: bytes, chunked: bool, sizes: list[int]) -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
    if not chunked:
        return head + b"content-length: %d\r\n\r\n" % len(body) + body
    pieces = b""
    for size in sizes:
        piece, body = body[:size], body[size:]
        if piece:
            pieces += b"%x\r\n%b\r\n" % (len(piece), piece)
    if body:
        pieces += b"%x\r\n%b\r\n" % (len(body), body)
    return head + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"


RIGHT = st.builds(
    _framed,
    st.one_of(st.binary(max_size=40), st.just(HIDDEN)),
    st.booleans(),
    st.lists(st.integers(1, 9), max_size=4),
)
CUTS = st.lists(st.integers(0, 1 << 16), max_size=6)


@settings(max_examples=600 * MORE)
@given(
    data=st.lists(st.one_of(RIGHT, WILD, st.just(HIDDEN)), min_size=1, max_size=4).map(b"".join),
    cuts=CUTS,
)
@example(
    data=b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", cuts=[]
)
def test_two_parsers_read_the_same_requests(data: bytes, cuts: list[int]) -> None:
    ours, ended = by_router(data, cuts)
    theirs, reason = by_h11(data)
    event(f"requests {len(ours)}")
    event("refused" if ended not in ("", "closed") else "taken")
    if len(ours) > len(theirs):
        # llhttp takes two spaces in a request's first line, which goes to engines as the router writes it.
        assert reason.startswith("illegal request line") and b"  " in data, (ended, reason)
    both = min(len(ours), len(theirs))
    assert ours[:both] == theirs[:both], (ended, reason)


@settings(max_examples=200 * MORE)
@given(data=st.lists(st.one_of(RIGHT, WILD), min_size=1, max_size=3).map(b"".join), cuts=CUTS)
def test_how_bytes_arrive_changes_nothing(data: bytes, cuts: list[int]) -> None:
    assert by_router(data, cuts) == by_router(data, [])


@settings(max_examples=200 * MORE)
@given(
    bodies=st.lists(st.binary(max_size=60), min_size=1, max_size=4),
    chunked=st.booleans(),
    behind=st.one_of(st.just(b""), WILD),
    cuts=CUTS,
)
def test_right_requests_are_all_read_whatever_follows(
    bodies: list[bytes], chunked: bool, behind: bytes, cuts: list[int]
) -> None:
    """Else the tests above would pass with a router that refuses everything."""
    data = b"".join(_framed(body, chunked, [3, 1, 20]) for body in bodies)
    found, ended = by_router(data + behind, cuts)
    assert [one.body for one in found[: len(bodies)]] == bodies
    assert behind or not ended


@settings(max_examples=8 * MORE)
@given(
    batch=st.lists(
        st.lists(st.one_of(RIGHT, WILD, st.just(HIDDEN)), max_size=3).map(b"".join),
        min_size=12,
        max_size=12,
    )
)
def test_engines_see_nothing_malformed_and_nothing_stays(batch: list[bytes]) -> None:
    async def one(router: Router, data: bytes) -> None:
        wire = await Wire.open(router)
        with contextlib.suppress(ConnectionError):
            await wire.send(data + b"\r\n\r\n" * 2)
            async with asyncio.timeout(20):
                answer = await wire.reader.read()  # it is closed, at the latest when nothing comes
            assert not answer or answer.startswith(b"HTTP/1.1 ")
            assert b"HTTP/1.1 500" not in answer
        wire.close()

    async def go() -> None:
        engine = HonestEngine("a")
        times = {"head_timeout": 0.3, "body_timeout": 0.3, "keepalive": 0.3}
        async with fleet(engine, **times) as router:
            await asyncio.gather(*[one(router, data) for data in batch])
            assert (await ask(router, {"prompt": "x"})).status == 200
            await until(lambda: not router.application.clients.connections)
            assert router.application.clients.buffered == 0
            assert router.application.replicas.get("a").in_flight == 0
            assert engine.malformed == 0

    run(go())
