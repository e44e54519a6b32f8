"""The arena's memory comes in the background: nothing is used before it is there, and a full disk is told."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kvstrata.errors import ArenaError
from kvstrata.tiers import arena_pages
from kvstrata.tiers.arena import Arena
from kvstrata.tiers.arena_pages import gives_huge_pages

MIB = 1 << 20

FULL = """
import os, sys
from pathlib import Path
from kvstrata.errors import ArenaError
from kvstrata.tiers import arena_pages
from kvstrata.tiers.arena import Arena
directory = Path(sys.argv[1])
assert arena_pages.gives_huge_pages(directory) == (sys.argv[2] == "huge")
arena_pages.ALLOCATE_STEP = 4 << 20
take = arena_pages.Pages._take
def taken(pages, begin, length):
    if begin == 8 << 20:  # another process fills what was free when the arena was made
        with open(directory / "other", "wb") as other:
            try:
                while other.write(bytes(1 << 20)):
                    other.flush()
            except OSError:
                pass
    return take(pages, begin, length)
arena_pages.Pages._take = taken
arena = Arena.attach(str(directory), "engine", 32 << 20, 1)
arena.declare(0, {})
try:
    arena.declarations(10)
except ArenaError as error:
    print(error)
arena.close()
os.unlink(directory / "other")
arena_pages.Pages._take = take
arena = Arena.attach(str(directory), "another", 32 << 20, 1)
arena.await_memory(10)
arena.data[-1] = 1
arena.close()
"""


def test_the_engine_goes_on_while_memory_is_allocated_and_waits_before_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real = threading.Event(), os.posix_fallocate

    def slowly(fd: int, offset: int, length: int) -> None:
        go.wait()
        real(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", slowly)
    worker = Arena.attach(str(tmp_path), "engine", MIB, 1)
    scheduler = Arena.attach(str(tmp_path), "engine", 0, 1)
    worker.declare(0, {"block_bytes": [3]})
    with pytest.raises(ArenaError, match=f"only 0 of {MIB} bytes"):
        scheduler.declarations(0.05)
    go.set()
    assert scheduler.declarations(10) == [{"block_bytes": [3]}]
    assert scheduler.path.stat().st_blocks * 512 >= MIB
    scheduler.close()
    worker.close()


def test_mapping_keeps_what_was_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_pages, "POPULATE_STEP", 64 << 10)
    worker = Arena.attach(str(tmp_path), "engine", 16 * MIB, 1)
    scheduler = Arena.attach(str(tmp_path), "engine", 0, 1)
    scheduler.await_memory(10)
    pattern = np.random.default_rng(1).integers(0, 256, 16 * MIB, dtype=np.uint8)
    np.frombuffer(worker.data, np.uint8)[:] = pattern
    scheduler.await_pages()
    worker.await_pages()
    assert (np.frombuffer(scheduler.data, np.uint8) == pattern).all()
    scheduler.close()
    worker.close()


def test_an_arena_can_be_left_while_its_memory_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_pages, "ALLOCATE_STEP", 4096)
    arena = Arena.attach(str(tmp_path), "engine", 8 * MIB, 1)
    arena.seal()
    arena.close()
    arena.close()
    assert not any(thread.name == "kvstrata-pages" for thread in threading.enumerate())


def test_a_mount_that_fills_while_memory_is_allocated_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    arena = Arena.attach(str(tmp_path), "engine", MIB, 1)
    arena.declare(0, {})
    with pytest.raises(ArenaError, match=rf"needs {MIB} bytes in .*lower the option 'memory'"):
        arena.declarations(10)
    arena.close()


@pytest.mark.parametrize("pages", ["small", "huge"])
def test_a_real_memory_filesystem_that_fills_raises_an_error_and_no_signal(
    tmp_path: Path, pages: str
) -> None:
    options = "size=48m" + (",huge=advise" if pages == "huge" else "")
    mount = f'mount -t tmpfs -o {options} none "$1" && exec "$2" -c "$3" "$1" {pages}'
    run = (
        subprocess.run(
            ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("unshare")
        else None
    )
    if run is None or "permi" in run.stderr.lower() or "bad option" in run.stderr:
        pytest.skip("this machine does not let the test mount a file system of its own")
    assert run.returncode == 0, run.stderr
    assert f"needs {32 * MIB} bytes in '{tmp_path}'" in run.stdout


def test_huge_pages_are_a_matter_of_the_mount() -> None:
    assert not gives_huge_pages(Path("/proc"))
