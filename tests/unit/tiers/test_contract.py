"""Every tier keeps the contract, and the contract finds tiers that do not."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey, group_of
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import ManualClock
from kvstrata.testing import samples, stateful
from kvstrata.testing.contract import TierContract
from kvstrata.testing.stateful import TierMachine
from kvstrata.tiers.breaker import BreakerTier
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.metered import MeteredTier
from kvstrata.tiers.tier import Loaded, ReadOutcome, Stored, Tier, WriteOutcome

NAMESPACE = Namespace("org/tiny", {"weights": "abc"})
SUITE = TierContract()


def filesystem(root: Path, geometries: Mapping[int, GroupGeometry]) -> FilesystemTier:
    tier = FilesystemTier(root / "kv", NAMESPACE, geometries)
    tier.prepare()
    return tier


def memory(nbytes: int, geometries: Mapping[int, GroupGeometry]) -> MemoryTier:
    return MemoryTier(memoryview(bytearray(nbytes)), geometries)


class Unasked:
    """An observer to whom nothing should happen."""

    def changed(self, operation: str, set_aside: bool, why: str) -> None:
        raise AssertionError(f"{operation} {why}")

    def refused(self, operation: str) -> None:
        raise AssertionError(operation)


class TestMemory(TierContract):
    def make_tier(self, tmp_path: Path, geometries: Mapping[int, GroupGeometry]) -> Tier:
        return memory(samples.ARENA_BYTES, geometries)


class TestFilesystem(TierContract):
    persistent = True

    def make_tier(self, tmp_path: Path, geometries: Mapping[int, GroupGeometry]) -> Tier:
        return filesystem(tmp_path, geometries)


class TestGuardedFilesystem(TierContract):
    """A breaker in front changes nothing while all is well."""

    persistent = True

    def make_tier(self, tmp_path: Path, geometries: Mapping[int, GroupGeometry]) -> Tier:
        return BreakerTier(filesystem(tmp_path, geometries), ManualClock(), 10.0, Unasked())


class TestMeteredFilesystem(TierContract):
    persistent = True

    def make_tier(self, tmp_path: Path, geometries: Mapping[int, GroupGeometry]) -> Tier:
        return MeteredTier(filesystem(tmp_path, geometries), ManualClock(), lambda *_: None)


class MemoryMachine(TierMachine):
    def make_tier(self) -> Tier:
        return memory(stateful.ARENA_BYTES, stateful.GEOMETRIES)


class FilesystemMachine(TierMachine):
    persistent = True

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="kvstrata-test-"))
        super().__init__()

    def make_tier(self) -> Tier:
        return filesystem(self.place, stateful.GEOMETRIES)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.place)


class GreedyTail(MemoryTier):
    """Reads the whole chunk, whatever was asked for."""

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        outcome = super().read(key, into, 0)
        start = first_block * samples.GEOMETRIES[group_of(key)].block_bytes
        return Loaded(outcome.nbytes - start) if isinstance(outcome, Loaded) else outcome


class Scribbler(MemoryTier):
    """Uses the buffer before it knows whether the chunk is there."""

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        into[0] = 0
        return super().read(key, into, first_block)


class Overwriter(MemoryTier):
    """Lets a less complete chunk take the place of a more complete one."""

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        self.remove(key)
        return super().write(key, payload, first_block)


class Pretender(MemoryTier):
    """Says that partial chunks are whole."""

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        return super().write(key, payload, 0)


class Backwards(MemoryTier):
    """Answers probes in the wrong order."""

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        return super().probe(keys)[::-1]


class Early(MemoryTier):
    """Lets a chunk be read before its bytes are there."""

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        outcome = super().write(key, memoryview(bytes(len(payload))), first_block)
        time.sleep(0.001)
        if isinstance(outcome, Stored) and (entry := self.entry(key)) is not None:
            target = self._arena[entry.offset : entry.offset + len(payload)]
            target[:] = payload
        return outcome


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (GreedyTail, lambda tier: SUITE.test_a_tail_leaves_the_bytes_before_it_alone(tier, 0)),
        (
            Scribbler,
            lambda tier: SUITE.test_what_was_not_written_is_missing_and_leaves_the_buffer_alone(
                tier, 0
            ),
        ),
        (Overwriter, lambda tier: SUITE.test_the_more_complete_chunk_stays(tier, 0)),
        (Overwriter, lambda tier: SUITE.test_a_second_write_changes_nothing(tier, 0)),
        (Pretender, lambda tier: SUITE.test_a_partial_chunk_has_only_its_tail(tier, 0)),
        (Backwards, lambda tier: SUITE.test_probe_answers_for_each_key_in_order(tier)),
        (Early, lambda tier: SUITE.test_readers_see_a_chunk_whole_or_not_at_all(tier, 1)),
    ],
)
def test_the_suite_finds(broken: type[MemoryTier], test: Callable[[Tier], None]) -> None:
    tier = broken(memoryview(bytearray(samples.ARENA_BYTES)), samples.GEOMETRIES)
    with pytest.raises(AssertionError):
        test(tier)


def test_the_machine_finds_an_overwriter() -> None:
    class Broken(TierMachine):
        def make_tier(self) -> Tier:
            return Overwriter(memoryview(bytearray(stateful.ARENA_BYTES)), stateful.GEOMETRIES)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Broken, settings=settings(phases=[Phase.generate]))


TestMemoryMachine = MemoryMachine.TestCase
TestFilesystemMachine = FilesystemMachine.TestCase
