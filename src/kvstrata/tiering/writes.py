"""Write-behind: chunks that memory has and storage should have. Bounded; drops before it delays."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from kvstrata import metrics as m
from kvstrata.chunks.key import ChunkKey
from kvstrata.chunks.record import NO_TENANT
from kvstrata.clock import Clock
from kvstrata.tiering.loads import batches
from kvstrata.tiering.pace import Pace
from kvstrata.tiering.runner import Priority, Runner
from kvstrata.tiers.entry import Entry
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import SET_ASIDE, Failed, Present, Stored, Tier, WriteOutcome

logger = logging.getLogger(__name__)

Written = tuple[Sequence[WriteOutcome], float]
"""What became of a job's chunks, and the seconds that it took."""
LOGGED_FAILURES = 1
"""Failures of one reason that are logged in full; the metric counts the rest."""


WITHIN_SECONDS = 10.0
"""What waits to be written is as much as a thread was seen to write in that time, which is what a graceful
stop waits too: where storage is slow, chunks that would keep their places for minutes are dropped at once."""
LEAST_BYTES = 16 << 20
"""May always wait, however slow storage was, so that it is noticed when it is quicker again."""


class WriteBehind:
    """Copies chunks from memory to a storage tier when threads are free.

    A chunk is pinned in memory from `submit` until its write has ended, so its bytes cannot change
    under the writer.

    Args:
        memory: where the bytes are.
        queue_bytes: payload bytes that may be waiting at most, see also `limit`; beyond that, chunks are
            dropped and counted.
        counters: where drops are counted.
        on_written: told which chunks a storage tier holds now.
        size_of: payload bytes of a chunk.
        clock: to measure how quickly storage takes them.
    """

    def __init__(
        self,
        memory: MemoryTier,
        queue_bytes: int,
        counters: m.Metrics,
        on_written: Callable[[Tier, Sequence[ChunkKey]], None],
        size_of: Callable[[ChunkKey], int],
        clock: Clock,
    ) -> None:
        self._memory = memory
        self._queue_bytes = queue_bytes
        self._counters = counters
        self._on_written = on_written
        self._size_of = size_of
        self._clock = clock
        self._pace = Pace()
        self._active: dict[ChunkKey, int] = {}
        self._backlog = 0
        self._failures: Counter[str] = Counter()

    def submit(self, keys: Sequence[ChunkKey], storage: Tier, runner: Runner) -> None:
        """Queue readable chunks, in the order in which they should become visible.

        Those for which there is no room are withheld, and so is what fails to be written: they get another
        chance when a request uses them.
        """
        accepted = self._admit([key for key in keys if key not in self._active])
        if not accepted:
            return
        chunks = list(zip(accepted, self._memory.pin(accepted), strict=True))
        parts = batches(chunks, list(accepted.values()))
        runner.submit_all(Priority.WRITE, [self._job(part, storage) for part in parts])

    @property
    def limit(self) -> float:
        """Bytes that may be waiting now."""
        return min(self._queue_bytes, max(self._pace.rate * WITHIN_SECONDS, LEAST_BYTES))

    def active(self, key: ChunkKey) -> bool:
        """Whether a thread may be reading the chunk's place to write it to storage."""
        return key in self._active

    def _admit(self, keys: list[ChunkKey]) -> dict[ChunkKey, int]:
        """Those for which there is room in the queue, with their bytes; the others are withheld."""
        accepted = dict(zip(keys, map(self._size_of, keys), strict=True))
        total, limit = sum(accepted.values()), self.limit
        if self._backlog + total > limit:
            offered, accepted, total = accepted, {}, 0
            for key, size in offered.items():
                if self._backlog + total + size <= limit:
                    accepted[key] = size
                    total += size
            self._counters.count(m.WRITES_DROPPED, len(offered) - len(accepted), ("queue_full",))
            for key in offered.keys() - accepted.keys():
                self._entry(key).withheld = True
        for entry in map(self._memory.entry, accepted):
            assert entry is not None
            entry.withheld = False
        self._active.update(accepted)
        self._backlog += total
        return accepted

    def _job(
        self, batch: list[tuple[ChunkKey, int]], storage: Tier
    ) -> tuple[Callable[[], Written], Callable[[Written | None], None]]:
        """A write of chunks, given with the offsets of their slots.

        What only the write needs to know of them is looked up by the thread that does it: while they are
        pinned nothing of it changes.
        """
        memory, clock = self._memory, self._clock
        keys = [key for key, _ in batch]

        def work() -> Written:
            entries = [self._entry(key) for key in keys]
            sources = [
                (key, memory.view_at(key, offset), entry.first_block)
                for (key, offset), entry in zip(batch, entries, strict=True)
            ]
            marks = {
                key: entry.owner
                for key, entry in zip(keys, entries, strict=True)
                if entry.owner != NO_TENANT
            }
            begun = clock.now()
            if marks:
                storage.attribute(marks)
            try:
                return storage.write_many(sources), clock.now() - begun
            finally:
                if marks:
                    storage.attribute(dict.fromkeys(marks, NO_TENANT))

        return work, partial(self._ended, storage, keys)

    def _ended(self, storage: Tier, keys: Sequence[ChunkKey], ended: Written | None) -> None:
        outcomes, seconds = ended or ([], 0.0)
        self._pace.took(sum(one.nbytes for one in outcomes if isinstance(one, Stored)), seconds)
        for key in keys:
            self._backlog -= self._active.pop(key)
        written = [
            key
            for key, outcome in zip(keys, outcomes, strict=False)
            if isinstance(outcome, Stored | Present)
        ]
        for key, outcome in zip(keys, outcomes, strict=False):
            if isinstance(outcome, Failed):
                self._failed(outcome)
                self._entry(key).withheld = True
        # An abandoned chunk keeps its place until the cache releases it.
        readable = [key for key in keys if self._state(key) is State.PINNED]
        self._memory.unpin(readable)
        if written:
            self._on_written(storage, written)

    def _entry(self, key: ChunkKey) -> Entry:
        entry = self._memory.entry(key)
        assert entry is not None
        return entry

    def _state(self, key: ChunkKey) -> State | None:
        entry = self._memory.entry(key)
        return entry.state if entry is not None else None

    def _failed(self, outcome: Failed) -> None:
        self._counters.count(m.WRITES_DROPPED, 1, (outcome.reason,))
        if outcome.reason == SET_ASIDE:
            return  # whoever set the tier aside has said so
        self._failures[outcome.reason] += 1
        if self._failures[outcome.reason] <= LOGGED_FAILURES:
            logger.warning(
                "cannot store chunks: %s (%s); serving goes on, further failures of this kind are only "
                "counted (metric kvstrata_writes_dropped)",
                outcome.reason,
                outcome.detail,
            )
