"""What a cache tells of its tiers: chunks that became readable and chunks that went, in that order.

Whoever follows the events from an empty cache on knows at every moment what memory holds, and of storage
what this engine wrote, loaded or failed to find there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvstrata.chunks.key import ChunkKey, group_of
from kvstrata.errors import CONTENT_REASONS
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import Bad, Loaded, Missing, ReadOutcome, Tier


@dataclass(frozen=True, slots=True)
class TierEvent:
    """Chunks that became readable in a tier, or left it; `owner` is the tier's."""

    tier: str
    keys: tuple[ChunkKey, ...]
    removed: bool
    owner: str | None = None


@dataclass(slots=True, eq=False)
class Survey:
    """What one survey of storage did not find; filled in by an I/O thread.

    Attributes:
        storage: the tier that is asked.
        holes: by full group, the first key of the prefix that is not there.
        gone: keys that are not there although they were announced.
        overtaken: keys written since the survey began: they may have been asked for before that.
    """

    storage: Tier
    holes: dict[int, ChunkKey] = field(default_factory=dict)
    gone: list[ChunkKey] = field(default_factory=list)
    overtaken: set[ChunkKey] = field(default_factory=set)


class Announcements:
    """Collects events; all methods but `saw` run in the scheduler's thread.

    Args:
        memory: the hub, which says what it evicted.
        storage: the storage tier in use, or None.
        full_groups: groups of which a boundary needs the whole prefix.
        announced: whether followers may believe that storage holds a chunk; called from any thread. None
            when nobody follows: then nothing is told of what storage lacks.
    """

    def __init__(
        self,
        memory: MemoryTier,
        storage: Tier | None,
        full_groups: Iterable[int],
        announced: Callable[[ChunkKey], bool] | None,
    ) -> None:
        self._memory = memory
        self._storage = storage
        self._full = frozenset(full_groups)
        self._announced = announced
        self._events: list[TierEvent] = []
        self._surveys: list[Survey] = []

    @property
    def waiting(self) -> bool:
        """Whether `take` would give anything, evictions aside."""
        return bool(self._events)

    def take(self) -> list[TierEvent]:
        """Events since the last call."""
        self.evicted()
        events, self._events = self._events, []
        return events

    def evicted(self, more: Sequence[ChunkKey] = ()) -> None:
        """Memory has evicted chunks, or these became unreadable."""
        keys = [*self._memory.take_evicted(), *more]
        if keys:
            self._tell(self._memory, keys, removed=True)

    def stored(self, keys: Sequence[ChunkKey]) -> None:
        """The device's bytes are readable in memory."""
        self.evicted()  # a chunk may have been evicted and stored again since the last step
        self._tell(self._memory, keys, removed=False)

    def written(self, storage: Tier, keys: Sequence[ChunkKey]) -> None:
        """Storage holds these chunks now."""
        for survey in self._surveys:
            survey.overtaken.update(keys)
        if storage is self._storage:
            self._tell(storage, keys, removed=False)

    def removed(self, storage: Tier) -> None:
        """Tell what storage itself removed since the last call; before writes that ended meanwhile."""
        keys = storage.take_removed()
        if keys and storage is self._storage and self._announced is not None:
            self._tell(storage, keys, removed=True)

    def read(self, storage: Tier, ended: Sequence[tuple[ChunkKey, ReadOutcome | None]]) -> None:
        """Reads from storage into memory have ended; None for one that was not done."""
        loaded = [key for key, outcome in ended if isinstance(outcome, Loaded)]
        if loaded:
            self.stored(loaded)
        if storage is not self._storage or self._announced is None:
            return
        if loaded:
            # Whoever wrote them may have told so before this engine's followers listened.
            self._tell(storage, loaded, removed=False)
        gone = [
            key
            for key, outcome in ended
            if isinstance(outcome, Missing)
            or (isinstance(outcome, Bad) and outcome.reason in CONTENT_REASONS)
        ]
        if gone:
            self._tell(storage, gone, removed=True)

    def begin(self, storage: Tier) -> Survey:
        """A survey of storage is about to be made."""
        survey = Survey(storage)
        self._surveys.append(survey)
        return survey

    def saw(self, survey: Survey, keys: Sequence[ChunkKey], found: Sequence[bool]) -> None:
        """A survey asked storage for keys of one group, in the order of the prompt; any thread.

        A search asks for fewer and fewer keys, so of a full group the last hole it sees is the first.
        Of what else is missing only what somebody believes in is worth telling: of a new prompt nearly
        everything is missing.
        """
        if self._announced is None:
            return
        missing = [key for key, here in zip(keys, found, strict=True) if not here]
        if missing and group_of(missing[0]) in self._full:
            survey.holes[group_of(missing[0])] = missing[0]
        survey.gone.extend(filter(self._announced, missing))

    def end(self, survey: Survey) -> None:
        """The survey has ended, or was not made."""
        self._surveys.remove(survey)
        if survey.storage is not self._storage:
            return
        gone = dict.fromkeys([*survey.holes.values(), *survey.gone])
        keys = [key for key in gone if key not in survey.overtaken]
        if keys:
            self._tell(survey.storage, keys, removed=True)

    def reset(self, storage: Tier | None) -> None:
        """Another storage tier is in use from now on; of the old one nothing more is told."""
        self._storage = storage

    def _tell(self, tier: Tier, keys: Sequence[ChunkKey], *, removed: bool) -> None:
        self._events.append(TierEvent(tier.name, tuple(keys), removed, tier.owner))
