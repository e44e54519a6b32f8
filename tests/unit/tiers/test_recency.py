"""When a file's time is renewed, against a model; and what is past its time: a miss, and then gone."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.tiers import keeper as keepers
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import FUTURE, Done, Keeper
from kvstrata.tiers.recency import (
    BURST_SECONDS,
    LEAST_SECONDS,
    PER_SECOND,
    SHARE,
    TOUCH_SECONDS,
    Recency,
)
from kvstrata.tiers.ring import Directories, stretch, walk
from kvstrata.tiers.shares import PATROL, RING, Bound, patrol_length
from kvstrata.tiers.spaces import Terms, declare
from kvstrata.tiers.tier import Loaded, Missing, Stored

DAY = 86_400.0
SIZE = 512
GEOMETRIES = {0: GroupGeometry(0, GroupKind.FULL, 16, 1, (SIZE,))}
PAYLOAD = memoryview(bytearray(SIZE))


class Wall:
    """A clock that is set."""

    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


ages = st.one_of(st.just(0.0), st.floats(0.001, 1e7))


@given(ages, ages, st.floats(-1e6, 1e6), st.floats(-1e6, 1e8), st.booleans())
@settings(max_examples=300)
def test_a_time_is_renewed_once_it_is_older_than_an_eighth_of_the_age_that_goes(
    goes: float, ttl: float, ahead: float, age: float, enabled: bool
) -> None:
    """By the file system's clock, however far ours is from it; and at most once an hour is asked for."""
    wall = Wall()
    recency = Recency(ttl, wall, enabled=enabled)
    recency.learn(wall.now + ahead, goes)
    known = [one for one in (goes, ttl) if one > 0]
    after = min(max(min(known) / 8, LEAST_SECONDS), TOUCH_SECONDS) if known else TOUCH_SECONDS
    assert recency.after == after and SHARE == 1 / 8
    used = wall.now + ahead - age
    if abs(abs(age) - after) > 1e-3:  # clocks are floats
        assert recency.due(used) == (enabled and abs(age) > after)
    if abs(age - ttl) > 1e-3:
        assert recency.expired(used) == (ttl > 0 and age > ttl)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 6000)), max_size=12))
@settings(max_examples=20)
def test_no_more_are_renewed_than_the_rate_allows(steps: list[tuple[float, int]]) -> None:
    """Whatever the clock does: going backwards gives nothing, and takes nothing away."""
    wall = Wall()
    recency = Recency(0.0, wall)
    allowance = PER_SECOND * BURST_SECONDS
    since = 0.0
    for step, asked in steps:
        wall.now += step
        since += step
        if not asked:
            continue  # time between two questions is one step, forwards or backwards
        allowance = min(allowance + PER_SECOND * max(since, 0.0), PER_SECOND * BURST_SECONDS)
        since = 0.0
        renewed = sum(recency.due(0.0) for _ in range(asked))
        assert renewed <= allowance + 1
        assert renewed >= min(asked, int(allowance) - 1)
        allowance = max(allowance - renewed, 0.0)


def test_a_machine_whose_clock_jumps_learns_at_the_next_look() -> None:
    wall = Wall()
    recency = Recency(60.0, wall)
    recency.learn(1e9)
    assert not recency.expired(1e9 - 59) and recency.expired(1e9 - 61)
    wall.now += 5 * DAY
    recency.learn(1e9 + 10)
    assert not recency.expired(1e9 - 49) and recency.expired(1e9 - 51)


def opened(root: Path, recency: Recency, name: str = "m") -> FilesystemTier:
    tier = FilesystemTier(root, Namespace(name, {}), GEOMETRIES, recency=recency, segment=0)
    tier.prepare()
    return tier


def fill(tier: FilesystemTier, ages: list[float]) -> list[bytes]:
    """Chunks that were last used so long ago, by the file system's clock."""
    keys = [
        make_key(random.Random(f"{tier.directory}{n}").randbytes(32), 0) for n in range(len(ages))
    ]
    for key, age in zip(keys, ages, strict=True):
        assert isinstance(tier.write(key, PAYLOAD), Stored)
        path = tier.directory / relative_path(key)
        used = path.stat().st_mtime - age
        os.utime(path, (used, used))
    return keys


