"""Writers and readers at full speed on one small bounded root.

`python -m lab.soak.bounded --minutes 10 --writers 4 --readers 2 --capacity 200MiB --seed 1` prints a
table and writes build/soak/bounded.json. The root is full when it begins. The status is 1 if a byte was
wrong, the bound was exceeded by more than a tenth, something was left over, a removed chunk was not announced
by the process that removed it, or a process did not end.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvstrata.chunks.key import ChunkKey, parse_file_name
from kvstrata.sizes import format_size, parse_size
from lab import report
from lab.soak import watch
from lab.soak.bounded_work import Found, Task, fill, read, write

OUTPUT = report.BUILD / "soak" / "bounded.json"
OVERSHOOT = 0.1
"""Share of the bound by which it may be exceeded."""
END_SECONDS = 30.0
"""In which processes end that were told to."""
SHOWN = 5
FAILED = 1


@dataclass(slots=True)
class Outcome:
    """What all of a run came to.

    Attributes:
        capacity: bytes that the root might hold.
        seconds: it took.
        most: bytes that were seen there at once.
        looks: times that they were counted.
        held: bytes in the end.
        found: by each process that ended.
        hung: processes that did not.
        died: processes that ended without a word.
        temporaries: files that nobody writes any more.
        lost: chunks that are gone and that nobody said were removed.
        strange: chunks that are there and that nobody wrote.
    """

    capacity: int
    seconds: float = 0.0
    most: int = 0
    looks: int = 0
    held: int = 0
    found: list[Found] = field(default_factory=list)
    hung: int = 0
    died: int = 0
    temporaries: int = 0
    lost: int = 0
    strange: int = 0

    @property
    def overshoot(self) -> float:
        """Share of the bound by which it was exceeded at most."""
        return max(self.most / self.capacity - 1, 0.0)

    @property
    def unannounced(self) -> int:
        """Names that a process removed without saying so, or said it had removed and had not."""
        return sum(
            ((one.removed - one.announced) + (one.announced - one.removed)).total()
            for one in self.found
        )

    def saw(self, nbytes: int) -> None:
        """Note how much the root holds now."""
        self.looks += 1
        self.most = max(self.most, nbytes)

    def faults(self) -> list[str]:
        """Why the run failed; empty where it did not."""
        wrong = [text for one in self.found for text in one.wrong]
        failed = sum((one.failed for one in self.found), Counter[str]())
        facts = {
            f"{len(wrong)} chunks were wrong: {wrong[:SHOWN]}": wrong,
            f"the bound was exceeded by {self.overshoot:.1%}": self.overshoot > OVERSHOOT,
            f"{self.unannounced} names removed and not announced, or the reverse": self.unannounced,
            f"writes failed: {dict(failed)}": failed,
            f"{self.temporaries} temporary files are left": self.temporaries,
            f"{self.lost} chunks are gone that nobody removed": self.lost,
            f"{self.strange} chunks are there that nobody wrote": self.strange,
            f"{self.hung} processes hang": self.hung,
            f"{self.died} processes died": self.died,
            "nothing was compared": not any(one.loaded for one in self.found),
            "nothing was removed": not any(one.removed for one in self.found),
        }
        return [text for text, holds in facts.items() if holds]

    def figures(self) -> dict[str, Any]:
        """What is told of the run, in order."""
        found = self.found
        return {
            "seconds": round(self.seconds, 1),
            "chunks stored": sum(len(one.stored) for one in found),
            "writes refused for want of room": sum(one.refused for one in found),
            "writes failed": sum(one.failed.total() for one in found),
            "chunks loaded and compared": sum(one.loaded for one in found),
            "chunks missing": sum(one.missing for one in found),
            "chunks wrong": sum(len(one.wrong) for one in found),
            "names removed": sum(one.removed.total() for one in found),
            "processes that removed some": sum(bool(one.removed) for one in found),
            "names removed and not announced, or the reverse": self.unannounced,
            "bound, bytes": self.capacity,
            "most bytes seen": self.most,
            "times that bytes were counted": self.looks,
            "overshoot, percent": round(100 * self.overshoot, 2),
            "bytes in the end": self.held,
            "temporary files left": self.temporaries,
            "processes that hang or died": self.hung + self.died,
        }


def run(
    root: Path, *, seconds: float, writers: int, readers: int, capacity: int, seed: int
) -> Outcome:
    """Let writers and readers work on a root for a time.

    Args:
        root: empty, of this user.
        seconds: after which they are told to end.
        writers: processes.
        readers: processes.
        capacity: bytes that the root may hold.
        seed: of all that is chosen.
    """
    # Nothing runs beside this thread yet, so a copy of the process is whole.
    context = multiprocessing.get_context("fork")
    task = Task(root, capacity, seed, context.Array("q", writers, lock=False), context.Event())
    outcome = Outcome(capacity, found=[fill(task)])
    work: list[tuple[Callable[..., None], int]] = [
        *((write, number) for number in range(writers)),
        *((read, number) for number in range(readers)),
    ]
    processes = []
    for one, number in work:
        hears, says = context.Pipe(duplex=False)
        process = context.Process(target=one, args=(task, number, says), daemon=True)
        process.start()
        says.close()  # else the end of a process that died is not heard
        processes.append((process, hears))
    begun = time.monotonic()
    try:
        with watch.watching(root, outcome.saw):
            time.sleep(seconds)
            task.stop.set()
            until = time.monotonic() + END_SECONDS
            for _, hears in processes:
                _hear(hears, until, outcome)
    finally:
        for process, _ in processes:
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()
    outcome.seconds = time.monotonic() - begun
    _compare(root, outcome)
    return outcome


def _hear(hears: "multiprocessing.connection.Connection", until: float, outcome: Outcome) -> None:
    """What a process found, if it says so in time."""
    if not hears.poll(max(until - time.monotonic(), 0.0)):
        outcome.hung += 1
        return
    try:
        outcome.found.append(hears.recv())
    except EOFError:
        outcome.died += 1


def _compare(root: Path, outcome: Outcome) -> None:
    """What is left in the root with what was written and announced."""
    outcome.held = watch.stored_bytes(root)
    outcome.temporaries = len(watch.temporary_files(root))
    left = {key for path in watch.files(root) if (key := parse_file_name(path.name)) is not None}
    stored: set[ChunkKey] = set().union(*(one.stored for one in outcome.found))
    announced: set[ChunkKey] = set().union(*(one.announced for one in outcome.found))
    if not outcome.hung and not outcome.died:
        outcome.lost = len(stored - left - announced)
        outcome.strange = len(left - stored)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.soak.bounded", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--capacity", type=parse_size, default=200 << 20, help="such as 200MiB")
    parser.add_argument("--seed", type=int, default=1, help="of keys and of what is chosen")
    parser.add_argument("--root", type=Path, help="empty directory; a temporary one by default")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, tell, and judge."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-bounded-") as place:
        outcome = run(
            options.root or Path(place),
            seconds=60 * options.minutes,
            writers=options.writers,
            readers=options.readers,
            capacity=options.capacity,
            seed=options.seed,
        )
    failed = outcome.faults()
    facts = {
        "seed": options.seed,
        "writers, readers": f"{options.writers}, {options.readers}",
        "bound": format_size(options.capacity),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "run": facts,
        "failed": failed,
        "figures": outcome.figures(),
        "machine": report.machine(),
        "versions": report.versions(),
    }
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    for name, value in {**facts, **outcome.figures()}.items():
        print(f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value} |")
    for text in failed:
        print(f"soak: {text}", file=sys.stderr)
    print(f"soak: {'failed' if failed else 'passed'}; {options.output}")
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
