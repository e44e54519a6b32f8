"""Nodes whose clocks are hours apart keep one root alike: ages go by the file system's clock alone."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Keeper
from kvstrata.tiers.recency import Recency
from kvstrata.tiers.shares import HIGH, Bound
from kvstrata.tiers.tier import Loaded, Missing

HOUR = 3600.0
SIZE, FILES, LEFT = 1000, 1500, 1000
BASE = "m-" + "0" * 32


def fill(root: Path) -> None:
    """Files that were used over the last five hours, and a temporary one that is being written."""
    now = time.time()
    for number in range(FILES):
        key = make_key(random.Random(number).randbytes(32), 0)
        path = root / BASE / relative_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE))
        os.utime(path, (now, now - 5 * HOUR * number / FILES))
    (path.parent / f"{TEMPORARY}1").write_bytes(b"half")


def chunks(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*.kv")}


def keep(root: Path, ahead: float, capacity: int) -> None:
    """What a node does whose clock is wrong by so much, until the bound holds."""
    real = time.time
    time.time = lambda: real() + ahead
    keeper = Keeper(
        root, Bound(capacity=capacity), MonotonicClock(), print, chance=random.Random(1)
    )
    while (done := keeper.look()) is None or done.removed:
        pass


def in_a_process(*given: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=keep, args=given)
    process.start()
    return process


@pytest.mark.parametrize("ahead", [-6 * HOUR, 6 * HOUR])
def test_a_wrong_clock_evicts_what_a_right_one_does(tmp_path: Path, ahead: float) -> None:
    left = {}
    for name, wrong in (("right", 0.0), ("wrong", ahead)):
        fill(tmp_path / name)
        process = in_a_process(tmp_path / name, wrong, LEFT * SIZE)
        process.join(60)
        assert process.exitcode == 0
        left[name] = chunks(tmp_path / name)
        assert len(list((tmp_path / name).rglob(f"{TEMPORARY}*"))) == 1
    assert left["right"] == left["wrong"]
    assert LEFT * 0.9 < len(left["right"]) <= LEFT * HIGH


def test_two_nodes_twelve_hours_apart_at_once(tmp_path: Path) -> None:
    fill(tmp_path)
    before = chunks(tmp_path)
    nodes = [in_a_process(tmp_path, ahead, LEFT * SIZE) for ahead in (-6 * HOUR, 6 * HOUR)]
    for node in nodes:
        node.join(60)
        assert node.exitcode == 0
    left = chunks(tmp_path)
    assert LEFT * 0.9 < len(left) <= LEFT * HIGH
    used = {name: (tmp_path / name).stat().st_mtime for name in left}
    assert left < before and min(used.values()) > time.time() - 4.5 * HOUR, "the oldest went"


@pytest.mark.parametrize("ahead", [-6 * HOUR, 6 * HOUR])
def test_time_to_live_goes_by_the_file_systems_clock(tmp_path: Path, ahead: float) -> None:
    geometry = GroupGeometry(0, GroupKind.FULL, 16, 1, (4096,))
    recency = Recency(ttl=HOUR, now=lambda: time.time() + ahead)
    tier = FilesystemTier(tmp_path, Namespace("m", {}), {0: geometry}, recency=recency)
    tier.prepare()
    recency.learn(time.time())  # as a keeper does, from a file that it has written
    key = make_key(bytes(32), 0)
    tier.write(key, memoryview(bytes(4096)))
    (path,) = tier.directory.rglob("*.kv")
    into = memoryview(bytearray(4096))
    assert isinstance(tier.read(key, into), Loaded)
    os.utime(path, (time.time(), time.time() - 1.1 * HOUR))
    assert isinstance(tier.read(key, into), Missing)


def test_who_is_killed_while_it_evicts_is_followed_by_another(tmp_path: Path) -> None:
    fill(tmp_path)
    first = in_a_process(tmp_path, 0.0, 600 * SIZE)
    while len(chunks(tmp_path)) == FILES and first.is_alive():
        time.sleep(0.001)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join(60)
    second = in_a_process(tmp_path, 0.0, 600 * SIZE)
    second.join(60)
    assert second.exitcode == 0
    assert len(chunks(tmp_path)) <= 600 * HIGH
