"""A bounded root: how well a sample tells its size, how near it stays to its bound and to the order of age.

Estimates of roots too large to make are those of the same code over directories that chance fills. Roots of
real files are compared with a full crawl, and evictions with a perfect order of age and with the order of
directories, as cleaners do that walk the tree.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.tiers.bounded import BoundedTier
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Keeper
from kvstrata.tiers.ring import Contents, Directories, sample
from kvstrata.tiers.shares import RING, Bound, Held
from kvstrata.tiers.tier import Stored
from lab import report
from lab.bench import capacity_calls
from lab.bench.results import save

DIRECTORY = report.BUILD / "bench" / "capacity"
SIZES = (400_000, 1_300_000)
"""Bytes of a chunk in two groups of a hybrid; the second has a quarter of the chunks."""
SEEDS = 200
FILES = 50_000
WRITERS, WRITE_SECONDS, WRITE_BOUND, WRITE_CHUNK = 4, 20.0, 200 << 20, 1 << 20
AGED, AGED_BOUND = 20_000, 0.7
NOTES = {
    "estimate_error_percent_*": "of bytes, absolute, 95th percentile over seeds; 1e8, 1e6: filled by chance",
    "directories_read_percent_*": "of 65 536, for one estimate, median",
    "look_ms, crawl_ms": "one estimate, and a crawl that stats every file, of the real root",
    "calls_per_s_at_rest": "system calls on the real root, of one engine with a bound that writes nothing",
    "calls_of_a_crawl": "system calls of one crawl that stats every file, of the real root",
    "calls_per_s_of_crawls": "of such a crawl as often as an engine at rest looks",
    "overshoot_percent": "bytes over the bound, the worst seen, four writers at full speed into 200 MiB",
    "written_MB_per_s": "what these four stored meanwhile, together",
    "age_order_error_percent": "of evicted bytes, those that a perfect order of age would have kept",
    "directory_order_error_percent": "the same of a cleaner that goes by directories",
}


class Chance(Directories):
    """Directories as chance fills them, made when they are read."""

    def __init__(self, files: int, seed: int) -> None:
        super().__init__(())
        self._each = files / RING
        self._random = np.random.default_rng(seed)
        self._names = [f"{number:02x}" for number in range(256)]

    def below(self, first: str) -> list[str]:
        """All of them."""
        return self._names

    def read(self, first: str, second: str, into: Contents) -> None:
        """As many files as chance has it."""
        into.directories += 1
        large = self._random.random(self._random.poisson(self._each)) < 0.2
        into.files += [Held("", SIZES[one], 0.0) for one in large.astype(int).tolist()]


def estimates(figures: dict[str, float], samples: dict[str, list[float]]) -> None:
    """Of roots that chance fills."""
    for name, files in (("1e6", 10**6), ("1e8", 10**8)):
        truth = files * (0.8 * SIZES[0] + 0.2 * SIZES[1])
        errors, read = [], []
        for seed in range(SEEDS if files < 10**7 else SEEDS // 4):
            seen = sample(Chance(files, seed), random.Random(seed))
            errors.append(100 * abs(seen.nbytes / truth - 1))
            read.append(100 * seen.directories / RING)
        figures[f"estimate_error_percent_{name}"] = float(np.percentile(errors, 95))
        figures[f"directories_read_percent_{name}"] = float(np.median(read))
        samples[f"errors {name}"] = errors


def put(root: Path, number: int, nbytes: int, used: float | None = None) -> None:
    """One file of ours with nothing in it but its length."""
    path = root / relative_path(make_key(random.Random(number).randbytes(32), 0))
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.truncate(file, nbytes)
    os.close(file)
    if used is not None:
        os.utime(path, (used, used))


def _fill(base: Path, numbers: range) -> None:
    for number in numbers:
        put(base, number, SIZES[number % 5 == 0])


def fill(base: Path, count: int) -> None:
    """Files of both sizes, made by as many processes as there are processors."""
    parts = os.cpu_count() or 1
    context = multiprocessing.get_context("fork")
    with context.Pool(parts) as pool:
        pool.map(partial(_fill, base), [range(part, count, parts) for part in range(parts)], 1)


def crawl(root: Path) -> list[Held]:
    """Every file, in the order of directories."""
    found = []
    for directory, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            if name.endswith(".kv"):
                with contextlib.suppress(OSError):
                    status = Path(directory, name).stat()
                    share = status.st_size / status.st_nlink
                    found.append(Held(f"{directory}/{name}", share, status.st_mtime))
    return found


def real_root(count: int, figures: dict[str, float], samples: dict[str, list[float]]) -> None:
    """A look at a root of real files, and what an engine at rest asks of it, beside a crawl."""
    root = DIRECTORY / "real"
    base = capacity_calls.base(root)
    fill(base, count)
    begun = time.perf_counter()
    truth = sum(one.nbytes for one in crawl(base))
    crawled = time.perf_counter() - begun
    errors, read, took = [], [], []
    for seed in range(SEEDS):
        begun = time.perf_counter()
        seen = sample(Directories([str(base)]), random.Random(seed))
        took.append(1000 * (time.perf_counter() - begun))
        errors.append(100 * abs(seen.nbytes / truth - 1))
        read.append(100 * seen.directories / RING)
    name = f"{count:.0e}".replace("e+0", "e")
    figures[f"estimate_error_percent_{name}_real"] = float(np.percentile(errors, 95))
    figures[f"directories_read_percent_{name}_real"] = float(np.median(read))
    figures["look_ms"], figures["crawl_ms"] = float(np.median(took)), 1000 * crawled
    samples["look_ms"] = took
    figures.update(capacity_calls.calls(root))
    shutil.rmtree(root)


def aged(figures: dict[str, float], samples: dict[str, list[float]]) -> None:
    """Evictions down to a bound, against a perfect order of age."""
    root = DIRECTORY / "aged"
    base = root / ("m-" + "0" * 32)
    chance = random.Random(7)
    for number in range(AGED):
        put(base, number, SIZES[number % 5 == 0], used=1e9 + chance.random() * 1e6)
    before = crawl(base)
    keeper = Keeper(
        root,
        Bound(capacity=int(AGED_BOUND * sum(one.nbytes for one in before))),
        MonotonicClock(),
        lambda done: None,
        chance=random.Random(1),
    )
    while (done := keeper.look()) is not None and done.removed:
        pass
    left = {one.path for one in crawl(base)}
    gone = [one for one in before if one.path not in left]
    freed = sum(one.nbytes for one in gone)
    figures["age_order_error_percent"] = _wrongly(before, gone, freed)
    figures["directory_order_error_percent"] = _wrongly(before, _until(before, freed), freed)
    samples["evicted bytes"] = [freed]
    shutil.rmtree(root)


def _until(files: list[Held], freed: float) -> list[Held]:
    """The first ones that make up so many bytes."""
    found, total = [], 0.0
    for one in files:
        if total >= freed:
            break
        found.append(one)
        total += one.nbytes
    return found


def _wrongly(before: list[Held], gone: list[Held], freed: float) -> float:
    perfect = {one.path for one in _until(sorted(before, key=lambda one: one.used), freed)}
    return 100 * sum(one.nbytes for one in gone if one.path not in perfect) / freed


def _write(root: Path, seed: int, end: float, stored: "multiprocessing.Queue[int]") -> None:
    geometry = GroupGeometry(0, GroupKind.FULL, 16, 1, (WRITE_CHUNK,))
    inner = FilesystemTier(root, Namespace("m", {"bench": "capacity"}), {0: geometry})
    inner.prepare()
    bound, clock = Bound(capacity=WRITE_BOUND), MonotonicClock()
    tier = BoundedTier(inner, inner.directory, bound, WRITE_CHUNK, clock, lambda done: None)
    payload = memoryview(bytearray(geometry.payload_bytes))
    chance, total = random.Random(seed), 0
    while time.monotonic() < end:
        outcome = tier.write(make_key(chance.randbytes(32), 0), payload)
        if isinstance(outcome, Stored):
            total += outcome.nbytes
        else:
            time.sleep(0.001)
    tier.close()
    stored.put(total)


def writers(figures: dict[str, float], samples: dict[str, list[float]]) -> None:
    """Four processes that write as fast as they may, and a crawl beside them."""
    root = DIRECTORY / "writers"
    root.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    stored: multiprocessing.Queue[int] = context.Queue()
    end = time.monotonic() + WRITE_SECONDS
    processes = [
        context.Process(target=_write, args=(root, seed, end, stored)) for seed in range(WRITERS)
    ]
    for process in processes:
        process.start()
    seen = []
    while time.monotonic() < end:
        seen.append(sum(one.nbytes for one in crawl(root)))
        time.sleep(0.05)
    total = sum(stored.get(timeout=30) for _ in processes)
    for process in processes:
        process.join(30)
    figures["overshoot_percent"] = 100 * max(max(seen) / WRITE_BOUND - 1, 0.0)
    figures["written_MB_per_s"] = total / WRITE_SECONDS / 1e6
    samples["held MiB"] = [one / 2**20 for one in seen]
    shutil.rmtree(root)


def main() -> None:
    """Run it; writes build/bench/capacity.json."""
    parser = argparse.ArgumentParser(prog="python -m lab.bench.capacity", description=__doc__)
    parser.add_argument("--files", type=int, default=FILES, help="of the real root")
    options = parser.parse_args()
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    figures: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    console = Console()
    for step in (estimates, aged, writers, partial(real_root, options.files)):
        known = set(figures)
        step(figures, samples)
        for name, value in figures.items():
            if name not in known:
                console.print(f"{name:40} {value:10.2f}", highlight=False)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    console.print(str(save("capacity", figures, NOTES, samples)), highlight=False)


if __name__ == "__main__":
    main()
