"""What seals cost: files of chunks stored and loaded without, authenticated, encrypted; and whole requests.

One thread, files in the page cache, no fsync; chunks of 16 blocks in a file each, and chunks of one block
that share files. Every load is compared with what was stored once. Then a real engine for each way, all up
at once and asked in turn: time to first token of a prompt whose KV comes from files.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from rich.console import Console
from rich.table import Table

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.chunks.keyring import Keyring
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.sealing import SealKind
from kvstrata.fileio.key_file import add_key
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Loaded, Stored, Transfer
from lab import report
from lab.bench.results import DIRECTORY, Samples, add, in_turn, save
from lab.bench.ttft import Bench, arena_bytes
from lab.exclusive import OccupiedError, exclusive
from lab.server import EngineServer, ServerError

KIB = 1 << 10
WAYS = {"none": None, "authenticate": SealKind.AUTHENTICATED, "encrypt": SealKind.ENCRYPTED}
CASES = {
    "64K in segments": (64 * KIB, 1),
    "256K": (256 * KIB, 16),
    "1024K": (1024 * KIB, 16),
    "4096K": (4096 * KIB, 16),
}
"""Bytes and blocks of a chunk."""
TOTAL = 64 << 20
ROUNDS = 9
TTFT_ROUNDS = 7
MODEL, LENGTH, DEVICE_BYTES = "llama-bench", 8192, 256 << 20
LEAST_FROM_FILES = 0.85
"""Of a request's tokens; the arena is a little larger than a prompt, and may have kept some of it."""
KEY = bytes(range(32))
PLACE = DIRECTORY / "crypto"
NOTES = {
    "*_over_none": "GB/s with a seal over GB/s without, medians; for ttft, milliseconds over milliseconds",
    "samples": "GB/s by case; ttft: milliseconds to the first token",
}


def tier_of(way: str, size: int, blocks: int) -> FilesystemTier:
    """An empty tier of one group."""
    root = PLACE / way
    shutil.rmtree(root, ignore_errors=True)
    kind = WAYS[way]
    tier = FilesystemTier(
        root,
        Namespace("bench", {"seal": way}),
        {0: GroupGeometry(0, GroupKind.FULL, 16, blocks, (size // blocks,))},
        keyring=None if kind is None else Keyring([KEY], kind),
    )
    tier.prepare()
    return tier


def jobs(keys: Sequence[ChunkKey], buffer: memoryview, size: int) -> list[list[Transfer]]:
    """Chunks as an engine hands them over: 4 MiB at a time."""
    many = max(1, (4 << 20) // size)
    whole = [(key, buffer[at * size : (at + 1) * size], 0) for at, key in enumerate(keys)]
    return [whole[at : at + many] for at in range(0, len(whole), many)]


def files(rounds: int, samples: Samples) -> None:
    """Stores and loads of one thread."""
    content = memoryview(hashlib.shake_128(b"kvstrata").digest(TOTAL))
    into = bytearray(TOTAL)
    for case, (size, blocks) in CASES.items():
        keys = [
            make_key(hashlib.sha256(at.to_bytes(4, "big")).digest(), 0)
            for at in range(TOTAL // size)
        ]
        for turn in range(rounds):
            for way in in_turn(list(WAYS), turn):
                tier = tier_of(way, size, blocks)
                work = jobs(keys, content, size)
                begun = time.perf_counter()
                stored = [one for job in work for one in tier.write_many(job)]
                add(samples, f"store {case} {way}", TOTAL / (time.perf_counter() - begun) / 1e9)
                assert stored == [Stored(size)] * len(keys)
                work = jobs(keys, memoryview(into), size)
                into[:] = bytes(TOTAL)
                begun = time.perf_counter()
                loaded = [one for job in work for one in tier.read_many(job)]
                add(samples, f"load {case} {way}", TOTAL / (time.perf_counter() - begun) / 1e9)
                assert loaded == [Loaded(size)] * len(keys) and into == content
                shutil.rmtree(PLACE / way)
                os.sync()


def requests(rounds: int, tokens: int, samples: Samples, console: Console) -> None:
    """TTFT of real engines."""
    keys = PLACE / "keys"
    PLACE.mkdir(parents=True, exist_ok=True)
    keys.unlink(missing_ok=True)
    add_key(str(keys), KEY, "bench", first=True)
    benches: dict[str, Bench] = {}
    longest = 2 * tokens  # what pushes the prompt out of memory; a smaller arena would drop stores
    with ExitStack() as stack:
        for way in WAYS:
            directory = PLACE / f"ttft-{way}"
            shutil.rmtree(directory, ignore_errors=True)
            kv = {"path": str(directory), "memory": arena_bytes(MODEL, longest), "seal": way}
            server = EngineServer(
                MODEL,
                DIRECTORY / f"crypto-{way}.log",
                kv=kv if way == "none" else {**kv, "keys": str(keys)},
                max_model_len=longest + 1024,
                device_bytes=DEVICE_BYTES,
                threads=os.cpu_count() or 1,
            )
            stack.enter_context(server)
            server.warm_up()
            benches[way] = Bench(server, directory, console, [tokens, longest])
            benches[way].fill()
            _confirm(benches[way], tokens)
        for turn in range(rounds):
            for way in in_turn(list(WAYS), turn):
                benches[way].flush(tokens)
                benches[way].measure("storage", tokens, seed=tokens)
        for way, bench in benches.items():
            samples[f"ttft {tokens} {way}"] = bench.samples["storage", tokens]
            samples[f"ttft {tokens} recompute {way}"] = bench.samples["recompute", tokens]
    shutil.rmtree(PLACE, ignore_errors=True)


def _confirm(bench: Bench, tokens: int) -> None:
    """See by the engine's counters that what is measured comes from files, all but what memory may keep."""
    bench.flush(tokens)
    before = bench.from_files()
    bench.measure("confirmed", tokens, seed=tokens)
    came = bench.from_files() - before
    if came < LEAST_FROM_FILES * tokens:
        raise RuntimeError(f"only {came:.0f} of {tokens} tokens came from files")


def figures(samples: Samples) -> dict[str, float]:
    """Each way's medians over those without a seal."""
    middle = {case: statistics.median(values) for case, values in samples.items()}
    found = {}
    for case, value in middle.items():
        what, _, way = case.rpartition(" ")
        if way != "none" and "recompute" not in case:
            name = f"{what} {way} over none".replace(" ", "_")
            found[name] = value / middle[f"{what} none"]
    return found


def show(samples: Samples, console: Console) -> None:
    """Medians with their spread."""
    table = Table("case", "median", "least", "most")
    for key, values in samples.items():
        numbers = (statistics.median(values), min(values), max(values))
        table.add_row(key, *(f"{number:.2f}" for number in numbers))
    console.print(table)


def main() -> int:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tokens", type=int, default=LENGTH, help="of a request")
    parser.add_argument("--only", choices=("files", "requests"))
    chosen = parser.parse_args()
    console = Console()
    samples: Samples = {}
    try:
        with exclusive(report.MEASURING):
            if chosen.only != "requests":
                files(chosen.rounds, samples)
            if chosen.only != "files":
                requests(min(chosen.rounds, TTFT_ROUNDS), chosen.tokens, samples, console)
    except (OccupiedError, ServerError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 2
    found = figures(samples)
    show(samples, console)
    for name, value in found.items():
        console.print(f"{name}: {value:.3f}")
    console.print(f"written to {save('crypto', found, NOTES, samples)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
