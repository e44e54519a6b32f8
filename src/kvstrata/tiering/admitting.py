"""Between memory and storage: which chunks are written, and when those that are not get another chance."""

import enum
from collections.abc import Sequence

import numpy as np

from kvstrata import metrics as m
from kvstrata.chunks.key import ChunkKey
from kvstrata.tiering.planner import RequestShape
from kvstrata.tiers.admission import Admission
from kvstrata.tiers.admission_sights import prefixes_of
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier

NOT_WORTH_IT, OPTED_OUT = "policy", "request"
"""Reasons for which a chunk is not written."""


class Keep(enum.Enum):
    """Where a request's chunks may be kept: what `kv_transfer_params.store` of a request says."""

    EVERYWHERE = "everywhere"
    """Not given, or true."""
    MEMORY = "memory"
    """"memory": not in storage."""
    NOWHERE = "nowhere"
    """False; also anything that is not understood, since who asks for less does not want more."""


def read_keep(value: object) -> Keep:
    """What the value of `kv_transfer_params.store` means; see `Keep`."""
    if value is None or value is True:
        return Keep.EVERYWHERE
    return Keep.MEMORY if value == Keep.MEMORY.value else Keep.NOWHERE


class Admitting:
    """Applies a policy to what memory holds.

    A chunk that is not written stays in memory as *withheld* (`Entry.withheld`), and is written when a
    later request uses it and the policy then admits it.

    Args:
        memory: where the chunks are.
        policy: what is worth a write.
        counters: where chunks that are not written are counted.
    """

    def __init__(self, memory: MemoryTier, policy: Admission, counters: m.Metrics) -> None:
        self._memory = memory
        self._policy = policy
        self._counters = counters
        self._seen: set[str] = set()
        self._private: set[ChunkKey] = set()

    def saw(self, request: str, shape: RequestShape, held: int) -> list[ChunkKey]:
        """A request is scheduled whose chunks may be kept everywhere.

        Args:
            request: its id; told again after a preemption it counts once.
            shape: what it is.
            held: tokens of it that the device or a tier held.

        Returns:
            Its chunks that memory withheld so far and that are to be written now.
        """
        if request in self._seen:
            return []
        self._seen.add(request)
        if self._policy.learns:
            finest = min(shape.groups, key=lambda group: group.geometry.tokens_per_chunk)
            self._policy.saw(prefixes_of(finest.keys), finest.geometry.tokens_per_chunk, held)
        return self._reconsider(shape)

    def ended(self, request: str) -> None:
        """The request is gone."""
        self._seen.discard(request)

    def keep_from_storage(self, keys: Sequence[ChunkKey]) -> None:
        """The device is about to give chunks that this request does not want in storage."""
        self._private.update(keys)

    def offered(self, keys: Sequence[ChunkKey]) -> None:
        """The device is about to give chunks; those that memory holds or awaits already are allowed."""
        if self._private:
            self._private.difference_update(keys)
        if self._policy.learns and keys:
            self._policy.offered(np.unique(prefixes_of(keys)))

    def admit(self, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
        """Of chunks that memory just got from the device, those that are to be written."""
        if self._private:
            private = self._private.intersection(keys)
            self._private -= private
            self._withhold(private, OPTED_OUT)
            keys = [key for key in keys if key not in private]
        if not self._policy.learns:
            return list(keys)
        worth = self._policy.admits(prefixes_of(keys)).tolist()
        self._withhold([k for k, w in zip(keys, worth, strict=True) if not w], NOT_WORTH_IT)
        return [key for key, w in zip(keys, worth, strict=True) if w]

    def forget(self, keys: Sequence[ChunkKey]) -> None:
        """These chunks will not come."""
        self._private.difference_update(keys)

    def _withhold(self, keys: "Sequence[ChunkKey] | set[ChunkKey]", reason: str) -> None:
        for key in keys:
            entry = self._memory.entry(key)
            assert entry is not None
            entry.withheld = True
        if keys:
            self._counters.count(m.NOT_ADMITTED, len(keys), (reason,))

    def _reconsider(self, shape: RequestShape) -> list[ChunkKey]:
        entry_of = self._memory.entry
        withheld = []
        for group in shape.groups:
            for key in group.keys:
                entry = entry_of(key)
                if (
                    entry is not None
                    and entry.withheld
                    and entry.state in (State.READY, State.PINNED)
                ):
                    withheld.append(key)
        if not withheld:
            return []
        worth = self._policy.admits(prefixes_of(withheld)).tolist()
        return [key for key, w in zip(withheld, worth, strict=True) if w]
