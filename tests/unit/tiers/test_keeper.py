"""A root that is kept within its bound, by samples, whoever writes into it."""

import multiprocessing
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, parse_file_name, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.fileio.lease import lease
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Done, Keeper, keys_in
from kvstrata.tiers.ring import Directories, sample, walk
from kvstrata.tiers.shares import HIGH, LOW, RING, Bound, Held, Sample, evict, room
from kvstrata.tiers.sweep import LEASE_FILE, ORPHANED

NAMESPACE = "m-" + "0" * 32
OTHER = "n-" + "1" * 32
SIZE = 1000


def put(root: Path, number: int, used: float, namespace: str = NAMESPACE, size: int = SIZE) -> Path:
    digest = random.Random(number).randbytes(32)
    path = root / namespace / relative_path(make_key(digest, number % 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (used, used))
    return path


def files(root: Path) -> list[Path]:
    return [one for one in root.rglob("*.kv") if parse_file_name(one.name)]


def keeper(root: Path, bound: Bound, told: list[Done] | None = None) -> Keeper:
    heard = told if told is not None else []
    return Keeper(root, bound, MonotonicClock(), heard.append, chance=random.Random(1))


def test_what_was_not_used_for_longest_goes_until_the_bound_holds(tmp_path: Path) -> None:
    paths = [
        put(tmp_path, n, used=1e9 + n, namespace=(NAMESPACE, OTHER)[n % 2]) for n in range(2000)
    ]
    kept = keeper(tmp_path, Bound(capacity=1000 * SIZE))
    for _ in range(100):
        done = kept.look()
        assert done is not None
        if not done.removed:
            break
    left = [n for n, path in enumerate(paths) if path.exists()]
    assert LOW * 1000 - 1 <= len(left) <= HIGH * 1000
    youngest_gone = max(set(range(2000)) - set(left))
    oldest_left = min(left)
    # Oldest first but for what one eviction takes too much in the half of the directories that it sees.
    assert youngest_gone - oldest_left < 150
    assert done.usage.used == pytest.approx(len(left) * SIZE, rel=0.001)


def test_while_there_is_room_nothing_is_removed_and_something_is_admitted(tmp_path: Path) -> None:
    for n in range(100):
        put(tmp_path, n, used=1e9)
    kept = keeper(tmp_path, Bound(capacity=200 * SIZE))
    assert not kept.admit(1), "nobody has looked yet"
    done = kept.look()
    assert done is not None and not done.removed and len(files(tmp_path)) == 100
    admitted = sum(kept.admit(SIZE) for _ in range(200))
    assert 5 <= admitted <= 100 // 8
    assert kept.look() is not None
    assert not kept.admit(SIZE), "what is still being written is in no estimate"
    kept.landed(admitted * SIZE)
    assert kept.look() is not None
    assert kept.admit(SIZE)


def test_one_that_lies_under_many_names_counts_once(tmp_path: Path) -> None:
    first = put(tmp_path, 0, used=1e9, size=64_000)
    for n in range(1, 64):
        path = tmp_path / NAMESPACE / relative_path(make_key(random.Random(n).randbytes(32), 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)
    done = keeper(tmp_path, Bound(capacity=10**6)).look()
    assert done is not None and done.usage.used == pytest.approx(64_000)


def test_what_dead_writers_left_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    for n in range(50):
        put(tmp_path, n, used=1e9)
    place = files(tmp_path)[0].parent
    dead, alive, foreign = place / f"{TEMPORARY}1-a", place / f"{TEMPORARY}2-b", place / "notes.txt"
    for path in (dead, alive, foreign):
        path.write_bytes(b"x" * 100)
    now = alive.stat().st_mtime
    os.utime(dead, (now - ORPHANED - 60,) * 2)
    os.utime(foreign, (1.0, 1.0))
    (tmp_path / "elsewhere").mkdir()
    kept = keeper(tmp_path, Bound(capacity=1))
    for _ in range(200):
        kept.look()
    assert not files(tmp_path)
    assert not dead.exists() and alive.exists() and foreign.exists()


def test_whoever_has_the_lease_looks_for_all(tmp_path: Path) -> None:
    put(tmp_path, 1, used=1e9)
    one, other = keeper(tmp_path, Bound(capacity=10**6)), keeper(tmp_path, Bound(capacity=10**6))
    assert other.look() is not None
    with lease(f"{tmp_path}/{LEASE_FILE}") as got:
        assert got
        assert one.look() is not None, "what the other one found is news"
        assert one.look() is None
        assert one.admit(10)
    assert one.look() is not None


def _hold(path: str, ready: "multiprocessing.synchronize.Event") -> None:
    with lease(path) as got:
        assert got
        ready.set()
        signal_free = multiprocessing.Event()
        signal_free.wait(60)


def test_a_dead_process_has_no_lease(tmp_path: Path) -> None:
    path = f"{tmp_path}/{LEASE_FILE}"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(path, ready), daemon=True)
    process.start()
    try:
        assert ready.wait(30)
        with lease(path) as got:
            assert not got
    finally:
        process.kill()
        process.join(30)
    with lease(path) as got:
        assert got


def test_removed_files_are_told_by_their_keys(tmp_path: Path) -> None:
    mine, others = put(tmp_path, 1, 1e9), put(tmp_path, 2, 1e9, OTHER)
    keys = keys_in([str(mine), str(others)], str(tmp_path / NAMESPACE))
    assert keys == [parse_file_name(mine.name)]


def test_a_lease_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=LEASE_FILE):
        keeper(tmp_path, Bound(capacity=1)).look()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("count", [30, 3000])
