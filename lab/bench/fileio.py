"""Files of chunks: our storage tier beside vLLM's C extension and bare system calls, in turn in one run.

Ours verifies every block; the rival verifies nothing. Figures are ratios of medians over rounds.
"""

import argparse
import mmap
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from vllm.v1.kv_offload.tiering.fs.thread_pool import DualQueueThreadPool

from lab import report
from lab.bench import fileio_sides as sides
from lab.bench.results import save
from lab.exclusive import exclusive

ROUNDS = 5
SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
THREADS = (1, 2, 4, 8)
TOTAL = 128 << 20
REQUEST_CHUNK, REQUEST_CHUNKS = 64 << 10, 8192
REQUESTS = 10
IO_THREADS = 2
THEIR_THREADS = 16
DIRECTORY = report.BUILD / "bench" / "fileio"
Samples = dict[str, list[float]]
NOTES = {
    "load_*": "GB/s of ours over vLLM's, page cache hot, one thread",
    "load_vs_vllm_default_4MiB": "the same, where vLLM reads with O_DIRECT, its default",
    "load_vs_limit_4MiB": "over open, preadv and close of the same bytes",
    "cold_vs_vllm_4MiB": "page cache dropped before; buffered both",
    "store_*": "GB/s of ours over vLLM's, buffered, no fsync on either side",
    "request_*": "wall time of vLLM's tier over ours: one request, or ten at once, chunks of 64 KiB",
    "samples": "GB/s by case, except request: milliseconds",
}


def label(size: int) -> str:
    """Such as 64K or 4M."""
    return f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}K"


def buffer_of(nbytes: int) -> memoryview:
    """Random bytes in memory whose pages are there."""
    memory = mmap.mmap(-1, nbytes)
    np.frombuffer(memory, np.uint8)[:] = np.random.default_rng(1).integers(
        0, 256, nbytes, dtype=np.uint8
    )
    return memoryview(memory)


def in_turn(names: list[str], turn: int) -> Iterator[str]:
    """The names, each round in another order, so that none always comes after the same."""
    for place in range(len(names)):
        yield names[(place + turn) % len(names)]


def loads(rounds: int, samples: Samples, console: Console) -> None:
    """Hot by size and threads, and cold by size."""
    buffer = buffer_of(TOTAL)
    for size in SIZES:
        files = sides.Files(DIRECTORY, buffer, size, TOTAL // size)
        files.make()
        for turn in range(rounds):
            for work in (sides.load_ours, sides.load_theirs):
                work(files, range(files.count))  # what the last round took from the page cache
            for threads in THREADS:
                for name in in_turn(list(sides.LOADS), turn):
                    seconds = sides.timed(sides.LOADS[name], files, threads)
                    add(samples, f"hot {label(size)} x{threads} {name}", TOTAL / seconds / 1e9)
            for name in in_turn(["ours", "vllm", "vllm direct"], turn):
                files.drop_cache()
                seconds = sides.timed(sides.LOADS[name], files, 1)
                add(samples, f"cold {label(size)} x1 {name}", TOTAL / seconds / 1e9)
        files.remove()
        console.print(f"loads of {label(size)} measured")


def stores(rounds: int, samples: Samples, console: Console) -> None:
    """New files in new directories, as in a cache that fills."""
    buffer = buffer_of(TOTAL)
    for size in SIZES[:4]:
        for turn in range(rounds):
            for name in in_turn(list(sides.STORES), turn):
                files = sides.Files(DIRECTORY, buffer, size, TOTAL // size)
                seconds = sides.timed(sides.STORES[name], files, 1)
                add(samples, f"store {label(size)} x1 {name}", TOTAL / seconds / 1e9)
                files.remove()
        console.print(f"stores of {label(size)} measured")


def requests(rounds: int, samples: Samples, console: Console) -> None:
    """One request's chunks through the threads of a tier, and ten requests at once."""
    buffer = buffer_of(REQUEST_CHUNK * REQUEST_CHUNKS)
    files = sides.Files(DIRECTORY, buffer, REQUEST_CHUNK, REQUEST_CHUNKS)
    files.make()
    runner = sides.our_runner(IO_THREADS)
    pool = DualQueueThreadPool(THEIR_THREADS, THEIR_THREADS)
    everything = range(REQUEST_CHUNKS)
    cases = {
        "request": [everything],
        "ten requests": [everything[i::REQUESTS] for i in range(REQUESTS)],
    }
    for turn in range(rounds):
        for case, shares in cases.items():
            for name in in_turn(["ours", "vllm", "vllm direct"], turn):
                if name == "ours":
                    seconds = sides.request_ours(files, shares, runner)
                else:
                    seconds = sides.request_theirs(files, shares, pool, name.endswith("direct"))
                add(samples, f"{case} {name}", seconds * 1e3)
    runner.close(10.0)
    pool.shutdown()
    files.remove()
    console.print("requests measured")


def add(samples: Samples, key: str, value: float) -> None:
    """One more measurement."""
    samples.setdefault(key, []).append(value)


def figures(samples: Samples) -> dict[str, float]:
    """What the samples say, by name; those not measured are left out."""
    middle = {key: statistics.median(values) for key, values in samples.items()}
    wanted = {
        "load_vs_vllm_1MiB": ("hot 1M x1 ours", "hot 1M x1 vllm"),
        "load_vs_vllm_4MiB": ("hot 4M x1 ours", "hot 4M x1 vllm"),
        "load_vs_vllm_default_4MiB": ("hot 4M x1 ours", "hot 4M x1 vllm direct"),
        "load_vs_limit_4MiB": ("hot 4M x1 ours", "hot 4M x1 bare"),
        "cold_vs_vllm_4MiB": ("cold 4M x1 ours", "cold 4M x1 vllm"),
        "store_vs_vllm_1MiB": ("store 1M x1 ours", "store 1M x1 vllm"),
        "store_vs_vllm_4MiB": ("store 4M x1 ours", "store 4M x1 vllm"),
        "request_vs_vllm_8192x64KiB": ("request vllm direct", "request ours"),
        "request_vs_vllm_buffered": ("request vllm", "request ours"),
        "ten_requests_vs_vllm": ("ten requests vllm direct", "ten requests ours"),
        "ten_requests_vs_vllm_buffered": ("ten requests vllm", "ten requests ours"),
    }
    return {
        name: middle[above] / middle[below]
        for name, (above, below) in wanted.items()
        if above in middle and below in middle
    }


def show(samples: Samples, found: dict[str, float], console: Console) -> None:
    """Tables for people."""
    table = Table("case", "median", "least", "most")
    for key, values in samples.items():
        table.add_row(
            key, *(f"{v:.2f}" for v in (statistics.median(values), min(values), max(values)))
        )
    console.print(table)
    table = Table("figure", "value")
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)


def main() -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=("loads", "stores", "requests"))
    chosen = parser.parse_args()
    console = Console()
    samples: Samples = {}
    parts = {"loads": loads, "stores": stores, "requests": requests}
    with exclusive(report.MEASURING):
        for name, part in parts.items():
            if chosen.only in (None, name):
                part(chosen.rounds, samples, console)
    found = figures(samples)
    show(samples, found, console)
    path: Path = save("fileio", found, NOTES, samples)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
