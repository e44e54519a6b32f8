"""Small loads from tiers that are avoided, so that a wrong belief about them does not last.

A tier that is thought to be slower than computing is never loaded from, and so nothing would ever be learned
of it. From time to time one request loads a part of what it could, small enough to take `PROBE_SECONDS` at
the rates that are believed. What it teaches decides when the next one is due: soon after a surprise, later
and later without.
"""

import math

import msgspec

from kvstrata.routing.decision import Reuse
from kvstrata.routing.pricing import Standing

PROBE_SECONDS = 0.5
SOONEST = 5.0
LATEST = 640.0
SURPRISE = 0.4
"""Logarithm of actual to foreseen seconds from which a probe has taught something."""


class Way(msgspec.Struct, frozen=True, gc=False):
    """A small load.

    Attributes:
        source: the tier that it tries.
        tokens: where the request resumes.
        memory_bytes, storage_bytes: to be loaded.
        load_cap: `max_load_tokens` that makes the engine take no more.
    """

    source: str
    tokens: int
    memory_bytes: int
    storage_bytes: int
    load_cap: int


class Probes:
    """When which tier is tried again."""

    def __init__(self) -> None:
        self._due = {"memory": math.inf, "storage": math.inf}
        self._interval = {"memory": SOONEST, "storage": SOONEST}

    def way(
        self,
        reuse: Reuse | None,
        here: Standing,
        device: int,
        boundary: int,
        limit: int,
        now: float,
    ) -> Way | None:
        """A small load instead of the way that was chosen, or None when nothing is to be tried.

        Args:
            reuse: what the replica's index says.
            here: the replica.
            device: tokens on its device.
            boundary: tokens at which the chosen way resumes.
            limit: tokens beyond which nothing may be loaded.
            now: seconds.
        """
        if reuse is None or device > reuse.device.tokens:
            return None  # bytes are known from the index's own boundary on
        for tier, low, high in (
            ("memory", reuse.device, reuse.memory),
            ("storage", reuse.memory, reuse.storage),
        ):
            end = min(high.tokens, limit)
            if boundary > low.tokens or end <= max(low.tokens, device) or now < self._due[tier]:
                continue
            in_storage = tier == "storage"
            moved = high.storage_bytes if in_storage else high.memory_bytes
            believed = (here.per_stored_byte if in_storage else here.per_byte) * moved
            share = min(PROBE_SECONDS / believed, 1.0) if believed > 0 else 1.0
            share = min(share, (end - low.tokens) / (high.tokens - low.tokens))
            tokens = low.tokens + int(share * (high.tokens - low.tokens))
            if tokens <= boundary:
                continue
            memory_bytes = high.memory_bytes if in_storage else int(share * high.memory_bytes)
            storage_bytes = int(share * high.storage_bytes) if in_storage else 0
            return Way(tier, tokens, memory_bytes, storage_bytes, tokens - device)
        return None

    def used(self, source: str, now: float) -> None:
        """A request was sent on its way: the tiers that it loads from need no probe for a while."""
        for tier in ("memory", "storage"):
            if source in (tier, "storage") or self._due[tier] == math.inf:
                self._due[tier] = now + self._interval[tier]

    def told(self, source: str, foreseen: float, actual: float | None, now: float) -> None:
        """What a probe brought.

        Args:
            source: its tier.
            foreseen: seconds to the first token.
            actual: the same, or None if it loaded nothing.
            now: seconds.
        """
        surprise = 0.0
        if actual is not None:
            surprise = abs(math.log(max(actual, 1e-6) / max(foreseen, 1e-6)))
        if surprise > SURPRISE:
            self._interval[source] = SOONEST
        else:
            self._interval[source] = min(2 * self._interval[source], LATEST)
        self._due[source] = now + self._interval[source]
