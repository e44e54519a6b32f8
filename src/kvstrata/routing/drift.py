"""Predicted against actual: how far a replica does what the index and the learned seconds say."""

import math
from typing import Any

from kvstrata.routing.backlog import Pending
from kvstrata.routing.cost import Work

TOLERANCE = 0.02
"""Share of a prompt by which cached tokens may differ without being called a disagreement."""
TOLERANCE_TOKENS = 64
_FADE = 0.05
MOST_REPLICAS = 4096


class _Replica:
    __slots__ = ("agreed", "bias", "cached", "disagreeing", "less", "more", "predicted", "spread")

    def __init__(self) -> None:
        self.agreed = 0
        self.less = 0
        self.more = 0
        self.predicted = 0
        self.cached = 0
        self.disagreeing = 0.0
        self.bias = 0.0
        self.spread = 0.0


class Drift:
    """Compares outcomes with what was foreseen, by replica."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}

    def compare(self, pending: Pending, cached: int | None) -> Work | None:
        """Note an outcome with its first token.

        Args:
            pending: with its `ttft`.
            cached: tokens that the engine says it did not compute, or None.

        Returns:
            What the replica really did, to learn from; None where that is not known: a load that was
            foreseen and did not happen, or another one.
        """
        assert pending.ttft is not None
        replica = self._replicas.setdefault(pending.replica, _Replica())
        while len(self._replicas) > MOST_REPLICAS:
            del self._replicas[next(iter(self._replicas))]
        error = math.log(max(pending.ttft, 1e-6) / max(pending.foreseen, 1e-6))
        replica.bias += _FADE * (error - replica.bias)
        replica.spread += _FADE * (abs(error) - replica.spread)
        if cached is None:
            return pending.work
        work = pending.work
        replica.predicted += work.before
        replica.cached += cached
        slack = max(TOLERANCE * pending.tokens, TOLERANCE_TOKENS)
        agrees = abs(cached - work.before) <= slack
        replica.disagreeing += _FADE * (float(not agrees) - replica.disagreeing)
        if agrees:
            replica.agreed += 1
        elif cached < work.before:
            replica.less += 1
        else:
            replica.more += 1
        if not agrees and (work.memory_bytes or work.storage_bytes or cached > pending.device):
            # Bytes may have been moved of which nothing is known, or none although some were foreseen.
            return None
        cached = min(max(cached, 0), pending.tokens - 1)
        return Work(
            pending.tokens - cached,
            cached,
            work.memory_bytes,
            work.storage_bytes,
            work.wait,
            work.overlapped,
        )

    def disagreeing(self, replica: str) -> float:
        """Share of the last some twenty answers whose cached tokens differ from the index, 0 to 1."""
        found = self._replicas.get(replica)
        return found.disagreeing if found else 0.0

    def describe(self, replica: str) -> dict[str, Any]:
        """Counts, and the mean error of the first token's logarithm, signed and unsigned."""
        found = self._replicas.get(replica) or _Replica()
        return {
            "cached_as_predicted": found.agreed,
            "cached_less": found.less,
            "cached_more": found.more,
            "predicted_tokens": found.predicted,
            "cached_tokens": found.cached,
            "disagreeing": found.disagreeing,
            "ttft_bias": found.bias,
            "ttft_error": found.spread,
        }