def test_reading_renews_what_is_old_or_from_the_future_and_nothing_else(tmp_path: Path) -> None:
    recency = Recency()
    tier = opened(tmp_path, recency)
    ages = [0.0, 500.0, 2000.0, -500.0, -2000.0, -9e8]
    keys = fill(tier, ages)
    paths = [tier.directory / relative_path(key) for key in keys]
    now = paths[0].stat().st_mtime
    recency.learn(now, 8 * 1000.0)
    for key in keys:
        assert isinstance(tier.read(key, memoryview(bytearray(SIZE))), Loaded)
    renewed = [abs(path.stat().st_mtime - now) < 300 for path in paths]
    assert renewed == [True, False, True, False, True, True]


def test_reading_renews_nothing_where_that_is_not_wanted(tmp_path: Path) -> None:
    (key,) = fill(opened(tmp_path, Recency()), [9 * DAY])
    tier = opened(tmp_path, Recency(enabled=False))
    path = tier.directory / relative_path(key)
    before = path.stat().st_mtime
    assert isinstance(tier.read(key, memoryview(bytearray(SIZE))), Loaded)
    assert path.stat().st_mtime == before


def test_what_is_past_its_time_is_a_miss_and_goes_when_it_is_read(tmp_path: Path) -> None:
    tier = opened(tmp_path, Recency(3600.0))
    young, old = fill(tier, [3000.0, 4000.0])
    into = bytearray(b"x" * SIZE)
    assert tier.read(old, memoryview(into)) == Missing() and into == b"x" * SIZE
    assert tier.probe([young, old]) == [True, False]
    assert isinstance(tier.read(young, memoryview(into)), Loaded)
    # It was used, so its time begins anew.
    renewed = (tier.directory / relative_path(young)).stat().st_mtime
    assert renewed > tmp_path.stat().st_mtime - 900


def test_a_reader_that_may_not_write_leaves_what_is_past_its_time(tmp_path: Path) -> None:
    (old,) = fill(opened(tmp_path, Recency()), [4000.0])
    reader = FilesystemTier(
        tmp_path, Namespace("m", {}), GEOMETRIES, recency=Recency(3600.0), read_only=True
    )
    assert reader.read(old, memoryview(bytearray(SIZE))) == Missing()
    assert reader.probe([old]) == [True]


class Root:
    """A root on patrol, whose file system's time is set."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = root.stat().st_mtime
        self.removed: list[str] = []
        monkeypatch.setattr(keepers, "file_system_time", lambda _root: self.now)
        self._keeper = Keeper(root, Bound(), MonotonicClock(), print, chance=random.Random(1))

    def look(self, later: float) -> Done:
        self.now += later
        done = self._keeper.look()
        assert done is not None
        self.removed += done.removed
        return done


def test_the_patrol_removes_what_is_past_its_time_within_a_fraction_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of no other namespace anything, however old."""
    ttl = 8000.0
    mine, other = opened(tmp_path, Recency()), opened(tmp_path, Recency(), "n")
    old = fill(mine, [9000.0] * 60)
    spared = fill(other, [99 * DAY] * 40)
    foreign = (mine.directory / relative_path(old[0])).parent / "notes.txt"
    writing = foreign.with_name(f"{TEMPORARY}1-aa")
    for path in (foreign, writing):
        path.write_text("mine")
    os.utime(foreign, (1.0, 1.0))
    tier = opened(tmp_path, Recency())
    young = [make_key(random.Random(n).randbytes(32), 0) for n in range(60)]
    for key in young:
        assert isinstance(tier.write(key, PAYLOAD), Stored)
    declare(mine.directory, Terms(ttl=ttl))
    root = Root(tmp_path, monkeypatch)
    looks = 0
    while any(mine.probe(old)):
        done = root.look(later=100.0)
        looks += 1
        assert done.nbytes == len(done.removed) * (4096 + SIZE)
        # A look goes through as many directories as its share of a round has, not through all.
        assert looks * 100.0 <= PATROL * ttl + 200.0
    assert looks > 5
    assert len(root.removed) == 60 and all(mine.probe(young)) and all(other.probe(spared))
    assert foreign.exists() and writing.exists()
    # What is young grows old in its turn.
    root.look(later=ttl)
    for _ in range(11):
        root.look(later=100.0)
    assert not any(mine.probe(young)) and all(other.probe(spared)) and foreign.exists()


