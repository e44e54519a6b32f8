"""A metered tier reports what was done, how it ended and how long it took."""

import hashlib

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.clock import ManualClock
from kvstrata.errors import BadReason
from kvstrata.testing.faults import CorruptingTier, Operation, SlowTier
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.metered import MeteredTier
from kvstrata.tiers.tier import Bad, Loaded, Missing, Present, ReadOutcome, Stored, WriteOutcome

GEOMETRIES = {0: GroupGeometry(0, GroupKind.FULL, 16, 2, (100,))}
KEY = make_key(hashlib.sha256(b"chunk").digest(), 0)
PAYLOAD = memoryview(bytes(range(200)))
SECONDS = {Operation.READ: 2.0, Operation.WRITE: 3.0}


class Report(list[tuple[str, ReadOutcome | WriteOutcome, float]]):
    """What the observer was told."""

    def __call__(self, operation: str, outcome: ReadOutcome | WriteOutcome, seconds: float) -> None:
        self.append((operation, outcome, seconds))


def metered(report: Report, broken: bool = False) -> MeteredTier:
    clock = ManualClock()
    inner = MemoryTier(memoryview(bytearray(1 << 20)), GEOMETRIES)
    slow = SlowTier(inner, lambda operation, _: SECONDS.get(operation, 0.0), clock.advance)
    return MeteredTier(CorruptingTier(slow, lambda _: broken), clock, report)


def test_each_operation_is_reported_once_with_its_outcome_and_time() -> None:
    report = Report()
    tier = metered(report)
    assert tier.name == "memory"
    into = memoryview(bytearray(200))
    tier.read(KEY, into)
    tier.write(KEY, PAYLOAD)
    tier.write(KEY, PAYLOAD)
    tier.read(KEY, into, 1)
    assert report == [
        ("read", Missing(), 2.0),
        ("write", Stored(200), 3.0),
        ("write", Present(), 3.0),
        ("read", Loaded(100), 2.0),
    ]


def test_bad_chunks_are_reported_with_their_reason() -> None:
    report = Report()
    tier = metered(report, broken=True)
    tier.write(KEY, PAYLOAD)
    outcome = tier.read(KEY, memoryview(bytearray(200)))
    assert isinstance(outcome, Bad) and outcome.reason is BadReason.CHECKSUM
    assert report[-1] == ("read", outcome, 2.0)


def test_what_does_not_move_bytes_is_passed_on_unreported() -> None:
    report = Report()
    tier = metered(report)
    tier.write(KEY, PAYLOAD)
    report.clear()
    assert tier.probe([KEY]) == [True]
    assert list(tier.scan()) == [KEY]
    assert tier.remove(KEY) is True
    tier.close()
    assert report == []


def test_closing_reaches_the_inner_tier() -> None:
    class Closing(MemoryTier):
        closed = False

        def close(self) -> None:
            self.closed = True

    inner = Closing(memoryview(bytearray(1 << 20)), GEOMETRIES)
    MeteredTier(inner, ManualClock(), Report()).close()
    assert inner.closed


def test_an_error_of_the_observer_is_not_swallowed() -> None:
    def observer(*_: object) -> None:
        raise ValueError("observer")

    inner = MemoryTier(memoryview(bytearray(1 << 20)), GEOMETRIES)
    with pytest.raises(ValueError, match="observer"):
        MeteredTier(inner, ManualClock(), observer).write(KEY, PAYLOAD)
