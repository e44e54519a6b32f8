"""The arena is shared, sized, and gone when its engine is gone, however it died."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvstrata.errors import ArenaError
from kvstrata.tiers.arena import Arena, arena_path, sweep

SIZE = 1 << 20

CHILD = """
import sys
from kvstrata.tiers.arena import Arena
arena = Arena.attach(sys.argv[1], sys.argv[2], 1 << 20, 1)
arena.declare(0, {"block_bytes": [1]})
if sys.argv[3] == "sealed":
    arena.seal()
print("ready", flush=True)
sys.stdin.read()
"""


def child(directory: Path, name: str, how: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), name, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_members_see_each_others_bytes_and_facts(tmp_path: Path) -> None:
    worker = Arena.attach(str(tmp_path), "engine", SIZE, 2)
    scheduler = Arena.attach(str(tmp_path), "engine", 0, 2)
    worker.declare(0, {"block_bytes": [3, 4]})
    Arena.attach(str(tmp_path), "engine", SIZE, 2).declare(1, {"block_bytes": [5]})
    assert scheduler.declarations(1) == [{"block_bytes": [3, 4]}, {"block_bytes": [5]}]
    worker.data[100:103] = b"abc"
    assert bytes(scheduler.data[100:103]) == b"abc"
    assert scheduler.data_bytes == worker.data_bytes == SIZE


def test_the_address_is_that_of_the_data(tmp_path: Path) -> None:
    import ctypes

    arena = Arena.attach(str(tmp_path), "engine", SIZE, 1)
    arena.data[:4] = b"1234"
    assert ctypes.string_at(arena.address, 4) == b"1234"


def test_an_engine_killed_after_start_up_leaves_nothing(tmp_path: Path) -> None:
    process = child(tmp_path, "engine", "sealed")
    assert list(tmp_path.iterdir()) == []
    kill(process)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_killed_during_start_up_is_swept_away_by_the_next(tmp_path: Path) -> None:
    kill(child(tmp_path, "first", "named"))
    assert arena_path(str(tmp_path), "first").exists()
    Arena.attach(str(tmp_path), "second", SIZE, 1).seal()
    assert list(tmp_path.iterdir()) == []


def test_a_living_engine_is_not_swept_away(tmp_path: Path) -> None:
    process = child(tmp_path, "living", "named")
    assert sweep(str(tmp_path)) == []
    assert arena_path(str(tmp_path), "living").exists()
    kill(process)
    assert sweep(str(tmp_path)) == [arena_path(str(tmp_path), "living")]


def test_two_engines_with_one_id_are_told_apart(tmp_path: Path) -> None:
    Arena.attach(str(tmp_path), "same", SIZE, 1).declare(0, {})
    with pytest.raises(ArenaError, match="engine_id"):
        Arena.attach(str(tmp_path), "same", SIZE, 1).declare(0, {})


def test_a_worker_that_never_comes_is_named(tmp_path: Path) -> None:
    arena = Arena.attach(str(tmp_path), "engine", SIZE, 2)
    arena.declare(0, {})
    with pytest.raises(ArenaError, match="worker 1 of 2"):
        arena.declarations(0.05)


def test_too_little_shared_memory_names_size_and_remedy(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(ArenaError, match=r"needs \d+ bytes in .*shm-size"):
        Arena.attach(str(tmp_path), "engine", free * 2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArenaError, match="shm_dir"):
        Arena.attach(str(tmp_path / "no"), "engine", SIZE, 1)