def test_without_an_age_there_is_no_patrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = opened(tmp_path, Recency())
    keys = fill(tier, [99 * DAY] * 20)
    root = Root(tmp_path, monkeypatch)
    for _ in range(20):
        assert root.look(later=DAY).usage.patrolled == 0.0
    assert all(tier.probe(keys))


@pytest.mark.parametrize("jump", [-20 * DAY, 20 * DAY])
def test_a_server_whose_clock_jumps_does_not_end_the_patrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    tier = opened(tmp_path, Recency())
    declare(tier.directory, Terms(ttl=8000.0))
    root = Root(tmp_path, monkeypatch)
    for _ in range(3):
        root.look(later=100.0)
    root.look(later=jump)
    keys = fill(tier, [9000.0 - jump] * 30)
    for _ in range(12):
        root.look(later=100.0)
    assert not any(tier.probe(keys))


@given(st.floats(0.0, 1e7), st.floats(1.0, 1e7))
def test_the_looks_of_a_fraction_of_the_time_see_all_directories(since: float, ttl: float) -> None:
    length = patrol_length(since, ttl)
    assert 1 <= length <= RING
    assert length >= min(RING * since / (ttl / 8), RING) - 1


@given(st.integers(0, RING - 1), st.lists(st.integers(1, RING), max_size=6))
@settings(max_examples=40)
def test_stretches_that_follow_each_other_leave_nothing_out(begin: int, lengths: list[int]) -> None:
    """Over directories that are pretended: what is walked is what a whole round walks, in order."""

    class Pretended(Directories):
        def below(self, first: str) -> list[str]:
            return ["00", "41", "ff"] if int(first, 16) % 5 == 0 else []

        def read(self, first: str, second: str, into: object) -> None:
            pass

    root = Pretended(())
    seen = [begin]
    for length in lengths:
        seen += [after for after, _ in stretch(root, seen[-1], length)]
    whole = [after for after, _ in walk(root, begin)]
    assert len(whole) == 156
    assert seen[1:] == [whole[at % 156] for at in range(len(seen) - 1)]


def test_files_from_far_in_the_future_count_as_the_oldest(tmp_path: Path) -> None:
    tier = opened(tmp_path, Recency())
    keys = fill(tier, [-FUTURE - 60] * 20 + [-FUTURE / 2] * 20 + [10.0] * 60)
    recency = Recency()
    bound = Bound(capacity=86 * (4096 + SIZE))
    for _ in range(20):
        kept = Keeper(
            tmp_path, bound, MonotonicClock(), print, chance=random.Random(1), recency=recency
        )
        assert kept.look() is not None
    there = tier.probe(keys)
    assert sum(there[:20]) <= 6 and sum(there[20:]) >= 75
    assert all(there[20:40]), "a clock that is a little ahead makes nothing old"


def test_the_keeper_teaches_the_age_at_which_files_go(tmp_path: Path) -> None:
    tier = opened(tmp_path, Recency())
    fill(tier, [float(8 * n) for n in range(100)])
    recency = Recency(now=lambda: 0.0)
    assert recency.after == TOUCH_SECONDS
    kept = Keeper(tmp_path, Bound(10**9), MonotonicClock(), print, recency=recency)
    done = kept.look()
    # The oldest twentieth goes next: an eighth of its age, which is from 94 to 99 times eight.
    assert done is not None and 94 * 8 - 5 <= done.usage.age <= 99 * 8 + 60
    assert recency.after == pytest.approx(done.usage.age / 8)
    # And what the file system's clock says is no more than that of the file that was written last.
    assert not recency.due((tmp_path / "usage.json").stat().st_mtime)
    assert recency.due((tmp_path / "usage.json").stat().st_mtime - 200)
