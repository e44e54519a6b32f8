"""Faulty tiers keep the contract until their fault strikes, and then fail as they say."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey
from kvstrata.errors import BadReason
from kvstrata.testing import samples
from kvstrata.testing.contract import TierContract
from kvstrata.testing.faults import (
    CorruptingTier,
    FailingTier,
    HangingTier,
    Operation,
    SlowTier,
    failing_at_random,
)
from kvstrata.testing.samples import PLAIN, SMALL, Reading, key_of, store
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import Bad, Failed, Missing, Stored, Tier

KEY, OTHER = key_of("chunk", SMALL), key_of("other", PLAIN)
WAIT = 30.0


def memory() -> MemoryTier:
    return MemoryTier(memoryview(bytearray(samples.ARENA_BYTES)), samples.GEOMETRIES)


class TestWrappersWithoutFault(TierContract):
    """All of them around one tier, and none strikes."""

    def make_tier(self, tmp_path: Path, geometries: Mapping[int, GroupGeometry]) -> Tier:
        gate = threading.Event()
        gate.set()
        hanging = HangingTier(SlowTier(memory(), 0.0), gate)
        failing = FailingTier(hanging, failing_at_random(1, 0.0))
        return CorruptingTier(failing, lambda _: False)


# Slow.


def test_a_slow_tier_waits_before_every_operation() -> None:
    waited: list[float] = []
    tier = SlowTier(memory(), 0.5, waited.append)
    store(tier, KEY)
    Reading(tier, KEY).check_loaded()
    assert tier.probe([KEY, OTHER]) == [True, False]
    assert tier.remove(KEY)
    assert waited == [0.5] * 4


def test_a_delay_can_depend_on_operation_and_keys() -> None:
    asked: list[tuple[Operation, Sequence[ChunkKey]]] = []
    waited: list[float] = []

    def delay(operation: Operation, keys: Sequence[ChunkKey]) -> float:
        asked.append((operation, keys))
        return 1.0 if operation is Operation.READ else 0.0

    tier = SlowTier(memory(), delay, waited.append)
    store(tier, KEY)
    Reading(tier, KEY).check_loaded()
    tier.probe([KEY, OTHER])
    assert asked == [("write", [KEY]), ("read", [KEY]), ("probe", [KEY, OTHER])]
    assert waited == [1.0]


# Failing.


def test_a_failing_tier_fails_what_is_planned() -> None:
    plan = {(Operation.READ, KEY), (Operation.WRITE, OTHER)}
    tier = FailingTier(
        memory(), lambda operation, key: (operation, key) in plan, BadReason.PERMISSION, "EROFS"
    )
    assert isinstance(store(tier, KEY), Stored)
    reading = Reading(tier, KEY)
    assert isinstance(reading.outcome, Bad) and reading.outcome.reason is BadReason.PERMISSION
    outcome = store(tier, OTHER)
    assert isinstance(outcome, Failed) and outcome.reason == "EROFS"
    assert tier.probe([KEY, OTHER]) == [True, False]
    Reading(tier.inner, KEY).check_loaded()
    Reading(tier, OTHER).check_missing()


def test_probes_and_removals_fail_too() -> None:
    plan = {(Operation.PROBE, KEY), (Operation.REMOVE, KEY)}
    tier = FailingTier(memory(), lambda operation, key: (operation, key) in plan)
    store(tier, KEY)
    store(tier, OTHER)
    assert tier.probe([OTHER, KEY]) == [True, False]
    assert tier.remove(KEY) is False
    assert tier.remove(OTHER) is True
    Reading(tier, KEY).check_loaded()


def test_random_failures_follow_their_seed() -> None:
    def run(seed: int, share: float = 0.5) -> list[bool]:
        plan = failing_at_random(seed, share)
        return [plan(Operation.READ, KEY) for _ in range(200)]

    assert run(1) == run(1) != run(2)
    assert 60 < sum(run(1)) < 140
    assert not any(run(1, 0.0)) and all(run(1, 1.0))


# Hanging.


@pytest.mark.parametrize("operation", list(Operation))
def test_a_hanging_tier_hangs_until_it_is_released(operation: Operation) -> None:
    gate = threading.Event()
    tier = HangingTier(inner := memory(), gate, [operation])
    store(inner, KEY)
    actions = {
        Operation.PROBE: lambda: tier.probe([KEY]),
        Operation.READ: lambda: Reading(tier, KEY).outcome,
        Operation.WRITE: lambda: store(tier, OTHER),
        Operation.REMOVE: lambda: tier.remove(KEY),
    }
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(actions[operation])
        assert tier.entered.acquire(timeout=WAIT)
        assert not future.done()
        gate.set()
        assert future.result(WAIT) not in (Missing(), [False], False)
    assert not tier.entered.acquire(blocking=False)


def test_other_operations_do_not_hang() -> None:
    tier = HangingTier(memory(), threading.Event(), [Operation.READ])
    assert isinstance(store(tier, KEY), Stored)
    assert tier.probe([KEY]) == [True]
    assert tier.remove(KEY)


# Corrupting.


def test_damage_is_found_once_and_the_chunk_is_gone() -> None:
    tier = CorruptingTier(memory(), lambda key: key == KEY)
    store(tier, KEY)
    store(tier, OTHER)
    into = memoryview(bytearray(samples.GEOMETRIES[SMALL].payload_bytes))
    outcome = tier.read(KEY, into)
    assert isinstance(outcome, Bad) and outcome.reason is BadReason.CHECKSUM
    assert into != samples.payload_of(KEY, samples.GEOMETRIES[SMALL])
    Reading(tier, KEY).check_missing()
    Reading(tier, OTHER).check_loaded()


def test_what_does_not_condemn_a_chunk_leaves_it() -> None:
    tier = CorruptingTier(memory(), lambda _: True, BadReason.NAMESPACE)
    store(tier, KEY)
    for _ in range(2):
        assert isinstance(Reading(tier, KEY).outcome, Bad)
    Reading(tier.inner, KEY).check_loaded()


def test_an_absent_chunk_is_not_damaged() -> None:
    Reading(CorruptingTier(memory(), lambda _: True), KEY).check_missing()


def test_damage_before_a_tail_leaves_earlier_bytes_alone() -> None:
    tier = CorruptingTier(memory(), lambda _: True)
    store(tier, KEY)
    into = memoryview(bytearray(samples.GEOMETRIES[SMALL].payload_bytes))
    tier.read(KEY, into, 6)
    assert not any(into[: 6 * samples.GEOMETRIES[SMALL].block_bytes])
