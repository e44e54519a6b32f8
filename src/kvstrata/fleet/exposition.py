"""Prometheus' text format, as far as an engine's metrics need it. Pure."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? +(\S+)(?: +-?[0-9]+)?")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)",?')
_ESCAPED = re.compile(r"\\(.)")


class Sample(NamedTuple):
    """One line of Prometheus' text format."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(text: str) -> Iterator[Sample]:
    """Samples of Prometheus' text format; lines of any other form are passed over."""
    for line in text.split("\n"):
        match = None if line.startswith("#") else _LINE.fullmatch(line.strip())
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {
            name: _ESCAPED.sub(lambda found: {"n": "\n"}.get(found[1], found[1]), shown)
            for name, shown in _LABEL.findall(match[2] or "")
        }
        yield Sample(match[1], labels, value)
