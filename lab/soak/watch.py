"""What processes and directories hold: descriptors, threads, memory, files. Looked at from outside."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvstrata.chunks.key import SUFFIX
from kvstrata.fileio.publish import TEMPORARY

LOOK_SECONDS = 0.1
"""Between two looks at what a root holds."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds.

    Attributes:
        descriptors: open files.
        threads: of the process.
        resident: bytes of memory.
    """

    descriptors: int
    threads: int
    resident: int

    def exceeds(self, level: "Held") -> bool:
        """Whether there are more descriptors or threads than in `level`."""
        return self.descriptors > level.descriptors or self.threads > level.threads


def held(pid: int) -> Held | None:
    """What a process holds now; None if there is no such process."""
    root = Path(f"/proc/{pid}")
    try:
        lines = (root / "status").read_text().splitlines()
        facts = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return Held(
            descriptors=len(list((root / "fd").iterdir())),
            threads=int(facts["Threads"]),
            resident=int(facts["VmRSS"].split()[0]) * 1024,
        )
    except (OSError, KeyError):  # a process that is ending has no VmRSS
        return None


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process stand for."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return sorted(found)


def temporary_files(root: Path) -> list[Path]:
    """Files below a root that are being written, or whose writer died."""
    return files(root, lambda name: name.startswith(TEMPORARY))


def files(root: Path, wanted: Callable[[str], bool] = lambda _name: True) -> list[Path]:
    """Files below a directory, at any depth; none where there is no directory."""
    return [
        Path(parent, name) for parent, _, names in os.walk(root) for name in names if wanted(name)
    ]


def stored_bytes(root: Path) -> int:
    """Bytes of all published chunks below a root; one that stands under several names counts once."""
    found: dict[tuple[int, int], int] = {}
    for path in files(root, lambda name: name.endswith(SUFFIX)):
        with contextlib.suppress(OSError):
            status = path.lstat()
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


@contextlib.contextmanager
def watching(root: Path, saw: Callable[[int], None]) -> Iterator[None]:
    """Measure `stored_bytes` again and again while the block runs; each is told to `saw`, in a thread."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            saw(stored_bytes(root))

    thread = threading.Thread(target=look, name="soak-watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
