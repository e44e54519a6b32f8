"""A bound that is lowered while engines write, a disk that others fill, a root full of what is not ours."""

import contextlib
import hashlib
import os
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.tiers import keeper as keepers
from kvstrata.tiers.bounded import CAPACITY, BoundedTier
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Keeper
from kvstrata.tiers.ring import Directories, gather
from kvstrata.tiers.shares import Bound
from kvstrata.tiers.tier import Failed, Loaded, Missing, Stored

SIZE = 4096
GEOMETRY = GroupGeometry(0, GroupKind.FULL, 16, 1, (SIZE,))


def key_of(number: int) -> ChunkKey:
    return make_key(hashlib.sha256(b"%d" % number).digest(), 0)


def payload_of(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def engine(root: Path, bound: Bound) -> BoundedTier:
    inner = FilesystemTier(root, Namespace("m", {}), {0: GEOMETRY})
    inner.prepare()
    return BoundedTier(inner, inner.directory, bound, SIZE, MonotonicClock(), lambda done: None)


def held(root: Path) -> int:
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            if name.endswith(".kv"):
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(directory) / name).stat().st_size
    return total


def test_a_bound_that_is_lowered_under_load_holds_soon_and_no_chunk_is_wrong(
    tmp_path: Path,
) -> None:
    high, low = 4 << 20, 1 << 20
    stop, wrong, loaded = threading.Event(), list[int](), list[int]()
    first = engine(tmp_path, Bound(capacity=high))

    def write(tier: BoundedTier, begin: int) -> None:
        number = begin
        while not stop.is_set():
            outcome = tier.write(key_of(number), memoryview(payload_of(number)))
            if isinstance(outcome, Failed):
                assert outcome.reason == CAPACITY
                time.sleep(0.001)
            number += 1

    def read() -> None:
        into = memoryview(bytearray(SIZE))
        chance = random.Random(1)
        while not stop.is_set():
            number = chance.randrange(20_000)
            outcome = first.read(key_of(number), into)
            if isinstance(outcome, Loaded):
                (loaded if bytes(into) == payload_of(number) else wrong).append(number)
            else:
                assert isinstance(outcome, Missing)

    threads = [threading.Thread(target=write, args=(first, 0)), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    _until(lambda: held(tmp_path) > high / 2 and loaded)
    second = engine(tmp_path, Bound(capacity=low))  # an engine that was restarted with less
    threads.append(threading.Thread(target=write, args=(second, 10**6)))
    threads[-1].start()
    first.close()  # and the other one is stopped: it writes only as long as it has room
    _until(lambda: held(tmp_path) <= low)
    stop.set()
    for thread in threads:
        thread.join(30)
    second.close()
    assert loaded and not wrong


def test_a_disk_that_others_fill_is_left_its_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, free = 4 << 20, 1 << 20
    others = 0

    def statvfs(path: object) -> SimpleNamespace:
        left = max(disk - others - held(tmp_path), 0)
        return SimpleNamespace(f_frsize=1, f_bavail=left, f_blocks=disk)

    monkeypatch.setattr(keepers.os, "statvfs", statvfs)
    inner = FilesystemTier(tmp_path, Namespace("m", {}), {0: GEOMETRY})
    inner.prepare()
    keeper = Keeper(tmp_path, Bound(free=free), MonotonicClock(), lambda done: None, SIZE)

    def write(count: int) -> int:
        stored = 0
        for number in range(count):
            if keeper.admit(SIZE):
                outcome = inner.write(key_of(number), memoryview(payload_of(number)))
                stored += isinstance(outcome, Stored)
                keeper.landed(SIZE)
            elif number % 50 == 0:
                assert keeper.look() is not None
        return stored

    write(3000)
    assert disk / 2 < held(tmp_path) <= disk - free
    others = 2 << 20  # somebody else's files
    while (done := keeper.look()) is not None and done.removed:
        pass
    assert held(tmp_path) <= disk - others - free, "room was made before anything failed"
    others = disk
    assert keeper.look() is not None
    assert not write(10), "nothing is written where nothing is left"


def test_what_is_not_ours_is_passed_over_however_much_it_is(tmp_path: Path) -> None:
    tier = FilesystemTier(tmp_path, Namespace("m", {}), {0: GEOMETRY})
    tier.prepare()
    for number in range(200):
        tier.write(key_of(number), memoryview(payload_of(number)))
    foreign = 50_000
    places = [path.parent for path in tier.directory.rglob("*.kv")]
    for number in range(foreign):
        fd = os.open(places[number % 20] / f"foreign {number}", os.O_CREAT | os.O_WRONLY)
        os.close(fd)
    _, found = gather(Directories([str(tier.directory)]), random.Random(1))
    assert len(found.files) == 200 and found.foreign == foreign
    keeper = Keeper(tmp_path, Bound(capacity=100 * SIZE), MonotonicClock(), lambda done: None)
    while (done := keeper.look()) is not None and done.removed:
        pass
    assert held(tmp_path) <= 100 * SIZE
    assert sum(1 for _ in tier.directory.rglob("foreign *")) == foreign


def _until(condition: object) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
