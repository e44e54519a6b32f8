"""Reading the values of options: one function for each kind of value.

Each takes what JSON can hold and raises `ValueError` where the value is wrong, with a hint or without;
whoever calls knows the option's name and what it allows.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kvstrata.sizes import read_age, read_size, read_whole

MAX_LABEL = 200
MAX_THREADS = 256
MAX_SECONDS = 24 * 3600.0
MAX_WEIGHT = 1000


class Capacity(NamedTuple):
    """How much a root may hold: bytes, or a share of its file system."""

    nbytes: int | None = None
    share: float | None = None


def read_positive_size(value: object) -> int:
    """Bytes, more than 0; see `kvstrata.sizes.read_size`."""
    size = read_size(value)
    if size == 0:
        raise ValueError
    return size


def read_capacity(value: object) -> Capacity:
    """Bytes, or a share such as "80%"."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d{1,3}(?:\.\d+)?)\s*%\s*", value)):
        share = float(match[1]) / 100
        if not 0 < share <= 1:
            raise ValueError
        return Capacity(share=share)
    return Capacity(nbytes=read_positive_size(value))


def read_threads(value: object) -> int:
    """A whole number from 0 to `MAX_THREADS`."""
    count = read_whole(value)
    if not 0 <= count <= MAX_THREADS:
        raise ValueError
    return count


def read_seconds(value: object) -> float:
    """A number greater than 0, at most `MAX_SECONDS`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    if not 0 < value <= MAX_SECONDS:  # not a number and infinity fail this too
        raise ValueError
    return float(value)


def read_positive_age(value: object) -> float:
    """Seconds, more than 0, as in "7d"; see `kvstrata.sizes.parse_age`."""
    seconds = read_age(value)
    if seconds == 0:
        raise ValueError
    return seconds


def read_weight(value: object) -> float:
    """A number from 1 / `MAX_WEIGHT` to `MAX_WEIGHT`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    if not 1 / MAX_WEIGHT <= value <= MAX_WEIGHT:
        raise ValueError
    return float(value)


def read_flag(value: object) -> bool:
    """True or false, also as text."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise ValueError


def read_directory(value: object) -> str:
    """An absolute directory; "~" is expanded."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError
    text = os.fspath(value)
    if not isinstance(text, str) or "\0" in text:
        raise ValueError
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no such user") from None
    if not path.is_absolute():
        # The engine's processes need not share a working directory with whoever wrote the option.
        raise ValueError("a relative path means another directory in each process" if text else "")
    return str(path)


def read_label(value: object) -> str:
    """Text of at most `MAX_LABEL` characters."""
    if not isinstance(value, str) or len(value) > MAX_LABEL:
        raise ValueError
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None
    return value


def one_of(names: Sequence[str]) -> Callable[[object], str]:
    """A reader that allows one of some names."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return read
