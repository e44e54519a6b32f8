"""A storage tier that keeps within a bound, together with all others that use the same root."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstrata.chunks.key import ChunkKey
from kvstrata.clock import Clock
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.keeper import Done, Keeper, keys_in
from kvstrata.tiers.passing import PassingTier
from kvstrata.tiers.recency import Recency
from kvstrata.tiers.shares import Bound
from kvstrata.tiers.tier import Failed, Tier, Transfer, WriteOutcome

CAPACITY = "capacity"
"""Reason of a write that would exceed the bound."""


class BoundedTier(PassingTier):
    """Writes only what there is room for; see `Keeper` for how room is made.

    Args:
        inner: the tier, with all that may keep it from writing.
        directory: of its namespace, in the root that is bounded.
        bound: of the root; may be none, where only what is past its time goes.
        chunk: bytes of the largest chunk that is written.
        clock: for the pace.
        watch: told after each look at the root; called by the keeper's thread.
        unused_after: seconds after which a namespace that nobody uses goes first; 0 for never.
        recency: told what is known of the root.
        sharing: who may use what is written down of the root.
    """

    def __init__(
        self,
        inner: Tier,
        directory: Path,
        bound: Bound,
        chunk: int,
        clock: Clock,
        watch: Callable[[Done], None],
        *,
        unused_after: float = 0.0,
        recency: Recency | None = None,
        sharing: Sharing = Sharing.USER,
    ) -> None:
        super().__init__(inner)
        self._directory = str(directory)
        self._watch = watch
        self._guard = threading.Lock()
        self._removed: list[ChunkKey] = []
        self._keeper = Keeper(
            directory.parent,
            bound,
            clock,
            self._told,
            chunk,
            own=directory,
            unused_after=unused_after,
            recency=recency,
            sharing=sharing,
        )
        self._keeper.start()

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        (outcome,) = self.write_many([(key, payload, first_block)])
        return outcome

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`."""
        full = Failed(CAPACITY, "the storage's bound is reached, and room is being made")
        admitted = [self._keeper.admit(len(payload)) for _, payload, _ in given]
        passed = [one for one, fits in zip(given, admitted, strict=True) if fits]
        try:
            outcomes = iter(self.inner.write_many(passed))
        finally:
            self._keeper.landed(sum(len(payload) for _, payload, _ in passed))
        return [next(outcomes) if fits else full for fits in admitted]

    def take_removed(self) -> list[ChunkKey]:
        """See `Tier.take_removed`."""
        with self._guard:
            removed, self._removed = self._removed, []
        return removed

    def close(self) -> None:
        """See `Tier.close`."""
        self._keeper.stop()
        self.inner.close()

    def _told(self, done: Done) -> None:
        keys = keys_in(done.removed, self._directory)
        with self._guard:
            self._removed += keys
        self._watch(done)