def test_a_walk_sees_every_file_once_wherever_it_begins(tmp_path: Path, count: int) -> None:
    paths = {str(put(tmp_path, n, 1e9, (NAMESPACE, OTHER)[n % 2], size=1)) for n in range(count)}
    bases = Directories([str(tmp_path / NAMESPACE), str(tmp_path / OTHER)])
    for begin in (0, 1, 700, 40_000, RING - 1):
        seen = [one.path for _, place in walk(bases, begin) for one in place.files]
        assert len(seen) == len(paths) and set(seen) == paths


def test_a_sample_tells_what_the_whole_holds(tmp_path: Path) -> None:
    """By chance within three standard deviations, though it reads a part."""
    for n in range(8_000):
        put(tmp_path, n, 1e9, size=1)
    base = Directories([str(tmp_path / NAMESPACE)])
    errors = []
    for seed in range(20):
        seen = sample(base, random.Random(seed), enough=1000)
        assert seen.directories < 3000
        errors.append(seen.nbytes / 8_000 - 1)
    assert max(map(abs, errors)) < 3 / 1000**0.5
    assert abs(sum(errors) / 20) < 3 / (20 * 1000) ** 0.5
    assert sample(base, random.Random(1), enough=10**9).nbytes == 8_000


held = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), min_size=1, max_size=30)


@given(held, st.floats(0.01, 1), st.integers(0, 3000))
@settings(max_examples=300)
def test_what_is_due_reaches_far_enough_into_the_past(
    told: list[tuple[int, int]], share: float, bound: int
) -> None:
    seen = Sample(share, [Held(str(n), size, used) for n, (size, used) in enumerate(told)])
    due = evict(seen, bound)
    used = sum(size for size, _ in told) / share
    assert (due is None) == (used <= HIGH * bound)
    if due is not None:
        assert 0 < due.nbytes <= used - LOW * bound + 1e-6
        old = sum(size for size, when in told if when <= due.until) / share
        assert old >= due.nbytes - 1e-6
    assert 0 <= room(used, bound) <= bound


def test_bounds_of_all_kinds() -> None:
    assert not Bound()
    assert Bound(capacity=100, share=0.5, free=30).bytes_of(50, 40, 1000) == 60
    assert Bound(capacity=100).bytes_of(50, 60, 1000) == 100
    assert Bound(share=0.05).bytes_of(50, 40, 1000) == 50
    assert Bound(free=100).bytes_of(50, 40, 1000) == 0
    assert Bound(capacity=100).bytes_of(50, 40, 1000) == 90, "others fill the file system too"
    assert Bound(capacity=100).bytes_of(50, 0, 0) == 100, "it does not tell how large it is"


def test_chunks_that_share_a_file_go_together_and_so_do_their_bytes(tmp_path: Path) -> None:
    geometry = GroupGeometry(0, GroupKind.FULL, 16, 1, (SIZE,))
    tier = FilesystemTier(tmp_path, Namespace("m", {}), {0: geometry})
    tier.prepare()
    payload = memoryview(bytearray(SIZE))
    keys = [
        [make_key(random.Random(64 * n + i).randbytes(32), 0) for i in range(16)] for n in range(8)
    ]
    for n, together in enumerate(keys):
        tier.write_many([(key, payload, 0) for key in together])
        path = tier.directory / relative_path(together[0])
        assert path.stat().st_nlink == 16
        os.utime(path, (1e9 + n, 1e9 + n))
    held = keeper(tmp_path, Bound(capacity=10**9)).look()
    assert held is not None
    kept = keeper(tmp_path, Bound(capacity=int(held.usage.used / 2)))
    for _ in range(20):
        kept.look()
    there = [tier.probe(together) for together in keys]
    assert all(len(set(one)) == 1 for one in there), "each file whole or gone"
    assert [one[0] for one in there] == sorted(one[0] for one in there), "oldest first"
    assert 2 <= sum(one[0] for one in there) <= 4
