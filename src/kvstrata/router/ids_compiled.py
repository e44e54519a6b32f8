"""Whole numbers out of JSON text, eight characters at a time; compiled.

Lengths of numbers are hard to guess for a processor, so the digits of one are counted and summed up in one
word, without a branch for each.
"""

from typing import Any

import numpy as np

from kvstrata.compiled import compiled, lowest_bit, part

_SPACE, _TAB, _LINE, _RETURN, _COMMA, _ZERO, _NINE, _CLOSE = 32, 9, 10, 13, 44, 48, 57, 93
_LARGEST = 2**31 - 1
_DIGITS = 10
_ONE = np.uint64(1)
_WORD = np.uint64(8)
_ZEROS = np.uint64(0x3030303030303030)
_BEYOND_NINE = np.uint64(0x7676767676767676)
_HIGH = np.uint64(0x8080808080808080)
_BYTES = np.uint64(0x00FF00FF00FF00FF)
_PAIRS = np.uint64(0x0000FFFF0000FFFF)
_QUADS = np.uint64(0xFFFFFFFF)
_TEN, _HUNDRED, _MYRIAD = np.uint64(10), np.uint64(100), np.uint64(10_000)
_8, _16, _32, _3, _7 = np.uint64(8), np.uint64(16), np.uint64(32), np.uint64(3), np.uint64(7)


@part
def _word(text: Any, at: Any) -> Any:
    """Eight characters as one number, the first in its lowest byte."""
    word = np.uint64(0)
    for place in range(8):
        byte = np.uint64(text[at + np.uint64(place)])
        word |= byte << np.uint64(8 * place)
    return word


@part
def _short(text: Any, at: Any, size: Any) -> tuple[Any, Any]:
    """Value and digits of a number of less than eight digits; 0 digits where this way does not go."""
    if at + _WORD > size:
        return np.int64(0), np.uint64(0)
    word = _word(text, at) ^ _ZEROS
    others = ((word + _BEYOND_NINE) | word) & _HIGH
    if others == 0:
        return np.int64(0), np.uint64(0)
    digits = np.uint64(lowest_bit(others)) >> _3
    if digits == 0:
        return np.int64(0), digits
    word <<= (_WORD - digits) << _3  # zeros in front
    word = (word * _TEN + (word >> _8)) & _BYTES
    word = (word * _HUNDRED + (word >> _16)) & _PAIRS
    word = (word * _MYRIAD + (word >> _32)) & _QUADS
    return np.int64(word), digits


@part
def _long(text: Any, at: Any, size: Any) -> tuple[Any, Any]:
    """Value and digits of a number of any length; the value of one with too many is not its own."""
    value = np.int64(0)
    first = at
    while at < size and _ZERO <= text[at] <= _NINE:
        value = value * 10 + (np.int64(text[at]) - _ZERO)
        at += _ONE
    return value, at - first


@part
def _past_space(text: Any, at: Any, size: Any) -> Any:
    while at < size and text[at] <= _SPACE:
        if text[at] not in (_SPACE, _TAB, _LINE, _RETURN):
            break
        at += _ONE
    return at


@compiled
def parse_numbers(text: Any, start: Any, ids: Any) -> tuple[Any, Any]:
    """Numbers between commas, up to a closing bracket.

    Args:
        text: uint8 (n,).
        start: uint64; behind the opening bracket.
        ids: uint32; gets the numbers, and has room for (n - start) // 2 + 1.

    Returns:
        How many, and the index behind the bracket; -1 and the place of trouble for anything else.
    """
    size = np.uint64(len(text))
    at = _past_space(text, start, size)
    if at < size and text[at] == _CLOSE:
        return 0, np.int64(at + _ONE)
    count = 0
    while True:
        value, digits = _short(text, at, size)
        if digits == 0:
            value, digits = _long(text, at, size)
        leading = digits > 1 and text[at] == _ZERO
        if digits == 0 or digits > _DIGITS or leading or value > _LARGEST:
            return -1, np.int64(at)
        ids[count] = value
        count += 1
        at = _past_space(text, at + digits, size)
        if at >= size:
            return -1, np.int64(at)
        mark = text[at]
        at += _ONE
        if mark == _CLOSE:
            return count, np.int64(at)
        if mark != _COMMA:
            return -1, np.int64(at)
        at = _past_space(text, at, size)
