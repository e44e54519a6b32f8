"""Whatever a body says, on whatever path: it goes to an engine to the byte, or comes back with a reason.

Bodies are made of the API's own keys with values right and wrong, and broken in many ways. The oracle is
Python's JSON parser, another one than the router's.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from kvstrata.router.application import FORWARDED
from kvstrata.router.preparing import warm
from tests.unit.router.honest_engine import HonestEngine, well_formed
from tests.unit.router.router_lab import Got, Wire, ask, fleet, get, run, until
from tests.unit.router.stub_engine import Seen

MORE = int(os.environ.get("KVSTRATA_MORE_CASES", "1"))
AT_ONCE = 12


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm()


class Digesting(HonestEngine):
    """Answers a POST with a digest of the bytes that it got."""

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.line.startswith("GET"):
            await super()._answer(seen, writer)
            return
        self.seen.clear()
        self.malformed += not well_formed(seen)
        self.served += 1
        body = digest(seen.body)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12), st.sampled_from(["tiny", "auto", "user", "text", "\0", "\U0001f600", "<|end|>"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "function", "name", "x"]), inner,
                        max_size=4),
    ),
    max_leaves=8,
)  # fmt: skip
IDS = st.one_of(
    st.lists(st.integers(0, 50_000), max_size=60),
    st.integers(0, 300).map(lambda n: list(range(n)) * 30),
    st.lists(st.integers(-5, 2**40), max_size=9),
    st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=3),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "nobody"])},
        optional={"content": VALUES, "tool_calls": VALUES, "name": VALUES},
    ),
    max_size=4,
)
KEYS = {
    "model": st.one_of(st.just("tiny"), st.just("tiny"), st.just("tiny"), SCALARS),
    "prompt": st.one_of(IDS, IDS, st.text(max_size=200), VALUES),
    "messages": st.one_of(MESSAGES, VALUES),
    "input": st.one_of(IDS, st.text(max_size=50), VALUES),
}
KEYS |= dict.fromkeys(
    ("stream", "stream_options", "max_tokens", "user", "prompt_cache_key", "kv_transfer_params", "cache_salt",
     "add_special_tokens", "add_generation_prompt", "continue_final_message", "echo", "truncation", "tools",
     "tool_choice", "instructions", "logprobs", "prompt_logprobs", "prompt_embeds", "suffix", "documents",
     "truncate_prompt_tokens", "previous_response_id", "chat_template", "chat_template_kwargs", "reasoning",
     "reasoning_effort", "safety_identifier", "surprise"),
    VALUES,
)  # fmt: skip
OBJECTS = st.fixed_dictionaries({}, optional=KEYS)
BREAKS = st.sampled_from(
    [
        lambda body: body,
        lambda body: body,
        lambda body: body,
        lambda body: body[:-1],
        lambda body: body[: len(body) // 2],
        lambda body: body + b"}",
        lambda body: body.replace(b'"', b"'", 1),
        lambda body: body.replace(b"e", b"\xff", 1),
        lambda body: body.replace(b"t", b"\xc3", 1),
        lambda body: body.replace(b"i", b"\xed\xa0\x80", 1),
        lambda body: body.replace(b"0", b"00", 1),
        lambda body: body.replace(b"1", b"+1", 1),
        lambda body: body.replace(b":", b": NaN, ", 1),
        lambda body: body.replace(b",", b",,", 1),
        lambda body: body.replace(b"]", b",]", 1),
        lambda body: body.replace(b'"', b'"\\u12', 1),
        lambda body: body.replace(b'"', b'"\\ud800', 1),
        lambda body: body.replace(b'"', b'"\x01', 1),
        lambda body: b"[" + body + b"]",
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: b"\r\n\t " + body + b"\r\n\t ",
        lambda body: body.replace(b"{", b'{"model":"tiny",', 1).replace(b",}", b"}"),
    ]
)


def _written(value: Any, ascii_only: bool, broken: Callable[[bytes], bytes]) -> bytes:
    return broken(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace"))


BODIES = st.one_of(
    st.builds(_written, OBJECTS, st.booleans(), BREAKS),
    st.binary(max_size=40),
    VALUES.map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
PATHS = st.one_of(st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/responses"]),
                  st.sampled_from(sorted(FORWARDED)))  # fmt: skip


class UnsureError(ValueError):
    """Parsers may differ."""


def _never(text: str) -> Any:
    raise ValueError(text)


def understood(body: bytes) -> dict[str, Any] | None:
    """The object that a body is, or None. Raises UnsureError where it can be read either way."""
    try:
        found = json.loads(body.decode(), parse_constant=_never)
    except (ValueError, RecursionError):
        return None
    if b"\\ud" in body.lower():
        raise UnsureError  # half of a pair: the RFC leaves it open
    return found if isinstance(found, dict) else None


def is_error(got: Got) -> str:
    """The code of an error in OpenAI's shape, with words."""
    error = got.json["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) > 10, error
    assert got.status < 500, error
    return str(error["code"])


async def judged(router: Any, path: str, body: bytes) -> None:
    got = await ask(router, body, path)
    if got.status == 200:
        assert got.body == digest(body)  # as it was sent
        event("forwarded")
    else:
        code = is_error(got)
        event(code)
    try:
        value = understood(body)
    except UnsureError:
        return
    if value is None:
        assert got.status == 400 and code in ("invalid_json", "invalid_utf8", "invalid_body"), body
    elif not isinstance(value.get("model"), str | None):
        assert got.status == 400 and code == "invalid_body", body
    elif value.get("model") not in ("tiny", None):
        assert got.status == 404 and code == "model_not_found", body
    else:
        assert got.status == 200, (body, got.body)


def each(count: int, check: Callable[[Any], Awaitable[None]]) -> None:
    """Runs `check` with one router over one engine, and sees what is left then."""

    async def go() -> None:
        with tempfile.TemporaryDirectory(prefix="kv") as directory:
            engine = Digesting("a", f"ipc://{directory}/e", f"ipc://{directory}/r")
            async with fleet(engine, policy="seconds") as router:
                await check(router)
                assert engine.malformed == 0
                assert (await ask(router, {})).status == 200
                await until(lambda: not router.application.clients.connections)
                assert router.application.clients.buffered == 0
                assert router.application.replicas.get("a").in_flight == 0

    run(go(), 60 + count)


@settings(max_examples=16 * MORE)
@given(batch=st.lists(st.tuples(PATHS, BODIES), min_size=AT_ONCE, max_size=AT_ONCE))
def test_a_body_goes_on_as_it_is_or_comes_back(batch: list[tuple[str, bytes]]) -> None:
    async def check(router: Any) -> None:
        await asyncio.gather(*[judged(router, path, body) for path, body in batch])

    each(AT_ONCE, check)


@settings(max_examples=10 * MORE)
@given(batch=st.lists(st.tuples(PATHS, BODIES, st.booleans()), min_size=AT_ONCE, max_size=AT_ONCE))
def test_explaining_knows_what_routing_knows(batch: list[tuple[str, bytes, bool]]) -> None:
    async def one(router: Any, path: str, body: bytes, said: bool) -> None:
        got = await ask(router, body, f"/v1/route/explain{'?path=' + path if said else ''}")
        if got.status == 200:
            assert got.json["chosen"] == "a" and got.json["outcome"] is None
            if said:
                assert (await ask(router, body, path)).status == 200
        else:
            assert is_error(got) in ("invalid_json", "invalid_utf8", "invalid_body", "invalid_path",
                                     "model_not_found")  # fmt: skip

    async def check(router: Any) -> None:
        await asyncio.gather(*[one(router, *each) for each in batch])

    each(AT_ONCE, check)


REPLICAS = st.one_of(
    BODIES,
    st.fixed_dictionaries(
        {"url": st.sampled_from(["http://127.0.0.1:1", "http://[::1]:1", "http://x/y", "ftp://x", "http://a:0",
                                 "http://127.0.0.1:99999", "http://\n", "", 5, None])},
        optional={
            "name": st.sampled_from(["b", "c", "a", "", "a b", "\0", 7]),
            "api_key": SCALARS,
            "x": VALUES,
        },
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
ADMIN = st.one_of(
    st.tuples(st.just("POST"), st.just("/admin/replicas"), REPLICAS),
    st.tuples(
        st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
        st.one_of(
            st.sampled_from(["/admin/replicas", "/admin/policy", "/admin/state", "/admin/reload", "/admin/",
                             "/admin/replicas/b", "/admin/replicas/%00", "/ui", "/metrics",
                             "/v1/route/decisions/"]),
            st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map("/admin/".__add__),
            st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(
                "/v1/route/decisions/".__add__),
        ),
        st.one_of(st.just(b""), BODIES),
    ),
)  # fmt: skip


@settings(max_examples=10 * MORE)
@given(batch=st.lists(ADMIN, min_size=AT_ONCE, max_size=AT_ONCE))
def test_the_admin_api_answers_whatever_it_is_asked(batch: list[tuple[str, str, bytes]]) -> None:
    async def one(router: Any, method: str, path: str, body: bytes) -> None:
        wire = await Wire.open(router)
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        await wire.send(head.encode() + body)
        got = await wire.answer()
        wire.close()
        if got.status == 200:
            event(f"{method} {path[:16]}")
        else:
            event(is_error(got))

    async def check(router: Any) -> None:
        await asyncio.gather(
            *[one(router, *each) for each in batch if each[1] != "/admin/replicas/a"]
        )
        names = {one.name for one in router.application.replicas}
        for name in names - {"a"}:
            await get(router, f"/admin/replicas/{name}", "DELETE")
        assert {one.name for one in router.application.replicas} == {"a"}

    each(AT_ONCE, check)
