"""As much of PromQL as it takes to know which metrics and labels a query asks for."""

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])
    |(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<number>[0-9]+(?:\.[0-9]+)?(?:[smhdwy])?)|(?P<mark>=~|!~|!=|==|>=|<=|[-+*/%^(){},=<>])""",
    re.VERBOSE,
)
_GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_WORDS = frozenset({"or", "and", "unless", "offset", "bool"})


class Asked(NamedTuple):
    """A metric that a query selects, the labels by which it does, and those by which it groups at all."""

    metric: str
    labels: frozenset[str]


def tokens(query: str) -> list[tuple[str, str]]:
    """Kinds and texts. Raises ValueError at what is no token."""
    found, at = [], 0
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None:
            raise ValueError(f"no PromQL at {query[at:]!r}")
        at = match.end()
        if match.lastgroup:
            found.append((match.lastgroup, match[match.lastgroup]))
    return found


def asked(query: str) -> tuple[list[Asked], frozenset[str]]:
    """What it selects, and the labels that it groups by.

    Raises:
        ValueError: a token is none, or a bracket has no other.
    """
    found = tokens(query)
    _balanced([text for kind, text in found if kind == "mark"])
    selected: list[Asked] = []
    grouped: set[str] = set()
    at = 0
    while at < len(found):
        kind, text = found[at]
        after = found[at + 1][1] if at + 1 < len(found) else ""
        if kind == "name" and text in _GROUPING:
            end = found.index(("mark", ")"), at)
            grouped |= {one for what, one in found[at:end] if what == "name"} - {text}
            at = end
        elif kind == "name" and text not in _WORDS and after != "(":
            if after in _GROUPING:  # an aggregation whose labels come first
                at += 1
                continue
            labels: set[str] = set()
            if after == "{":
                end = found.index(("mark", "}"), at)
                labels = {one for what, one in found[at + 2 : end] if what == "name"}
                at = end
            selected.append(Asked(text, frozenset(labels)))
        at += 1
    return selected, frozenset(grouped)


def _balanced(marks: list[str]) -> None:
    open_ones = []
    for mark in marks:
        if mark in "({":
            open_ones.append(mark)
        elif mark in ")}" and (not open_ones or open_ones.pop() + mark not in ("()", "{}")):
            raise ValueError(f"{mark} without its other")
    if open_ones:
        raise ValueError(f"{open_ones[-1]} without its other")
