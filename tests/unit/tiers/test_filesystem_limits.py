"""The filesystem tier on media that refuse: full, read-only, forbidden, and when its process is killed."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.chunks.namespace import NAMESPACE_FILE, Namespace
from kvstrata.errors import BadReason, ConfigError
from kvstrata.tiers.catalog import check_record, iter_records
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Bad, Failed, Loaded, Missing, Present, Stored

NAMESPACE = Namespace("org/tiny", {"weights": "abc"})
GEOMETRIES = {0: GroupGeometry(0, GroupKind.FULL, 16, 8, (8192,))}
SIZE = GEOMETRIES[0].payload_bytes
NOBODY = 65534


def key_of(number: int) -> ChunkKey:
    return make_key(hashlib.sha256(str(number).encode()).digest(), 0)


def payload_of(key: ChunkKey) -> memoryview:
    return memoryview(hashlib.shake_128(key).digest(SIZE))


def open_tier(root: Path, **options: bool) -> FilesystemTier:
    tier = FilesystemTier(root, NAMESPACE, GEOMETRIES, **options)
    tier.prepare()
    return tier


def holds(tier: FilesystemTier, key: ChunkKey) -> bool:
    into = bytearray(SIZE)
    outcome = tier.read(key, memoryview(into))
    if isinstance(outcome, Loaded):
        assert into == payload_of(key)
        return True
    assert outcome == Missing()
    return False


def temporaries(directory: Path) -> list[Path]:
    return [file.path for file in iter_records(directory) if file.temporary]


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)


def test_a_full_disk_fails_writes_and_nothing_else(small: Path) -> None:
    tier = open_tier(small)
    outcomes = [tier.write(key_of(i), payload_of(key_of(i))) for i in range(30)]
    stored = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Stored)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(stored) > 5 and len(failed) > 5
    assert {outcome.reason for outcome in failed} == {"ENOSPC"}
    assert temporaries(tier.directory) == []
    assert [i for i in range(30) if holds(tier, key_of(i))] == stored
    # Room again: writing goes on.
    for i in stored[:3]:
        assert tier.remove(key_of(i))
    assert isinstance(tier.write(key_of(99), payload_of(key_of(99))), Stored)
    assert holds(tier, key_of(99))


def test_an_engine_that_starts_on_a_full_disk_writes_when_there_is_room(small: Path) -> None:
    ballast = small / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    tier = open_tier(small)
    assert not tier.read_only
    outcome = tier.write(key_of(0), payload_of(key_of(0)))
    assert isinstance(outcome, Failed) and outcome.reason == "ENOSPC"
    ballast.unlink()
    assert isinstance(tier.write(key_of(0), payload_of(key_of(0))), Stored)
    assert (tier.directory / NAMESPACE_FILE).read_text() == NAMESPACE.to_json()


def test_a_read_only_mount_is_read_from(small: Path) -> None:
    writer = open_tier(small)
    writer.write(key_of(0), payload_of(key_of(0)))
    mount("-o", "remount,ro", str(small))
    outcome = writer.write(key_of(1), payload_of(key_of(1)))
    assert isinstance(outcome, Failed) and outcome.reason == "EROFS"
    tier = open_tier(small)
    assert tier.read_only
    assert holds(tier, key_of(0))


def test_an_empty_read_only_mount(small: Path) -> None:
    mount("-o", "remount,ro", str(small))
    tier = open_tier(small)
    assert tier.read_only
    assert not holds(tier, key_of(0))
    with pytest.raises(ConfigError, match="Read-only file system"):
        open_tier(small / "below")


def as_nobody(action: Callable[[], None]) -> None:
    """Run an action in a child without privileges; what it asserts counts here."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
            failed = 0
        finally:
            if failed:
                traceback.print_exc()
            os._exit(failed)  # the rest of the tests belongs to the parent
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the child's traceback"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose parents anybody may enter, unlike pytest's own."""
    place = Path(tempfile.mkdtemp(prefix="kvstrata-test-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def readable(root: Path) -> None:
    """Let everybody read a root, as an operator may; what is made there is for its user alone."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_somebody_elses_directory_is_read_from(place: Path) -> None:
    owner = open_tier(place / "kv")
    owner.write(key_of(0), payload_of(key_of(0)))
    readable(place / "kv")

    def check() -> None:
        tier = open_tier(place / "kv")
        assert tier.read_only
        assert holds(tier, key_of(0))
        assert isinstance(tier.write(key_of(1), payload_of(key_of(1))), Failed)

    as_nobody(check)


