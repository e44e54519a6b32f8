"""A body is read once; a long array of token ids is taken out exactly where a parser would see it."""

import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvstrata.router import ids
from kvstrata.router.asking import Fields, ask
from kvstrata.router.refusals import RefusedError

LONG = list(range(1000, 5000))


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    ids.warm()


def asked(body: bytes) -> Any:
    return ask(SimpleNamespace(body=body, headers=()), "one")  # type: ignore[arg-type]


def taken(body: Any) -> list[int] | None:
    found = asked(body if isinstance(body, bytes) else json.dumps(body).encode()).ids
    return None if found is None else found.tolist()


@pytest.mark.parametrize("key", ["prompt", "input"])
def test_a_long_array_is_taken_out(key: str) -> None:
    for array in (LONG, [LONG]):
        assert taken({"model": "m", key: array, "stream": True}) == LONG
    got = asked(json.dumps({"model": "m", key: LONG, "stream": True}).encode())
    assert got.fields.model == "m" and got.fields.stream is True


def test_what_only_looks_like_it_is_left_alone() -> None:
    text = json.dumps({"prompt": LONG})
    for body in (
        {"x": {"prompt": LONG}},
        {"x": {"prompt": LONG}, "prompt": LONG[:5]},
        {"x": text},
        {"x": "\\" + text},
        {"prompt": [LONG, LONG]},
        {"prompt": [LONG, 1]},
        {"prompt": [[LONG]]},
        {"prompt": text},
        {"prompt": [*LONG, 0.5]},
        {"prompt": [*LONG, -1]},
        {"prompt": [*LONG, "x"]},
        {"prompt": "x" * 40_000},
    ):
        assert taken(body) is None
        assert asked(json.dumps(body).encode()).fields == msgspec.json.decode(
            json.dumps(body).encode(), type=Fields
        )


def test_of_two_keys_of_one_name_the_last_counts() -> None:
    array = json.dumps(LONG).encode()
    got = asked(b'{"prompt":%b,"prompt":[1,2]}' % array)
    assert got.ids is None and bytes(got.fields.prompt) == b"[1,2]"
    got = asked(b'{"prompt":%b,"prompt":%b}' % (array, array))
    assert got.ids is None and bytes(got.fields.prompt) == array


FRAGMENTS = [
    b'"prompt"',
    b'"input"',
    b"\\",
    b'"',
    b":",
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b" ",
    b"\x0b",
    b"\xff",
    b"1",
    b"00",
    json.dumps(LONG).encode(),
    b"[" + b"9," * 6000 + b"]",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=9), st.booleans())
@example([b'"prompt"', b":", json.dumps(LONG).encode(), b"\xff"], True)
@example([b'"prompt"', b":", json.dumps(LONG).encode(), b"}"], True)
@example([b'"prompt"', b"\x0b", b":", json.dumps(LONG).encode()], True)
def test_taking_it_out_changes_no_verdict(parts: list[bytes], framed: bool) -> None:
    """All that the plain parser refuses is refused, in its words; and else the same is read."""
    body = b"{" + b"".join(parts) + b"}" if framed else b"".join(parts)
    plain = body + b" " * 20_000
    quick = shown(plain)
    compiled = ids.ready
    try:
        ids.ready = lambda: False  # type: ignore[assignment]
        assert shown(plain) == quick
    finally:
        ids.ready = compiled


def shown(body: bytes) -> Any:
    try:
        got = asked(body)
    except RefusedError as error:
        return error.code, error.message
    if got.ids is not None:
        return json.loads(json.dumps({"model": got.fields.model})), got.ids.tolist()
    for raw in (got.fields.prompt, got.fields.input):
        found = ids.parse_ids(bytes(raw)) if len(bytes(raw)) > 10_000 else None
        if found is not None:
            return {"model": got.fields.model}, found.tolist()
    return {"model": got.fields.model}, bytes(got.fields.prompt), bytes(got.fields.input)
