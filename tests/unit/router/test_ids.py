"""Token ids are read as a JSON reader reads them, and nothing else is taken for ids."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvstrata.router import ids as reading_ids
from kvstrata.router.ids import parse_ids


@pytest.fixture(scope="module", autouse=True, params=["compiled", "plain"])
def way(request) -> Iterator[None]:
    """Both ways read the same."""
    reading_ids.warm()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(reading_ids, "ready", lambda: False)
        yield


@given(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 300)), st.sampled_from([None, 1]))
def test_an_array_of_ids(ids: list[int], indent: int | None) -> None:
    for text in (json.dumps(ids, indent=indent), json.dumps(ids, separators=(",", ":"))):
        found = parse_ids(text.encode())
        assert found is not None and found.tolist() == ids


def plain(text: bytes) -> list[int] | None:
    """What the standard library makes of it."""
    try:
        value = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        return None
    # -0 is a whole number too, and so it reads; nobody writes it for a token.
    return value if all(0 <= item < 2**31 for item in value) and b"-" not in text else None


@given(
    st.text(alphabet='[]0123456789,. \n-e"', max_size=14).map(str.encode) | st.binary(max_size=6)
)
@example(b"[12345678]")
@example(b"[1234567]")
@example(b"[2147483647, 4294967296]")
@example(b"[00000001]")
@example(b"[-0]")
@example(b"[1234567890123456789012]")
@example(b"[1234567\xff]")
@example(b"[01]")
@example(b"[1 2]")
@example(b"[1,]")
@example(b"[,]")
@example(b"[]")
@example(b"[ ]")
@example(b"[\x0c1]")
@example(b"[[1]]")
@example(b"[2147483648]")
def test_nothing_else_is_taken_for_ids(text: bytes) -> None:
    found = parse_ids(text)
    assert (None if found is None else found.tolist()) == plain(text)


@pytest.mark.parametrize(
    "text", [b"", b"[", b"]", b'"[1]"', b"null", b"[1.0]", b"[1e2]", b"[true]"]
)
def test_other_json(text: bytes) -> None:
    assert parse_ids(text) is None