def test_a_directory_that_may_not_be_entered(place: Path) -> None:
    open_tier(place / "kv")

    def check() -> None:
        with pytest.raises(ConfigError, match=r"kv: Permission denied \(EACCES\); give"):
            open_tier(place / "kv")

    as_nobody(check)


def test_a_namespace_that_may_not_be_entered(place: Path) -> None:
    tier = open_tier(place / "kv")
    readable(place / "kv")
    tier.directory.chmod(0o700)

    def check() -> None:
        with pytest.raises(ConfigError, match=NAMESPACE.directory_name):
            open_tier(place / "kv")

    as_nobody(check)


def test_a_root_that_cannot_be_made(place: Path) -> None:
    def check() -> None:
        with pytest.raises(ConfigError, match=rf"{place}/kv: Permission denied \(EACCES\); give"):
            open_tier(place / "kv")

    as_nobody(check)


def test_a_chunk_that_may_not_be_read_stays(place: Path) -> None:
    owner = open_tier(place / "kv")
    owner.write(key_of(0), payload_of(key_of(0)))
    (path,) = (file.path for file in iter_records(owner.directory))
    readable(place / "kv")
    path.chmod(0)

    def check() -> None:
        outcome = open_tier(place / "kv").read(key_of(0), memoryview(bytearray(SIZE)))
        assert isinstance(outcome, Bad) and outcome.reason is BadReason.PERMISSION

    as_nobody(check)
    assert path.exists()


WRITER = f"""
import sys
from pathlib import Path
from {__name__} import key_of, open_tier, payload_of

tier = open_tier(Path(sys.argv[1]))
start = int(sys.argv[2])
chunks = [(key_of(number), payload_of(key_of(number))) for number in range(start, start + 100)]
print("ready", flush=True)
while True:
    for key, payload in chunks:
        tier.write(key, payload)
    for key, _ in chunks:
        tier.remove(key)
"""


def test_a_killed_writer_leaves_only_whole_chunks(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    tier = open_tier(root)
    delays = random.Random(7)
    for start in range(0, 1200, 100):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), str(start)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delays.uniform(0.001, 0.04))
        child.kill()
        child.wait()
        child.stdout.close()
    published = [file for file in iter_records(tier.directory) if not file.temporary]
    assert published
    for file in published:
        check_record(file.path)
    # Whatever a dead writer left behind is no chunk, and bars nobody's way.
    keys = set(tier.scan())
    assert keys == {file.key for file in published}
    for number in range(1200):
        key = key_of(number)
        assert holds(tier, key) == (key in keys)
        assert isinstance(tier.write(key, payload_of(key)), Present if key in keys else Stored)


def test_a_writer_that_is_killed_inside_a_write(tmp_path: Path) -> None:
    """Killed at a chosen place: after half of the payload, before the rename."""
    tier = open_tier(tmp_path / "kv")
    child = os.fork()
    if child == 0:
        write = os.pwritev

        def half(fd: int, buffers: list[memoryview], offset: int) -> int:
            write(fd, [buffers[0], buffers[-1][: SIZE // 2]], offset)
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.pwritev = half  # type: ignore[assignment]
        tier.write(key_of(0), payload_of(key_of(0)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    (left,) = temporaries(tier.directory)
    assert left.stat().st_size > SIZE // 2
    assert not holds(tier, key_of(0))
    assert list(tier.scan()) == []
    assert isinstance(tier.write(key_of(0), payload_of(key_of(0))), Stored)
    assert holds(tier, key_of(0))
