"""How fast an engine computed prompts before anyone routed to it: from its own metrics. Pure."""

import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

Name = TypeVar("Name")

_PREFILL = re.compile(
    rb"^vllm:request_prefill_(time_seconds|kv_computed_tokens)_(sum|count)"
    rb"(?:\{[^}\n]*\})? ([0-9.eE+-]{1,40})\s*$",
    re.MULTILINE,
)
_FIGURES = ((b"time_seconds", b"count"), (b"kv_computed_tokens", b"sum"), (b"time_seconds", b"sum"))


def summed(found: Iterable[tuple[Name, bytes]]) -> dict[Name, float] | None:
    """Values in Prometheus' text, such as of several ranks, summed up by name; None if one is no count."""
    sums: dict[Name, float] = {}
    for name, value in found:
        try:
            number = float(value)
        except ValueError:
            return None
        if not 0 <= number < 2**53:
            return None
        sums[name] = sums.get(name, 0.0) + number
    return sums


class Prefill(msgspec.Struct, frozen=True, gc=False):
    """What an engine has computed since its start, over all its ranks.

    Attributes:
        requests: that are finished.
        tokens: of their prompts that were computed, those reused left out.
        seconds: from the step in which each was first scheduled to its first token, summed up. Prompts that
            were computed in the same steps count those steps once each, so a busy engine looks slower than it
            is; its next prompt will be treated no better.
    """

    requests: int
    tokens: int
    seconds: float


def read_prefill(text: bytes) -> Prefill | None:
    """The figures in an engine's metrics (Prometheus' text); None when they are not there, or nothing ran.

    vLLM's histograms `request_prefill_time_seconds` and `request_prefill_kv_computed_tokens`.
    """
    sums = summed(((name, kind), value) for name, kind, value in _PREFILL.findall(text))
    if sums is None:
        return None
    requests, tokens, seconds = (sums.get(one, 0.0) for one in _FIGURES)
    if not (requests and tokens and seconds):
        return None
    return Prefill(int(requests), int(tokens), seconds)
