"""Numbers of bytes and of seconds, as people write and read them."""

import re
import reprlib
from fractions import Fraction

from kvstrata.errors import ConfigError

_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_UNITS = {"": 1, **_DECIMAL, **_BINARY}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?) ?((?:[kmgt]i?)?b|[kmgt]i?)?", re.IGNORECASE)
SIZE_ALLOWED = 'a size such as "8GiB", "512MiB" or "1.5 GB", or a number of bytes'
_MAX_SIZE = 2**63 - 1
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
AGE_ALLOWED = 'a number and a unit, such as "7d", "12h", "30m" or "90s"'

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def parse_size(value: object) -> int:
    """Bytes that `value` stands for.

    Args:
        value: a whole number of bytes, or text: digits, optionally with a decimal point, then
            optionally one space and a unit. KiB, MiB, GiB and TiB are powers of 1024; kB, MB, GB
            and TB are powers of 1000; B, or no unit, is bytes. Case does not matter. A fraction of
            a byte is cut off. A letter alone ("64k") is refused: tools disagree on its meaning.

    Raises:
        ConfigError: anything else, or more than 2**63 - 1 bytes.
    """
    try:
        return read_size(value)
    except ValueError as error:
        tail = f" ({error})" if str(error) else ""
        raise ConfigError(
            f"a size must be {SIZE_ALLOWED}; got {_shown.repr(value)}{tail}"
        ) from None


def format_size(size: int) -> str:
    """`size` bytes for people, as in "256 MiB": four significant digits; `parse_size` reads it."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= factor:
            value = size / factor
            return f"{value:.4g} {unit}"
    return f"{size} B"


def parse_age(text: str) -> float:
    """Seconds that `text` stands for: a number and one of s, m, h, d, such as "7d" or "12h".

    Raises:
        ConfigError: anything else.
    """
    try:
        return read_age(text)
    except ValueError:
        raise ConfigError(f"an age is {AGE_ALLOWED}; got {text!r}") from None


def format_age(seconds: float) -> str:
    """An age for people: "3 d", "12 h", "45 m", "9 s"; where it is that exactly, `parse_age` reads it."""
    for unit in "dhm":
        if seconds >= _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.0f} s"


def read_age(value: object) -> float:
    """See `parse_age`. Raises ValueError."""
    match = _AGE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None:
        raise ValueError
    return float(match[1]) * _SECONDS[match[2]]


def read_size(value: object) -> int:
    """See `parse_size`. Raises ValueError, with a hint or without."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError
        number, unit = match[1], (match[2] or "").lower()
        if unit and not unit.endswith("b"):
            letter = unit[0].upper()
            raise ValueError(f'say "{number}{letter}iB" (1024s) or "{number}{letter}B" (1000s)')
        size = int(Fraction(number) * _UNITS[unit.removesuffix("b")])
    else:
        size = read_whole(value)
    if not 0 <= size <= _MAX_SIZE:
        raise ValueError
    return size


def read_whole(value: object) -> int:
    """A whole number. Raises ValueError for anything else."""
    if isinstance(value, float) and value.is_integer():  # JSON writes 1e9 for a whole number too
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value
