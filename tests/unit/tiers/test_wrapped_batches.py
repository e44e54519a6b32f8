"""Several chunks at once through whatever wraps a tier: each is counted, failed or refused by itself."""

import hashlib

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.clock import ManualClock
from kvstrata.errors import BadReason
from kvstrata.testing.faults import CorruptingTier, FailingTier, Operation, SlowTier
from kvstrata.tiers.breaker import BreakerTier
from kvstrata.tiers.circuit import FAILURES
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.metered import MeteredTier
from kvstrata.tiers.passing import PassingTier
from kvstrata.tiers.tier import (
    SET_ASIDE,
    Bad,
    Failed,
    Loaded,
    Missing,
    ReadOutcome,
    Stored,
    Tier,
    Transfer,
    WriteOutcome,
)

GEOMETRIES = {0: GroupGeometry(0, GroupKind.FULL, 16, 2, (100,))}
KEYS = [make_key(hashlib.sha256(b"%d" % one).digest(), 0) for one in range(4)]
PAYLOAD = memoryview(bytes(range(200)))


class Counting(MemoryTier):
    """Notes how it was asked."""

    def __init__(self) -> None:
        super().__init__(memoryview(bytearray(1 << 20)), GEOMETRIES)
        self.calls: list[int] = []

    def read_many(self, wanted: list[Transfer]) -> list[ReadOutcome]:  # type: ignore[override]
        self.calls.append(len(wanted))
        return super().read_many(wanted)

    def write_many(self, given: list[Transfer]) -> list[WriteOutcome]:  # type: ignore[override]
        self.calls.append(len(given))
        return super().write_many(given)


class Watch:
    def __init__(self) -> None:
        self.changes: list[tuple[str, bool, str]] = []
        self.refusals = 0

    def changed(self, operation: str, set_aside: bool, why: str) -> None:
        self.changes.append((operation, set_aside, why))

    def refused(self, operation: str) -> None:
        self.refusals += 1


def read(tier: Tier, keys: list[ChunkKey] = KEYS) -> list[ReadOutcome]:
    return tier.read_many([(key, memoryview(bytearray(200)), 0) for key in keys])


def write(tier: Tier) -> list[WriteOutcome]:
    return tier.write_many([(key, PAYLOAD, 0) for key in KEYS])


def test_they_are_passed_on_together() -> None:
    inner = Counting()
    wrapped = MeteredTier(PassingTier(inner), ManualClock(), lambda *_: None)
    tier = SlowTier(BreakerTier(wrapped, ManualClock(), 10.0, Watch()), 0.0)
    assert write(tier) == [Stored(200)] * 4
    assert read(tier) == [Loaded(200)] * 4
    assert inner.calls == [4, 4]


def test_who_changes_one_read_changes_each_of_several() -> None:
    class Blind(PassingTier):
        def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
            return Missing() if key == KEYS[1] else super().read(key, into, first_block)

    inner = Counting()
    tier = Blind(inner)
    write(tier)
    assert read(tier) == [Loaded(200), Missing(), Loaded(200), Loaded(200)]
    assert inner.calls == [4]


def test_each_chunk_is_reported_with_its_share_of_the_time() -> None:
    clock = ManualClock()
    told: list[tuple[str, object, float]] = []
    slow = SlowTier(Counting(), 2.0, clock.advance)
    tier = MeteredTier(slow, clock, lambda *one: told.append(one))
    write(tier)
    tier.remove(KEYS[2])
    told.clear()
    outcomes = read(tier)
    assert told == [("read", outcome, 0.5) for outcome in outcomes]
    assert outcomes[2] == Missing()
    assert tier.read_many([]) == []


def test_each_chunk_fails_by_itself() -> None:
    def plan(operation: Operation, key: ChunkKey) -> bool:
        return operation is Operation.WRITE and key == KEYS[0]

    failing = FailingTier(Counting(), plan)
    outcomes = write(failing)
    assert isinstance(outcomes[0], Failed) and outcomes[1:] == [Stored(200)] * 3
    bad, missing, *good = read(
        CorruptingTier(failing, lambda key: key == KEYS[1]), [KEYS[1], KEYS[0], *KEYS[2:]]
    )
    assert isinstance(bad, Bad) and missing == Missing() and good == [Loaded(200)] * 2


def test_a_batch_without_a_success_is_one_failure() -> None:
    broken = set(KEYS[:3])
    inner = FailingTier(Counting(), lambda _, key: key in broken)
    watch = Watch()
    tier = BreakerTier(inner, ManualClock(), 10.0, watch)
    write(tier)
    for _ in range(2 * FAILURES):
        assert isinstance(read(tier)[0], Bad)
    assert watch.changes == [], "one chunk came each time"
    broken.add(KEYS[3])
    for _ in range(FAILURES):
        assert watch.changes == []
        read(tier)
    assert watch.changes == [("read", True, "this read was planned to fail")]
    assert {one.reason for one in read(tier) if isinstance(one, Bad)} == {BadReason.SET_ASIDE}
    assert watch.refusals == 4
    for _ in range(FAILURES):
        write(tier)
    outcomes = write(tier)
    assert [one.reason for one in outcomes if isinstance(one, Failed)] == [SET_ASIDE] * 4
    assert watch.refusals == 8
