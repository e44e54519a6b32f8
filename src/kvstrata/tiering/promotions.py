"""Promotions: bringing a request's chunks from storage into memory before it is told of a hit.

Everything here runs in the scheduler's thread and returns at once; files are touched only by the runner's
threads.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from kvstrata import metrics as m
from kvstrata.chunks.key import ChunkKey
from kvstrata.clock import Clock
from kvstrata.tiering.announcements import Announcements
from kvstrata.tiering.loads import Load, Phase, Read, batches, stored_tokens, timed_read
from kvstrata.tiering.pace import Pace
from kvstrata.tiering.planner import LoadPlan, RequestShape, junction, plan_load
from kvstrata.tiering.reserving import Reserving, plan_in_memory
from kvstrata.tiering.runner import Priority, Runner, Together
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import Loaded, ReadOutcome, Tier

logger = logging.getLogger(__name__)

MAX_SURVEYS = 4
"""Surveys for one request; what is still missing then is computed."""


class Promotions:
    """Every request's load.

    Attributes:
        storage: the tier in use.
        granted: of each request whose load is ready, the chunks that it may be told to have; see `readable`.

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
        self.granted: dict[str, frozenset[ChunkKey]] = {}
        self._loads: dict[str, Load] = {}
        self._waiters: dict[ChunkKey, list[Load]] = {}
        self._reserving = Reserving(memory)
        self._pace = Pace()

    @property
    def reserving(self) -> bool:
        """Whether the next step can go on with a load at once: nothing has to end for it first."""
        return self._reserving.under_way

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
        ready = load.phase is Phase.READY
        if ready and load.plan is not None and request not in self.granted:
            self.granted[request] = load.plan.beside.union(load.pinned)
        return ready

    def readable(self, request: str, key: ChunkKey) -> bool:
        """Whether a chunk can be loaded for this request now. Only after `poll` said ready."""
        if key in self.granted.get(request, ()):
            return True
        load = self._loads.get(request)
        first_block = load.first_blocks.get(key, 0) if load is not None else 0
        return self._memory.readable(key, first_block)

    def boundary(self, request: str) -> int | None:
        """The boundary of the request's ready load in tokens, or None without one."""
        load = self._loads.get(request)
        return load.plan.boundary if load is not None and load.plan is not None else None

    def shared(self, request: str) -> int:
        """Tokens of the request that the full groups alone held; 0 without a load. See `LoadPlan.shared`."""
        return self._loads[request].shared if request in self._loads else 0

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
        return stored_tokens(load, computed, loaded) if load is not None else 0

    def drop(self, request: str) -> None:
        """The request does not need its load any more: loaded, scheduled without, or gone."""
        load = self._loads.pop(request, None)
        self.granted.pop(request, None)
        if load is None:
            return
        self._let_go(load)

    def drop_all(self) -> None:
        """Every load is void."""
        for request in list(self._loads):
            self.drop(request)

    def arrived(self, keys: Sequence[ChunkKey], *, readable: bool) -> None:
        """Chunks that were being written are readable now, or gone."""
        if not self._waiters:
            return
        pinned: dict[Load, list[ChunkKey]] = {}
        for key in keys:
            for load in self._waiters.pop(key, ()):
                load.waiting.discard(key)
                if readable and self._memory.readable(key, load.first_blocks.get(key, 0)):
                    pinned.setdefault(load, []).append(key)
                else:
                    load.absent.add(key)
        for load, readable_keys in pinned.items():
            self._memory.pin(readable_keys)
            load.pinned.extend(readable_keys)

    # Inner workings.

    def _begin(self, load: Load) -> None:
        best = plan_load(load.shape, lambda keys: [True] * len(keys))
        wanted = best.keys()
        lacking = self._memory.lacking(wanted, best.first_blocks())
        whole = not lacking and all(map(self._memory.held, best.beside))
        here = best if whole else plan_in_memory(self._memory, load.shape)
        self._counters.count(m.LOOKUPS, len(wanted), (self._memory.name,))
        if self.storage is not None:
            missing = 0 if here.boundary >= best.boundary else len(lacking)
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
        if load.todo is None:
            here = plan_in_memory(self._memory, load.shape)
            if here.boundary >= load.plan.boundary:
                self._settle(load, here)
                return
            self._reserving.begin(load)
            load.due = self._pace.due(load.started, load.plan.nbytes, load.deadline)
        result = self._reserving.reserve(load, self.storage.name)
        if result.blocked:
            self._again(load)
        elif result.no_room:
            if self._reserving.hopeless(load):
                self._shorten(load)
            elif not load.pinned and not load.waiting:
                self._reserving.end(load)  # what is in memory may be other chunks by the next step
        else:
            for key in result.waits:
                self._waiters.setdefault(key, []).append(load)
            self._submit_reads(load, result.reads)
            if not load.todo:
                self._reserving.end(load)
                load.phase = Phase.READING

    def _shorten(self, load: Load) -> None:
        """The plan does not fit the whole arena: plan again for as much as does."""
        assert load.plan is not None
        logger.warning(
            "a cached prefix of %d tokens does not fit the host arena of %d bytes; raise the option "
            "'memory' to load all of it",
            load.plan.boundary,
            self._memory.arena_bytes,
        )
        nbytes = sum(map(self._size, load.plan.keys()))
        tokens = (
            (load.plan.boundary - load.shape.computed) * self._memory.arena_bytes // (2 * nbytes)
        )
        load.shape = replace(load.shape, max_load_tokens=tokens)
        self._again(load)

    def _submit_reads(self, load: Load, reads: Sequence[tuple[ChunkKey, int]]) -> None:
        assert self._runner is not None
        load.promoted.update(key for key, _ in reads)
        parts = batches(reads, [self._size(key) for key, _ in reads])
        together = Together(len(parts))
        jobs = self._runner.submit_all(
            Priority.READ, list(map(self._read_job, parts)), together, load.due
        )
        load.jobs += [
            (job, frozenset(key for key, _ in part)) for job, part in zip(jobs, parts, strict=True)
        ]

    def _read_job(
        self, batch: list[tuple[ChunkKey, int]]
    ) -> tuple[Callable[[], Read], Callable[[Read | None], None]]:
        storage = self.storage
        assert storage is not None
        view, clock = self._memory.view, self._clock

        def work() -> Read:
            targets = [(key, view(key), first_block) for key, first_block in batch]
            return timed_read(storage, targets, clock)

        return work, partial(self._reads_ended, storage, batch)

    def _reads_ended(
        self, storage: Tier, batch: Sequence[tuple[ChunkKey, int]], read: Read | None
    ) -> None:
        outcomes: Sequence[ReadOutcome | None] = [None] * len(batch)
        if read is not None:
            outcomes = read.outcomes
            self._pace.took(read.nbytes, read.seconds)
        memory = self._memory
        ended = []
        for need, outcome in zip(batch, outcomes, strict=True):
            entry = memory.entry(need[0])
            assert entry is not None
            if entry.state is State.EVICTING:
                memory.release(need[0])
            else:
                ended.append((need, outcome))
        loaded = [need for need, outcome in ended if isinstance(outcome, Loaded)]
        failed = [need[0] for need, outcome in ended if not isinstance(outcome, Loaded)]
        memory.commit_all(loaded)
        self.arrived([key for key, _ in loaded], readable=True)
        for key in failed:
            memory.abort(key)
        self.arrived(failed, readable=False)
        self._events.read(storage, [(key, outcome) for (key, _), outcome in ended])

    def _arrived_all(self, load: Load) -> None:
        assert load.plan is not None
        if load.absent.isdisjoint(load.plan.keys()):
            self._settle(load, load.plan)
        else:
            self._again(load)

    def _again(self, load: Load) -> None:
        self._let_go(load)
        if load.rounds < MAX_SURVEYS and self.storage is not None and self.storage.usable:
            self._survey(load)
        else:
            self._settle(load, plan_in_memory(self._memory, load.shape))

    def _give_up(self, load: Load) -> None:
        """Stop waiting for storage; use what memory has."""
        self._let_go(load)
        self._settle(load, plan_in_memory(self._memory, load.shape))

    def _let_go(self, load: Load) -> None:
        """The load keeps nothing in memory and waits for nothing."""
        self._memory.unpin(load.pinned)
        load.pinned = []
        for key in load.waiting:
            waiters = self._waiters.get(key, [])
            if load in waiters:
                waiters.remove(load)
            if not waiters:
                self._waiters.pop(key, None)
        load.waiting.clear()
        self._reserving.end(load)
        for job, keys in load.jobs:
            job.cancelled = keys.isdisjoint(self._waiters)
        load.jobs = []

    def _settle(self, load: Load, plan: LoadPlan) -> None:
        """The load is ready with `plan`, whose chunks are all readable."""
        needs = plan.keys()
        self._memory.pin(needs)
        self._memory.unpin(load.pinned)
        load.pinned = needs
        load.first_blocks = plan.first_blocks()
        load.plan = plan
        load.shared = max(load.shared, plan.shared)
        load.phase = Phase.READY
        self._counters.observe(m.LOAD_WAIT, self._clock.now() - load.started)
        promoted = len(load.promoted.intersection(needs)) if load.promoted else 0
        self._counters.count(m.HITS, len(needs) - promoted, (self._memory.name,))
        if self.storage is not None:
            self._counters.count(m.HITS, promoted, (self.storage.name,))
