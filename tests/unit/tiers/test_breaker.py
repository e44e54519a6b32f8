"""A tier that keeps failing is set aside, tested now and then, and taken back."""

import hashlib
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.clock import ManualClock
from kvstrata.errors import BadReason
from kvstrata.tiers.breaker import BreakerTier
from kvstrata.tiers.circuit import FAILURES, LONGEST_PAUSE, PAUSE, Circuit
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.passing import PassingTier
from kvstrata.tiers.tier import Bad, Failed, Loaded, ReadOutcome, Stored, Tier, WriteOutcome

GEOMETRIES = {0: GroupGeometry(0, GroupKind.FULL, 16, 2, (100,))}
PATIENCE = 10.0


def key_of(number: int) -> ChunkKey:
    return make_key(hashlib.sha256(b"%d" % number).digest(), 0)


class SwitchedTier(PassingTier):
    """Answers what it is told to; counts what reaches it."""

    def __init__(self, inner: Tier) -> None:
        super().__init__(inner)
        self.read_answer: ReadOutcome | None = None
        self.write_answer: WriteOutcome | None = None
        self.reads = self.writes = 0

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        self.reads += 1
        return self.read_answer or super().read(key, into, first_block)

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        self.writes += 1
        return self.write_answer or super().write(key, payload, first_block)


class Log:
    def __init__(self) -> None:
        self.changes: list[tuple[str, bool]] = []
        self.refusals = 0

    def changed(self, operation: str, set_aside: bool, why: str) -> None:
        assert why
        self.changes.append((operation, set_aside))

    def refused(self, operation: str) -> None:
        self.refusals += 1


class Stand:
    """A breaker over a switched memory tier that holds chunk 0."""

    def __init__(self) -> None:
        self.clock, self.log = ManualClock(), Log()
        self.inner = SwitchedTier(MemoryTier(memoryview(bytearray(1 << 16)), GEOMETRIES))
        self.tier = BreakerTier(self.inner, self.clock, PATIENCE, self.log)
        self.payload = memoryview(bytes(range(200)))
        assert self.write(0) == Stored(200)

    def usable(self) -> bool:
        return self.tier.usable

    def read(self, number: int = 0) -> ReadOutcome:
        return self.tier.read(key_of(number), memoryview(bytearray(200)))

    def write(self, number: int) -> WriteOutcome:
        return self.tier.write(key_of(number), self.payload)


def test_reads_that_keep_failing_stop_and_come_back() -> None:
    stand = Stand()
    stand.inner.read_answer = Bad(BadReason.IO, "EIO")
    for _ in range(FAILURES):
        assert stand.usable()
        assert stand.read() == Bad(BadReason.IO, "EIO")
    assert not stand.usable()
    reached = stand.inner.reads
    for _ in range(100):
        outcome = stand.read()
        assert isinstance(outcome, Bad) and outcome.reason is BadReason.SET_ASIDE
    assert stand.inner.reads == reached and stand.log.refusals == 100
    assert stand.write(1) == Stored(200), "writes have a circuit of their own"
    stand.clock.advance(PAUSE)
    assert stand.usable()
    stand.inner.read_answer = None
    assert stand.read() == Loaded(200)
    assert stand.read() == Loaded(200)
    assert stand.log.changes == [("read", True), ("read", False)]


def test_a_full_disk_stops_writes_alone_and_a_failed_test_doubles_the_pause() -> None:
    stand = Stand()
    stand.inner.write_answer = Failed("ENOSPC", "full")
    for number in range(FAILURES):
        assert stand.write(number + 1) == Failed("ENOSPC", "full")
    assert stand.write(9).reason == "set_aside"  # type: ignore[union-attr]
    assert stand.usable() and stand.read() == Loaded(200)
    pause = PAUSE
    for _ in range(10):
        stand.clock.advance(pause * 0.99)
        assert stand.write(9).reason == "set_aside"  # type: ignore[union-attr]
        stand.clock.advance(pause * 0.02)
        assert stand.write(9).reason == "ENOSPC"  # type: ignore[union-attr]
        pause = min(2 * pause, LONGEST_PAUSE)
    assert stand.log.changes == [("write", True)], "one line, not one a test"


