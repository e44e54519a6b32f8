"""Checksum functions on blocks that are hot in the cache, with one thread and with two.

The reference is `preadv` of the same block from the page cache: that is the hot path which a checksum is
added to. A function whose package is missing is left out. Rivals are interleaved, round by round.
"""

import argparse
import hashlib
import importlib
import os
import statistics
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from lab.bench.results import save, spread

SIZES = {"64k": 64 << 10, "512k": 512 << 10, "4m": 4 << 20}
THREADS = (1, 2)
ROUNDS = 5
SECONDS = 0.15
"""How long one sample lasts."""

Function = Callable[[memoryview], object]


def candidates() -> dict[str, Function]:
    """Functions by name; each reads all bytes of a block and returns its digest."""
    found: dict[str, Function] = {
        "crc32": zlib.crc32,
        "sha256": lambda block: hashlib.sha256(block).digest(),
    }
    if xxhash := _optional("xxhash"):
        found["xxh3_128"] = xxhash.xxh3_128_digest
    if blake3 := _optional("blake3"):
        found["blake3"] = lambda block: blake3.blake3(block).digest()
    if crc32c := _optional("google_crc32c"):
        # Its interface takes bytes only, so it is given bytes and spared the copy.
        found["crc32c"] = lambda block: crc32c.value(block.obj)
    return found


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class PageCache:
    """Reads of a block from the page cache: the work that a checksum is added to.

    Args:
        size: bytes of the block.
    """

    def __init__(self, size: int) -> None:
        self._fd = os.memfd_create("checksum")
        os.pwrite(self._fd, os.urandom(size), 0)
        self._local = threading.local()

    def read(self, block: memoryview) -> int:
        """Read into a buffer of this thread's own, as long as `block`."""
        if not hasattr(self._local, "into"):
            self._local.into = memoryview(bytearray(len(block)))
        return os.preadv(self._fd, [self._local.into], 0)


def throughput(function: Function, size: int, threads: int) -> float:
    """Bytes in nanoseconds (GB/s), all threads together, each on its own block."""
    done = [0.0] * threads
    barrier = threading.Barrier(threads)

    def work(index: int) -> None:
        block = memoryview(os.urandom(size))
        function(block)
        barrier.wait()
        count = 0
        begun = now = time.perf_counter()
        while now - begun < SECONDS:
            for _ in range(max(1, (4 << 20) // size)):
                function(block)
                count += 1
            now = time.perf_counter()
        done[index] = count * size / (now - begun) / 1e9

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done)


def main() -> None:
    """Measure, print a table, write `build/bench/checksum.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    reads = {size: PageCache(size) for size in SIZES.values()}
    functions = candidates()
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        for label, size in SIZES.items():
            rivals = {"read": reads[size].read, **functions}
            for threads in THREADS:
                for name, function in rivals.items():
                    key = f"{name}_{label}_{threads}t"
                    samples.setdefault(key, []).append(throughput(function, size, threads))
    columns = [(label, threads) for label in SIZES for threads in THREADS]
    table = Table(*["GB/s", *(f"{label}, {threads} thr." for label, threads in columns)])
    for name in ("read", *functions):
        cells = [spread(samples[f"{name}_{label}_{threads}t"]) for label, threads in columns]
        table.add_row(name, *cells)
    console = Console(width=160)
    console.print(table)
    figures = {key: statistics.median(values) for key, values in samples.items()}
    notes = {"*": "GB/s, all threads together, median; read = preadv from the page cache"}
    console.print(f"wrote {save('checksum', figures, notes, samples)}")


if __name__ == "__main__":
    main()
