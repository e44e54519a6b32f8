"""Token ids out of a JSON array, without making a Python integer of each.

A prompt of 128K ids is some 900 KB of JSON; a list of Python integers takes longer to build than the whole
decision that follows.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint32]

_SPACE, _TAB, _LINE, _RETURN, _COMMA, _ZERO, _NINE = 32, 9, 10, 13, 44, 48, 57
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
    inner = np.frombuffer(text, np.uint8)[1:-1]
    ids = np.empty(len(inner) // 2 + 1, np.uint32)
    count = int(_parse(inner, ids))
    return None if count < 0 else ids[:count].copy()


def warm() -> None:
    """Compile what `parse_ids` needs, so that the first request does not wait for it."""
    parse_ids(b"[1]")


def _parse_numbers(text: Any, ids: Any) -> int:
    """Numbers between commas into `ids`; how many, or -1."""
    count = 0
    value = -1  # no digit yet
    ended = False  # white space after the number
    for byte in text:
        if _ZERO <= byte <= _NINE:
            if ended or value == 0:  # two numbers without a comma, or a leading zero
                return -1
            value = max(value, 0) * 10 + (byte - _ZERO)
            if value > _LARGEST:
                return -1
        elif byte == _COMMA:
            if value < 0:
                return -1
            ids[count] = value
            count += 1
            value = -1
            ended = False
        elif byte in (_SPACE, _TAB, _LINE, _RETURN):
            ended = value >= 0
        else:
            return -1
    if value >= 0:
        ids[count] = value
        return count + 1
    return 0 if count == 0 else -1


_parse = numba.njit(cache=True, nogil=True)(_parse_numbers)