def test_misses_damaged_records_and_read_only_tiers_do_not_count() -> None:
    stand = Stand()
    for _ in range(3 * FAILURES):
        stand.read(7)
    stand.inner.read_answer = Bad(BadReason.CHECKSUM, "damaged")
    stand.inner.write_answer = Failed("read_only", "")
    for number in range(3 * FAILURES):
        stand.read()
        stand.write(number)
    assert stand.usable() and not stand.log.changes


class HangingProbes(SwitchedTier):
    """Time passes while it is asked."""

    clock: ManualClock

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        self.clock.advance(2 * PATIENCE)
        return super().probe(keys)


def test_probes_that_do_not_end_set_reads_aside_and_none_is_taken_for_a_miss() -> None:
    stand = Stand()
    hanging = HangingProbes(stand.inner)
    hanging.clock = stand.clock
    tier = BreakerTier(hanging, stand.clock, PATIENCE, stand.log)
    for _ in range(FAILURES):
        assert tier.usable
        assert tier.probe([key_of(0), key_of(9)]) == [True, False]
    assert not tier.usable
    assert tier.probe([key_of(9)]) == [True], "nobody knows"
    assert stand.log.changes == [("read", True)]
    stand.clock.advance(PAUSE)
    assert tier.read(key_of(0), memoryview(bytearray(200))) == Loaded(200)
    assert tier.usable


def test_one_success_forgives_earlier_failures() -> None:
    stand = Stand()
    for _ in range(5):
        stand.inner.read_answer = Bad(BadReason.IO, "EIO")
        for _ in range(FAILURES - 1):
            stand.read()
        stand.inner.read_answer = None
        assert stand.read() == Loaded(200)
    assert not stand.log.changes


def test_calls_that_do_not_end_open_the_circuit_while_they_run() -> None:
    circuit = Circuit(PATIENCE)
    tickets = [circuit.begin(0.0) for _ in range(FAILURES)]
    assert circuit.tries(PATIENCE)
    assert not circuit.tries(PATIENCE + 0.1)
    test = circuit.begin(PATIENCE + 0.1 + PAUSE)
    assert test is not None and circuit.begin(PATIENCE + 0.1 + PAUSE) is None, "one test at a time"
    for ticket in tickets:
        assert ticket is not None
        circuit.end(ticket, True, 12.0)
    assert circuit.begin(12.0) is None, "what came too late proves nothing"
    circuit.end(test, True, 12.5)
    assert circuit.begin(12.5) is not None


class CircuitMachine(RuleBasedStateMachine):
    """Whatever happens: closed lets all through, open at most one, and a quiet minute always a test."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.circuit = Circuit(PATIENCE)
        self.running: dict[int, float] = {}
        self.tests: set[int] = set()
        self.failures_since_success = 0

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0, 100.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        self.circuit.tries(self.now)
        was_open = self.circuit.open
        ticket = self.circuit.begin(self.now)
        assert ticket is not None or was_open
        if ticket is not None:
            self.running[ticket] = self.now
            if was_open:
                alive = [one for one in self.tests if self.now - self.running[one] <= PATIENCE]
                assert not alive, "two tests at once"
                self.tests.add(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), succeeded=st.sampled_from([True, False, None]))
    def end(self, data: st.DataObject, succeeded: bool | None) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.running)))
        in_time = self.now - self.running.pop(ticket) <= PATIENCE
        self.circuit.tries(self.now)
        before = self.circuit.open
        self.circuit.end(ticket, succeeded, self.now)
        if before and not self.circuit.open:
            assert ticket in self.tests and in_time and succeeded
        if not before and self.circuit.open:
            assert succeeded is False
        self.tests.discard(ticket)

    @precondition(lambda self: not self.running)
    @rule()
    def quiet(self) -> None:
        self.now += LONGEST_PAUSE
        assert self.circuit.tries(self.now)

    @invariant()
    def asking_changes_nothing(self) -> None:
        assert self.circuit.tries(self.now) == self.circuit.tries(self.now)


TestCircuitMachine = CircuitMachine.TestCase
TestCircuitMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
