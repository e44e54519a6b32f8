"""What every tier must do, as tests. A new tier's own test is a few lines::

    class TestMyTier(TierContract):
        persistent = True

        def make_tier(self, tmp_path, geometries):
            return MyTier(tmp_path, geometries)

Call `pytest.register_assert_rewrite("kvstrata.testing")` in a `conftest.py` to see the values
when an assertion fails. Passing the suite is necessary, not sufficient: what a tier does with damage, full
media and dead peers is its own and is tested beside it.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import group_of, make_key
from kvstrata.testing.samples import (
    GEOMETRIES,
    LARGE,
    MANY,
    PLAIN,
    SMALL,
    Reading,
    key_of,
    store,
    store_many,
)
from kvstrata.tiers.tier import (
    Failed,
    Loaded,
    Present,
    Stored,
    Tier,
)

_GROUPS = pytest.mark.parametrize("group", sorted(GEOMETRIES))
_PARTIAL = pytest.mark.parametrize("group", [PLAIN, SMALL, LARGE, MANY])


class TierContract:
    """The conformance suite. Subclass it, name the class `Test...`, and define `make_tier`.

    Attributes:
        persistent: whether a tier made again at the same place sees what the first one stored.
    """

    persistent = False

    def make_tier(self, tmp_path: Path, geometries: Mapping[int, GroupGeometry]) -> Tier:
        """A tier that is ready for use, at a place that follows from `tmp_path`."""
        raise NotImplementedError

    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[Tier]:
        """The tier under test."""
        tier = self.make_tier(tmp_path, GEOMETRIES)
        yield tier
        tier.close()

    def test_it_has_a_name(self, tier: Tier) -> None:
        assert tier.name and tier.name.isidentifier()

    @_GROUPS
    def test_what_was_written_can_be_read(self, tier: Tier, group: int) -> None:
        key = key_of("whole", group)
        assert store(tier, key) == Stored(GEOMETRIES[group].payload_bytes)
        Reading(tier, key).check_loaded()
        Reading(tier, key).check_loaded()

    @_GROUPS
    def test_what_was_not_written_is_missing_and_leaves_the_buffer_alone(
        self, tier: Tier, group: int
    ) -> None:
        store(tier, key_of("another", group))
        Reading(tier, key_of("absent", group)).check_missing()

    def test_a_hash_means_another_chunk_in_another_group(self, tier: Tier) -> None:
        store(tier, key_of("one hash", PLAIN))
        Reading(tier, key_of("one hash", SMALL)).check_missing()
        store(tier, key_of("one hash", SMALL))
        Reading(tier, key_of("one hash", PLAIN)).check_loaded()
        Reading(tier, key_of("one hash", SMALL)).check_loaded()

    @pytest.mark.parametrize("length", [16, 32])
    def test_hashes_of_both_lengths(self, tier: Tier, length: int) -> None:
        key = make_key(hashlib.sha256(b"short").digest()[:length], PLAIN)
        assert isinstance(store(tier, key), Stored)
        Reading(tier, key).check_loaded()

    @_PARTIAL
    def test_a_tail_leaves_the_bytes_before_it_alone(self, tier: Tier, group: int) -> None:
        key = key_of("tail", group)
        store(tier, key)
        blocks = GEOMETRIES[group].blocks_per_chunk
        for first_block in (1, blocks // 2, blocks - 1):
            Reading(tier, key, first_block).check_loaded()

    @_PARTIAL
    def test_a_partial_chunk_has_only_its_tail(self, tier: Tier, group: int) -> None:
        key = key_of("partial", group)
        geometry = GEOMETRIES[group]
        first = geometry.blocks_per_chunk // 2 + 1
        stored = geometry.block_bytes * (geometry.blocks_per_chunk - first)
        assert store(tier, key, first) == Stored(stored)
        Reading(tier, key).check_missing()
        Reading(tier, key, first - 1).check_missing()
        Reading(tier, key, first).check_loaded()
        Reading(tier, key, geometry.blocks_per_chunk - 1).check_loaded()

    @_GROUPS
    def test_several_at_once_are_as_each_alone(self, tier: Tier, group: int) -> None:
        keys = [key_of(f"together {i}", group) for i in range(6)]
        size = GEOMETRIES[group].payload_bytes
        assert store_many(tier, [(key, 0) for key in keys[:5]]) == [Stored(size)] * 5
        assert store_many(tier, [(keys[5], 0), (keys[0], 0)]) == [Stored(size), Present()]
        for key in keys:
            Reading(tier, key).check_loaded()
        assert tier.remove(keys[2])
        absent = key_of("not together", group)
        wanted = [keys[4], absent, *keys[:4], keys[5]]
        for reading in Reading.of_many(tier, [(key, 0) for key in wanted]):
            if reading.key in (keys[2], absent):
                reading.check_missing()
            else:
                reading.check_loaded()
        assert tier.read_many([]) == [] and tier.write_many([]) == []

    def test_several_of_several_groups(self, tier: Tier) -> None:
        given = [(key_of(f"mixed {i}", i % 3), i % 2) for i in range(12)]
        outcomes = store_many(tier, given)
        for (key, first), outcome in zip(given, outcomes, strict=True):
            geometry = GEOMETRIES[group_of(key)]
            if geometry.blocks_per_chunk > first:
                assert outcome == Stored(geometry.payload_bytes - first * geometry.block_bytes)
        for reading in Reading.of_many(tier, given[::-1]):
            reading.check_loaded()
        # The first block of half of them was not stored.
        for reading in Reading.of_many(tier, [(key, 0) for key, _ in given]):
            if (reading.key, 0) in given:
                reading.check_loaded()
            else:
                reading.check_missing()

    @_PARTIAL
    def test_tails_of_several(self, tier: Tier, group: int) -> None:
        keys = [key_of(f"tails {i}", group) for i in range(5)]
        store_many(tier, [(key, 0) for key in keys])
        blocks = GEOMETRIES[group].blocks_per_chunk
        firsts = [0, blocks - 1, 1, blocks // 2, 0]
        for reading in Reading.of_many(tier, list(zip(keys, firsts, strict=True))):
            reading.check_loaded()

    @_PARTIAL
    def test_more_complete_chunks_take_their_places(self, tier: Tier, group: int) -> None:
        keys = [key_of(f"grown {i}", group) for i in range(5)]
        store_many(tier, [(key, 2) for key in keys])
        size = GEOMETRIES[group].payload_bytes
        assert store_many(tier, [(key, 0) for key in keys[1:4]]) == [Stored(size)] * 3
        for reading in Reading.of_many(tier, [(key, 0) for key in keys[1:4]]):
            reading.check_loaded()
        first, *_, last = Reading.of_many(tier, [(key, 0) for key in keys])
        first.check_missing()
        last.check_missing()
        for reading in Reading.of_many(tier, [(key, 2) for key in keys]):
            reading.check_loaded()

    def test_a_chunk_twice_in_one_call(self, tier: Tier) -> None:
        key = key_of("twice at once", SMALL)
        geometry = GEOMETRIES[SMALL]
        partly = Stored(geometry.payload_bytes - 3 * geometry.block_bytes)
        given = [(key, 3), (key, 3), (key, 0)]
        assert store_many(tier, given) == [partly, Present(), Stored(geometry.payload_bytes)]
        for reading in Reading.of_many(tier, [(key, 0), (key, 5), (key, 0)]):
            reading.check_loaded()

    @_GROUPS
    def test_a_second_write_changes_nothing(self, tier: Tier, group: int) -> None:
        key = key_of("twice", group)
        store(tier, key)
        assert store(tier, key) == Present()
        Reading(tier, key).check_loaded()

    @_PARTIAL
    def test_the_more_complete_chunk_stays(self, tier: Tier, group: int) -> None:
        key = key_of("completeness", group)
        assert isinstance(store(tier, key, 3), Stored)
        assert store(tier, key, 3) == Present()
        assert store(tier, key, 5) == Present()
        Reading(tier, key, 3).check_loaded()
        assert isinstance(store(tier, key, 2), Stored)
        Reading(tier, key, 1).check_missing()
        Reading(tier, key, 2).check_loaded()
        assert isinstance(store(tier, key), Stored)
        assert store(tier, key, 2) == Present()
        Reading(tier, key).check_loaded()

    @_GROUPS
    def test_removed_is_missing_and_can_come_back(self, tier: Tier, group: int) -> None:
        key, other = key_of("removed", group), key_of("kept", group)
        store(tier, key)
        store(tier, other)
        assert tier.remove(key) is True
        assert tier.remove(key) is False
        Reading(tier, key).check_missing()
        Reading(tier, other).check_loaded()
        assert isinstance(store(tier, key), Stored)
        Reading(tier, key).check_loaded()

    def test_remove_of_what_never_was(self, tier: Tier) -> None:
        assert tier.remove(key_of("never", PLAIN)) is False

    def test_probe_answers_for_each_key_in_order(self, tier: Tier) -> None:
        held = [key_of(f"held {i}", i % 2) for i in range(5)]
        absent = [key_of(f"absent {i}", i % 2) for i in range(5)]
        for key in held:
            store(tier, key)
        store(tier, partial := key_of("partial", MANY), 200)
        assert tier.probe([]) == []
        mixed = [key for pair in zip(held, absent, strict=True) for key in pair]
        assert tier.probe([*mixed, partial]) == [*([True, False] * 5), True]
        tier.remove(held[0])
        assert tier.probe(held) == [False, True, True, True, True]

    def test_scan_finds_every_chunk_once(self, tier: Tier) -> None:
        assert list(tier.scan()) == []
        keys = [key_of(f"scanned {i}", group) for i in range(20) for group in (PLAIN, SMALL)]
        for key in keys:
            store(tier, key)
        assert sorted(tier.scan()) == sorted(keys)
        for key in keys[::2]:
            tier.remove(key)
        assert sorted(tier.scan()) == sorted(keys[1::2])

    def test_many_keys_keep_apart(self, tier: Tier) -> None:
        keys = [key_of(f"many {i}", (PLAIN, SMALL, MANY)[i % 3]) for i in range(600)]
        for key in keys:
            assert isinstance(store(tier, key), Stored)
        for key in keys:
            Reading(tier, key).check_loaded()

    @pytest.mark.parametrize("group", [SMALL, LARGE])
    def test_readers_see_a_chunk_whole_or_not_at_all(self, tier: Tier, group: int) -> None:
        key = key_of("contended", group)

        def write() -> None:
            # A tier may refuse to replace what somebody reads; it must not do harm.
            assert isinstance(store(tier, key), Stored | Present | Failed)

        def read() -> None:
            reading = Reading(tier, key)
            if isinstance(reading.outcome, Loaded):
                reading.check_loaded()
            else:
                reading.check_missing()

        def remove() -> None:
            tier.remove(key)

        _race([write, read, read, write, remove, read], rounds=8 if group == LARGE else 40)
        assert isinstance(store(tier, key), Stored | Present)
        Reading(tier, key).check_loaded()

    def test_a_growing_chunk_is_never_read_torn(self, tier: Tier) -> None:
        key = key_of("growing", PLAIN)
        store(tier, key, 7)

        def grow() -> None:
            for first_block in range(6, -1, -1):
                store(tier, key, first_block)

        def read() -> None:
            for first_block in range(7, -1, -1):
                reading = Reading(tier, key, first_block)
                if isinstance(reading.outcome, Loaded):
                    reading.check_loaded()
                else:
                    reading.check_missing()

        _race([grow, read, read], rounds=10)

    def test_threads_on_different_keys_do_not_disturb_each_other(self, tier: Tier) -> None:
        def work(worker: int) -> None:
            for i in range(20):
                key = key_of(f"worker {worker} chunk {i}", (PLAIN, SMALL)[i % 2])
                assert isinstance(store(tier, key), Stored)
                Reading(tier, key).check_loaded()
                if i % 3 == 0:
                    assert tier.remove(key)
                    Reading(tier, key).check_missing()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))

    def test_a_persistent_tier_outlives_its_process(self, tier: Tier, tmp_path: Path) -> None:
        if not self.persistent:
            pytest.skip("the tier is not persistent")
        whole, partial = key_of("kept whole", LARGE), key_of("kept partly", SMALL)
        store(tier, whole)
        store(tier, partial, 4)
        tier.close()
        again = self.make_tier(tmp_path, GEOMETRIES)
        assert again.probe([whole, partial, key_of("new", SMALL)]) == [True, True, False]
        Reading(again, whole).check_loaded()
        Reading(again, partial).check_missing()
        Reading(again, partial, 4).check_loaded()
        assert store(again, whole) == Present()
        again.close()

    def test_two_persistent_tiers_at_one_place_share(self, tier: Tier, tmp_path: Path) -> None:
        if not self.persistent:
            pytest.skip("the tier is not persistent")
        other = self.make_tier(tmp_path, GEOMETRIES)
        key = key_of("shared", SMALL)
        store(tier, key)
        Reading(other, key).check_loaded()
        assert store(other, key) == Present()
        assert other.remove(key)
        Reading(tier, key).check_missing()
        other.close()


def _race(actions: list[Callable[[], None]], rounds: int) -> None:
    """Run the actions at the same time, each in its own thread, again and again.

    Raises:
        BaseException: what the first failing action raised.
    """
    barrier = threading.Barrier(len(actions))

    def repeat(action: Callable[[], None]) -> None:
        for _ in range(rounds):
            barrier.wait()
            try:
                action()
            except BaseException:
                barrier.abort()  # or the others would wait for ever
                raise

    with ThreadPoolExecutor(len(actions)) as pool:
        futures = [pool.submit(repeat, action) for action in actions]
    errors = [error for future in futures if (error := future.exception()) is not None]
    # Those that broke off because of another's failure say nothing.
    telling = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if telling:
        raise telling[0]
