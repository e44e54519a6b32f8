"""Small chunks in segments, in a file each, and vLLM's files beside them: stores, loads, and whole requests.

What decides how large a chunk may be to share a file. Ours verifies every block; vLLM verifies nothing.
Figures are ratios of medians over rounds.
"""

import argparse
import os
import statistics
from functools import partial

from rich.console import Console
from rich.table import Table
from vllm.v1.kv_offload.tiering.fs.thread_pool import DualQueueThreadPool

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.namespace import Namespace
from kvstrata.tiers.filesystem import FilesystemTier
from lab import report
from lab.bench import fileio_sides as sides
from lab.bench.fileio import buffer_of
from lab.bench.results import Samples, add, in_turn, save
from lab.exclusive import exclusive

ROUNDS = 5
KIB = 1 << 10
SIZES = (64 * KIB, 256 * KIB, 400 * KIB, 600 * KIB, 1024 * KIB, 4096 * KIB)
TOTAL = 96 << 20
ALWAYS = 1 << 30
"""Segment bytes with which chunks of every size here share a file, as many as a job has."""
DIRECTORY = report.BUILD / "bench" / "segments"
REQUEST_CHUNK, REQUEST_CHUNKS, REQUESTS = 64 * KIB, 8192, 10
IO_THREADS, THEIR_THREADS = 2, 16
NOTES = {
    "load_packed_*": "GB/s of segments over a file for each chunk, page cache hot, one thread",
    "store_packed_*": "the same for stores, no fsync",
    "load_vllm_*": "GB/s of segments over vLLM's buffered files; vllm_default: its O_DIRECT",
    "request_*": "wall time of vLLM's tier over ours: one request of 8192 chunks of 64 KiB, or ten at once",
    "samples": "GB/s by case, except requests: milliseconds",
}


class Packed(sides.Files):
    """Chunks of which all that a job has share a file."""

    segment = ALWAYS

    def _tier(self) -> FilesystemTier:
        geometry = GroupGeometry(0, GroupKind.FULL, 16, 1, (self.size,))
        root = self.directory / f"ours-{self.segment}"
        tier = FilesystemTier(root, Namespace("bench", {}), {0: geometry}, segment=self.segment)
        tier.prepare()
        return tier


class Single(Packed):
    """Chunks that have a file each."""

    segment = 0


def by_size(rounds: int, samples: Samples) -> None:
    """Stores and hot loads of one thread."""
    buffer = buffer_of(TOTAL)
    for size in SIZES:
        count = TOTAL // size
        ways = {"packed": Packed, "single": Single}
        for turn in range(rounds):
            made = {}
            for name in in_turn([*ways, "vllm"], turn):
                files = ways.get(name, sides.Files)(DIRECTORY / name, buffer, size, count)
                work = sides.store_ours if name in ways else sides.store_theirs
                made[name] = files
                seconds = sides.timed(work, files, 1)
                add(samples, f"store {size // KIB}K {name}", size * count / seconds / 1e9)
            os.sync()
            loads: dict[str, tuple[sides.Work, sides.Files]] = {
                "packed": (sides.load_ours, made["packed"]),
                "single": (sides.load_ours, made["single"]),
                "vllm": (sides.load_theirs, made["vllm"]),
                "vllm direct": (partial(sides.load_theirs, direct=True), made["vllm"]),
            }
            for name in in_turn(list(loads), turn):
                seconds = sides.timed(*loads[name], 1)
                add(samples, f"load {size // KIB}K {name}", size * count / seconds / 1e9)
            for files in made.values():
                files.remove()


def requests(rounds: int, samples: Samples) -> None:
    """One request's chunks through the threads of a tier, and ten requests at once."""
    buffer = buffer_of(REQUEST_CHUNK * REQUEST_CHUNKS)
    everything = range(REQUEST_CHUNKS)
    cases = {"request": [everything], "ten": [everything[i::REQUESTS] for i in range(REQUESTS)]}
    runner = sides.our_runner(IO_THREADS)
    pool = DualQueueThreadPool(THEIR_THREADS, THEIR_THREADS)
    kinds = {"packed": Packed, "single": Single, "vllm": sides.Files}
    for case, shares in cases.items():
        made = {
            name: kind(DIRECTORY / name, buffer, REQUEST_CHUNK, REQUEST_CHUNKS)
            for name, kind in kinds.items()
        }
        for name, files in made.items():
            for share in shares:  # each request was stored by itself
                (sides.store_theirs if name == "vllm" else sides.store_ours)(files, share)
        os.sync()
        for turn in range(rounds):
            for name in in_turn(["packed", "single", "vllm", "vllm direct"], turn):
                files = made[name.split()[0]]
                if name.startswith("vllm"):
                    direct = name.endswith("direct")
                    seconds = sides.request_theirs(files, shares, pool, direct)
                else:
                    seconds = sides.request_ours(files, shares, runner)
                add(samples, f"{case} {name}", seconds * 1e3)
        for files in made.values():
            files.remove()
    runner.close(10.0)
    pool.shutdown()


def figures(samples: Samples) -> dict[str, float]:
    """Ratios of medians; above 1 is good for segments."""
    middle = {key: statistics.median(values) for key, values in samples.items()}
    found = {}
    for key, value in middle.items():
        case, size, *side = key.split()
        if size == "packed" or (side and side[0] == "packed"):
            base = key.removesuffix(" packed")
            for other in ("single", "vllm", "vllm direct"):
                if f"{base} {other}" in middle:
                    ratio = value / middle[f"{base} {other}"]
                    name = f"{base} over {other}".replace(" ", "_")
                    found[name] = ratio if case in ("load", "store") else 1 / ratio
    return found


def show(samples: Samples, found: dict[str, float], console: Console) -> None:
    """Medians with their spread, then the figures."""
    table = Table("case", "median", "least", "most")
    for key, values in samples.items():
        table.add_row(
            key, *(f"{x:.2f}" for x in (statistics.median(values), min(values), max(values)))
        )
    console.print(table)
    for name, value in found.items():
        console.print(f"{name}: {value:.2f}")


def main() -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=("sizes", "requests"))
    chosen = parser.parse_args()
    console = Console()
    samples: Samples = {}
    with exclusive(report.MEASURING):
        if chosen.only != "requests":
            by_size(chosen.rounds, samples)
        if chosen.only != "sizes":
            requests(chosen.rounds, samples)
    found = figures(samples)
    show(samples, found, console)
    console.print(f"written to {save('segments', found, NOTES, samples)}")


if __name__ == "__main__":
    main()
