"""Cached tokens of answers that do not tell them: from the engine's own counters. Pure.

Most streams say nothing of cached tokens, and most engines not even when asked. But every engine counts its
prompt tokens and those of them that were cached. Between two moments at which it had nothing to do, both
have grown by what was answered in between. If the prompts that it had from us make up just as many tokens,
nobody else asked it anything, and what was cached was cached of ours. One such window is one answer, whose
prompts, claims and cached tokens are sums.

Under a load that never pauses there is no such moment; nothing is concluded then.
"""

import re
from dataclasses import dataclass

from kvstrata.routing.decision import Appraisal
from kvstrata.routing.drift import Window, claim_of, slack_of
from kvstrata.routing.engine_rates import summed

MOST_REPLICAS = 4096
_COUNTER = re.compile(
    rb"^vllm:prompt_tokens(_cached)?_total(?:\{[^}\n]*\})? ([0-9.eE+]{1,40})\s*$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Counted:
    """An engine's counters since its start, over all its ranks: tokens of prompts, and those cached."""

    prompt: int
    cached: int


class _Open:
    __slots__ = ("least", "most", "predicted", "slack", "spoilt", "start", "tokens")

    def __init__(self, start: Counted | None) -> None:
        self.start = start
        self.tokens = self.least = self.most = self.predicted = 0
        self.slack = 0.0
        self.spoilt = False


def read_counters(text: bytes) -> Counted | None:
    """The counters in an engine's metrics (Prometheus' text), or None when they are not there."""
    sums = summed(_COUNTER.findall(text))
    if sums is None or len(sums) != 2:
        return None
    return Counted(int(sums[b""]), int(sums[b"_cached"]))


class Totals:
    """Keeps the window of each replica that is open now."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}

    def answered(self, appraisal: Appraisal, tokens: int) -> None:
        """A prompt of `tokens` was answered, without a word on what was cached of it."""
        window = self._window(appraisal.replica)
        if appraisal.reuse is None:
            window.spoilt = True  # nothing was claimed
            return
        least, most = claim_of(appraisal)
        window.tokens += tokens
        window.least += least
        window.most += most
        window.slack += slack_of(tokens)
        window.predicted += appraisal.tokens

    def spoil(self, replica: str) -> None:
        """Something was answered, or not, of which nobody knows what the engine counted."""
        self._window(replica).spoilt = True

    def forget(self, replica: str) -> None:
        """The replica is gone, or begins anew."""
        self._open.pop(replica, None)

    def quiet(self, replica: str, counted: Counted) -> Window | None:
        """The replica has nothing to do, and its counters stand so.

        Returns:
            What its answers since the last such moment show; None when that is nothing.
        """
        window = self._window(replica)
        self._open[replica] = _Open(counted)
        start = window.start
        if start is None or window.spoilt or not window.tokens:
            return None
        if counted.prompt - start.prompt != window.tokens or counted.cached < start.cached:
            return None  # others asked it too, or it began anew
        cached = counted.cached - start.cached
        return Window(window.least, window.most, cached, window.slack, window.predicted)

    def _window(self, replica: str) -> _Open:
        found = self._open.get(replica)
        if found is None:
            while len(self._open) >= MOST_REPLICAS:
                del self._open[next(iter(self._open))]
            found = self._open[replica] = _Open(None)
        return found
