"""Token ids out of a JSON array, without making a Python integer of each.

A prompt of 128K ids is some 900 KB of JSON; a list of Python integers takes longer to build than the whole
decision that follows. Compiled code does it; until `warm` has run, JSON's parser does, ten times slower.
"""

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint32]

_LARGEST = 2**31 - 1


def parse_ids(raw: bytes) -> Tokens | None:
    """Token ids of a JSON array of whole numbers.

    Args:
        raw: JSON, such as `[1, 2, 3]`, white space around it allowed.

    Returns:
        uint32, one-dimensional; None when it is anything else than an array of whole numbers between 0 and
        2**31 - 1: JSON of another kind, or no JSON at all.
    """
    text = raw.strip(b" \t\r\n")
    if len(text) < 2 or text[:1] != b"[" or text[-1:] != b"]":
        return None
    if not ready():
        return _parse_slowly(text)
    found = find_ids(text, 1)
    return found[0] if found is not None and found[1] == len(text) else None


def find_ids(text: bytes, start: int) -> tuple[Tokens, int] | None:
    """Token ids of an array inside a longer text. Only when `ready`.

    Args:
        text: that holds the array.
        start: index behind its opening bracket.

    Returns:
        uint32, one-dimensional, and the index behind the closing bracket; None where `parse_ids` gives None.
    """
    ids = np.empty((len(text) - start) // 2 + 1, np.uint32)
    count, end = _parser()(np.frombuffer(text, np.uint8), np.uint64(start), ids)
    return None if count < 0 else (ids[:count].copy(), end)


def ready() -> bool:
    """Whether compiled code is at hand."""
    return _parser.cache_info().currsize > 0


def warm() -> None:
    """Bring the compiled code; takes seconds on a machine's first time."""
    _parser()


@functools.cache
def _parser() -> Callable[[Any, Any, Any], tuple[int, int]]:
    # Numba comes with it, which a router that goes by load alone need not have.
    from kvstrata.router.ids_compiled import parse_numbers

    parse_numbers(np.frombuffer(b"1]", np.uint8), np.uint64(0), np.empty(2, np.uint32))
    return parse_numbers


def _parse_slowly(text: bytes) -> Tokens | None:
    if b"-" in text:
        return None
    try:
        ids = msgspec.json.decode(text, type=list[int])
        return np.array(ids, np.uint32) if all(0 <= one <= _LARGEST for one in ids) else None
    except (ValueError, RecursionError):
        return None
