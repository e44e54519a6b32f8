"""Promotions: bringing a request's chunks from storage into memory before it is told of a hit.

Everything here runs in the scheduler's thread and returns at once; files are touched only by the runner's
threads.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from kvstrata import metrics as m
from kvstrata.chunks.key import ChunkKey
from kvstrata.clock import Clock
from kvstrata.tiering.announcements import Announcements
from kvstrata.tiering.loads import Load, Phase, batches, measure_union, reserve
from kvstrata.tiering.planner import LoadPlan, RequestShape, junction, plan_load
from kvstrata.tiering.runner import Priority, Runner, Together
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import Loaded, ReadOutcome, Tier

logger = logging.getLogger(__name__)

MAX_SURVEYS = 4
"""Surveys for one request; what is still missing then is computed."""


class Promotions:
    """Every request's load.

    Args:
        memory: the hub.
        storage: a persistent tier, or None.
        runner: does the I/O; None only without storage.
        clock: for deadlines.
        read_deadline: seconds that a request waits for storage.
        counters: where everything is counted.
        size_of: payload bytes of a chunk.
        events: told of chunks that became readable in memory, and of those that storage lacks.
    """

    def __init__(
        self,
        memory: MemoryTier,
        storage: Tier | None,
        runner: Runner | None,
        clock: Clock,
        read_deadline: float,
        counters: m.Metrics,
        size_of: Callable[[ChunkKey], int],
        events: Announcements,
    ) -> None:
        self._memory = memory
        self.storage = storage
        self._runner = runner
        self._clock = clock
        self._read_deadline = read_deadline
        self._counters = counters
        self._size = size_of
        self._events = events
        self._loads: dict[str, Load] = {}
        self._waiters: dict[ChunkKey, list[Load]] = {}

    def poll(self, request: str, shape: RequestShape) -> bool:
        """Work towards a request's chunks being in memory.

        Args:
            request: its id.
            shape: what it is and what the device holds already.

        Returns:
            Whether the load is ready: lookups may be asked. False means: ask again next step.
        """
        if self._runner is not None:
            self._runner.poll()
        load = self._loads.get(request)
        if load is not None and not load.same_request(shape):
            self.drop(request)
            load = None
        if load is None:
            now = self._clock.now()
            load = Load(shape, deadline=now + self._read_deadline, started=now)
            self._loads[request] = load
            self._begin(load)
        elif load.phase is not Phase.READY:
            self._advance(load)
        return load.phase is Phase.READY

    def readable(self, request: str, key: ChunkKey) -> bool:
        """Whether a chunk can be loaded for this request now. Only after `poll` said ready."""
        load = self._loads.get(request)
        if load is not None and load.plan is not None and key in load.plan.beside:
            return True
        first_block = load.first_blocks.get(key, 0) if load is not None else 0
        return self._memory.readable(key, first_block)

    def boundary(self, request: str) -> int | None:
        """The boundary of the request's ready load in tokens, or None without one."""
        load = self._loads.get(request)
        return load.plan.boundary if load is not None and load.plan is not None else None

    def junction(self, request: str) -> int:
        """Tokens at which the request should keep its windowed groups for others; see `planner.junction`.

        0 for none. Only after `poll` said ready.
        """
        load = self._loads.get(request)
        if load is None or load.plan is None:
            return 0
        place = junction(load.shape, load.shared)
        return place if place > load.plan.boundary else 0

    def covers(self, request: str, boundary: int) -> bool:
        """Whether resuming at `boundary` reads only bytes that the ready load brought.

        A chunk that a window enters in its middle may hold only the blocks from there on; at another
        boundary than the planned one the window would enter it elsewhere.
        """
        load = self._loads.get(request)
        if load is None or load.plan is None:
            return False
        return not load.first_blocks or load.plan.boundary == boundary

    def origin(self, request: str, key: ChunkKey) -> str:
        """Tier that a ready load's chunk came from for this request: "memory" or the storage tier's name."""
        load = self._loads.get(request)
        if load is not None and key in load.promoted and self.storage is not None:
            return self.storage.name
        return self._memory.name

    def stored_tokens(self, request: str, computed: int, loaded: int) -> int:
        """How many of a request's loaded tokens came from storage for it (not from memory).

        Args:
            request: its id; its load is ready and not dropped yet.
            computed: tokens before the load.
            loaded: tokens that the load brings.
        """
        load = self._loads.get(request)
        if load is None or load.plan is None or not load.promoted:
            return 0
        covered: set[tuple[int, int]] = set()
        for part in load.plan.parts:
            chunk = part.geometry.tokens_per_chunk
            for index, key in enumerate(part.keys, part.start):
                if key in load.promoted:
                    covered.add((index * chunk, (index + 1) * chunk))
        if all(part.geometry.windowed for part in load.plan.parts):
            return loaded  # the end of the prefix stands for all of it
        end = computed + loaded
        return measure_union((max(low, computed), min(high, end)) for low, high in sorted(covered))

    def drop(self, request: str) -> None:
        """The request does not need its load any more: loaded, scheduled without, or gone."""
        load = self._loads.pop(request, None)
        if load is None:
            return
        self._memory.unpin(load.pinned)
        load.pinned = []
        self._stop_waiting(load)

    def drop_all(self) -> None:
        """Every load is void."""
        for request in list(self._loads):
            self.drop(request)

    def arrived(self, key: ChunkKey, *, readable: bool) -> None:
        """A chunk that was being written is readable now, or gone."""
        for load in self._waiters.pop(key, ()):
            load.waiting.discard(key)
            if readable and self._memory.readable(key, load.first_blocks.get(key, 0)):
                self._memory.pin([key])
                load.pinned.append(key)
            else:
                load.absent.add(key)

    # Inner workings.

    def _in_memory(self, load: Load) -> LoadPlan:
        """What memory alone allows; every chunk that the plan needs is readable."""
        memory = self._memory
        short: set[ChunkKey] = set()  # chunks that hold fewer blocks than the plan needs

        def presence(keys: Sequence[ChunkKey]) -> list[bool]:
            return [memory.held(key) and key not in short for key in keys]

        for _ in range(MAX_SURVEYS):
            plan = plan_load(load.shape, presence, exact=True)
            lacking = [key for key, block in plan.needs() if not memory.readable(key, block)]
            if not lacking:
                return plan
            short.update(lacking)
        return LoadPlan(load.shape.computed, ())

    def _begin(self, load: Load) -> None:
        best = plan_load(load.shape, lambda keys: [True] * len(keys))
        here = self._in_memory(load)
        wanted = best.needs()
        self._counters.count(m.LOOKUPS, len(wanted), (self._memory.name,))
        if self.storage is not None:
            missing = sum(not self._memory.readable(key, block) for key, block in wanted)
            self._counters.count(m.LOOKUPS, missing, (self.storage.name,))
        if (
            self.storage is None
            or here.boundary >= best.boundary
            or not self.storage.usable
            or (self._runner is not None and self._runner.exhausted)
        ):
            self._settle(load, here)
        else:
            self._survey(load)

    def _survey(self, load: Load) -> None:
        assert self._runner is not None and self.storage is not None
        load.phase = Phase.SURVEYING
        load.plan = None
        load.rounds += 1
        memory, storage, absent = self._memory, self.storage, frozenset(load.absent)
        events, survey = self._events, self._events.begin(storage)

        def presence(keys: Sequence[ChunkKey]) -> list[bool]:
            found = [memory.entry(key) is not None and key not in absent for key in keys]
            unknown = [i for i, here in enumerate(found) if not here and keys[i] not in absent]
            asked = [keys[i] for i in unknown]
            answers = storage.probe(asked)
            events.saw(survey, asked, answers)
            for i, here in zip(unknown, answers, strict=True):
                found[i] = here
            return found

        def done(plan: LoadPlan | None) -> None:
            events.end(survey)
            if load.phase is Phase.SURVEYING:
                load.plan = plan or LoadPlan(load.shape.computed, ())
                load.shared = max(load.shared, load.plan.shared)

        shape = load.shape
        job = self._runner.submit(Priority.SURVEY, lambda: plan_load(shape, presence), done)
        load.jobs = [(job, frozenset())]

    def _advance(self, load: Load) -> None:
        if self._clock.now() > load.deadline:
            self._counters.count(m.READ_DEADLINES)
            logger.warning(
                "storage did not answer within %g s (option read_deadline); the request is computed",
                self._read_deadline,
            )
            self._give_up(load)
            return
        if load.phase is Phase.SURVEYING and load.plan is not None:
            load.phase = Phase.RESERVING
        if load.phase is Phase.RESERVING:
            self._reserve(load)
        if load.phase is Phase.READING and not load.waiting:
            self._arrived_all(load)

    def _reserve(self, load: Load) -> None:
        assert load.plan is not None and self.storage is not None and self._runner is not None
        here = self._in_memory(load)
        if here.boundary >= load.plan.boundary:
            self._settle(load, here)
            return
        result = reserve(self._memory, load, self.storage.name)
        if result.blocked:
            self._again(load)
        elif result.no_room:
            if not self._memory.in_use:
                self._shorten(load)
        else:
            load.phase = Phase.READING
            for key in load.waiting:
                self._waiters.setdefault(key, []).append(load)
            self._submit_reads(load, result.reads)

    def _shorten(self, load: Load) -> None:
        """The plan does not fit the whole arena: plan again for as much as does."""
        assert load.plan is not None
        logger.warning(
            "a cached prefix of %d tokens does not fit the host arena of %d bytes; raise the option "
            "'memory' to load all of it",
            load.plan.boundary,
            self._memory.arena_bytes,
        )
        nbytes = sum(self._size(key) for key, _ in load.plan.needs())
        tokens = (
            (load.plan.boundary - load.shape.computed) * self._memory.arena_bytes // (2 * nbytes)
        )
        load.shape = replace(load.shape, max_load_tokens=tokens)
        self._again(load)

    def _submit_reads(self, load: Load, reads: Sequence[tuple[ChunkKey, int]]) -> None:
        assert self._runner is not None
        load.promoted.update(key for key, _ in reads)
        parts = list(batches(reads, self._size))
        together = Together(len(parts))
        load.jobs = [
            (
                self._runner.submit(Priority.READ, *self._read_job(part), together),
                frozenset(key for key, _ in part),
            )
            for part in parts
        ]

    def _read_job(
        self, batch: list[tuple[ChunkKey, int]]
    ) -> tuple[Callable[[], list[ReadOutcome]], Callable[[list[ReadOutcome] | None], None]]:
        storage = self.storage
        assert storage is not None
        targets = [(key, self._memory.view(key), first_block) for key, first_block in batch]

        def work() -> list[ReadOutcome]:
            return [storage.read(key, view, first_block) for key, view, first_block in targets]

        def done(outcomes: list[ReadOutcome] | None) -> None:
            for index, (key, first_block) in enumerate(batch):
                self._read_ended(storage, key, first_block, outcomes[index] if outcomes else None)

        return work, done

    def _read_ended(
        self, storage: Tier, key: ChunkKey, first_block: int, outcome: ReadOutcome | None
    ) -> None:
        entry = self._memory.entry(key)
        assert entry is not None
        if entry.state is State.EVICTING:
            self._memory.release(key)
            return
        if isinstance(outcome, Loaded):
            self._memory.commit(key, first_block)
            self.arrived(key, readable=True)
        else:
            self._memory.abort(key)
            self.arrived(key, readable=False)
        self._events.read(storage, key, outcome)

    def _arrived_all(self, load: Load) -> None:
        assert load.plan is not None
        if load.absent.isdisjoint(key for key, _ in load.plan.needs()):
            self._settle(load, load.plan)
        else:
            self._again(load)

    def _again(self, load: Load) -> None:
        self._memory.unpin(load.pinned)
        load.pinned = []
        if load.rounds < MAX_SURVEYS and self.storage is not None and self.storage.usable:
            self._survey(load)
        else:
            self._settle(load, self._in_memory(load))

    def _give_up(self, load: Load) -> None:
        """Stop waiting for storage; use what memory has."""
        self._stop_waiting(load)
        self._memory.unpin(load.pinned)
        load.pinned = []
        self._settle(load, self._in_memory(load))

    def _stop_waiting(self, load: Load) -> None:
        for key in load.waiting:
            waiters = self._waiters.get(key, [])
            if load in waiters:
                waiters.remove(load)
            if not waiters:
                self._waiters.pop(key, None)
        load.waiting.clear()
        for job, keys in load.jobs:
            job.cancelled = keys.isdisjoint(self._waiters)
        load.jobs = []

    def _settle(self, load: Load, plan: LoadPlan) -> None:
        """The load is ready with `plan`, whose chunks are all readable."""
        needs = plan.needs()
        self._memory.pin([key for key, _ in needs])
        self._memory.unpin(load.pinned)
        load.pinned = [key for key, _ in needs]
        load.first_blocks = {key: block for key, block in needs if block}
        load.plan = plan
        load.shared = max(load.shared, plan.shared)
        load.phase = Phase.READY
        self._counters.observe(m.LOAD_WAIT, self._clock.now() - load.started)
        promoted = sum(key in load.promoted for key in load.pinned)
        self._counters.count(m.HITS, len(needs) - promoted, (self._memory.name,))
        if self.storage is not None:
            self._counters.count(m.HITS, promoted, (self.storage.name,))
