"""Files of chunks: our storage tier beside vLLM's C extension and bare system calls, in turn in one run.

Ours verifies every block; vLLM and LMCache verify nothing. Figures are ratios of medians over rounds.
"""

import argparse
import mmap
import os

import numpy as np
from rich.console import Console
from vllm.v1.kv_offload.tiering.fs.thread_pool import DualQueueThreadPool

from lab import report
from lab.bench import fileio_sides as sides
from lab.bench.fileio_figures import COLD, figures, label, pictures, show
from lab.bench.fileio_lmcache import WAYS, Chunks, start
from lab.bench.results import Samples, add, in_turn, save
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
RIVAL_THREADS = 4
"""LMCache reads with so many, whoever asks."""
PICTURES = report.REPOSITORY / "docs" / "assets"
NOTES = {
    "load_*": "GB/s of ours over vLLM's, page cache hot, one thread; over LMCache's, four on both sides",
    "load_vs_vllm_default_4MiB": "the same, where vLLM reads with O_DIRECT, its default",
    "load_vs_limit_4MiB": "over open, preadv and close of the same bytes",
    "cold_vs_vllm_4MiB": "page cache dropped before, vLLM's buffered; default: its O_DIRECT",
    "store_*": "GB/s of ours over vLLM's, buffered, no fsync on either side",
    "request_*": "wall time of vLLM's tier over ours: one request, or ten at once, chunks of 64 KiB",
    "samples": "GB/s by case, x threads, except request: milliseconds",
}


def buffer_of(nbytes: int) -> memoryview:
    """Random bytes in memory whose pages are there, of a memory file system as the arena's."""
    fd = os.memfd_create("buffer")
    os.ftruncate(fd, nbytes)
    memory = mmap.mmap(fd, nbytes)
    os.close(fd)
    np.frombuffer(memory, np.uint8)[:] = np.random.default_rng(1).integers(
        0, 256, nbytes, dtype=np.uint8
    )
    return memoryview(memory)


def loads(rounds: int, samples: Samples, console: Console) -> None:
    """Hot by size and threads, and cold by size."""
    buffer = buffer_of(TOTAL)
    lmcache = start(console)
    for size in SIZES:
        files = sides.Files(DIRECTORY, buffer, size, TOTAL // size)
        files.make()
        theirs = None
        if lmcache:
            theirs = Chunks(lmcache, DIRECTORY.with_name("fileio-lmcache"), size, TOTAL // size)
        for turn in range(rounds):
            for work in (sides.load_ours, sides.load_theirs):
                work(files, range(files.count))  # what the last round took from the page cache
            for threads in THREADS:
                for name in in_turn(list(sides.LOADS), turn):
                    seconds = sides.timed(sides.LOADS[name], files, threads)
                    add(samples, f"hot {label(size)} x{threads} {name}", TOTAL / seconds / 1e9)
            for threads in (1, RIVAL_THREADS):
                for name in in_turn(list(COLD), turn):
                    files.drop_cache()
                    seconds = sides.timed(sides.LOADS[name], files, threads)
                    add(samples, f"cold {label(size)} x{threads} {name}", TOTAL / seconds / 1e9)
            if theirs:
                lmcache_loads(theirs, size, samples)
        files.remove()
        if theirs:
            theirs.remove()
        console.print(f"loads of {label(size)} measured")
    if lmcache:
        lmcache.close()


def lmcache_loads(theirs: Chunks, size: int, samples: Samples) -> None:
    """Hot and cold, in each of LMCache's ways; by its own threads."""
    for way in WAYS:
        theirs.seconds(way)  # into the page cache, after the last round's cold reads
        for state in ("hot", "cold"):
            if state == "cold":
                theirs.drop_cache()
            rate = TOTAL / theirs.seconds(way) / 1e9
            add(samples, f"{state} {label(size)} x{RIVAL_THREADS} {way}", rate)


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
        "ten requests": [
            range(i * REQUEST_CHUNKS // REQUESTS, (i + 1) * REQUEST_CHUNKS // REQUESTS)
            for i in range(REQUESTS)
        ],
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


def main() -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=("loads", "stores", "requests"))
    parser.add_argument("--pictures", action="store_true", help="into docs/assets, not build/bench")
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
    path = save("fileio", found, NOTES, samples)
    pictures(samples, PICTURES if chosen.pictures else path.parent)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
