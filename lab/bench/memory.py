"""What offload costs in memory and at the start: an engine's resident memory, bookkeeping, the arena's start.

Resident memory is the PSS of all of a server's processes: a page that several of them map counts once. One
server at a time, without offload and with arenas of three sizes, each after the same requests, once its arena
is mapped.
"""

import argparse
import mmap
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import psutil
from rich.console import Console
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.tiers.arena import Arena
from kvstrata.tiers.memory import MemoryTier
from lab import report
from lab.bench.results import DIRECTORY, Samples, add, in_turn, save, spread
from lab.exclusive import exclusive
from lab.models import ensure, prompt_ids
from lab.server import EngineServer

MODEL = "llama"
MIB = 1 << 20
ARENAS = (64 * MIB, 256 * MIB, 1024 * MIB)
STARTS = (1 << 30, 4 << 30)
CHUNKS = 100_000
ROW = 1 << 20
NOTES = {
    "engine_overhead_mib_*": "PSS with offload over without, less the arena of that size",
    "bytes_per_chunk": "of bookkeeping: 100,000 chunks in the memory tier, keys included, by tracemalloc",
    "arena_attach_ms_*": "how long the engine stands still for an arena of that size",
    "arena_allocated_s_*": "until its memory is allocated, beside the engine's warm-up",
    "arena_mapped_s_*": "until every page is mapped, at the lowest priority",
    "rival_attach_s_*": "vLLM's own shared region of that size: the engine stands still",
    "samples": "MiB (PSS), seconds (arena)",
}


def label(size: int) -> str:
    """Such as 64MiB or 4GiB."""
    return f"{size >> 30}GiB" if size % (1 << 30) == 0 else f"{size // MIB}MiB"


def pss(pid: int) -> float:
    """MiB of a server and its processes."""
    leader = psutil.Process(pid)
    found = [leader, *leader.children(recursive=True)]
    return sum(float(process.memory_full_info().pss) for process in found) / MIB


def engine(arena: int, number: int) -> float:
    """PSS in MiB of an engine with an arena of that many bytes, or without offload for 0."""
    with tempfile.TemporaryDirectory() as directory:
        kv = {"path": directory, "memory": arena} if arena else None
        log = DIRECTORY / f"memory-{arena // MIB}.log"
        with EngineServer(MODEL, log, kv=kv, device_bytes=64 * MIB) as server:
            for seed in range(4):
                server.client.complete(prompt_ids(2000, seed=number * 10 + seed), 8)
            if kv:
                server.wait_idle()
            return settled(server.pid)


def settled(pid: int) -> float:
    """PSS once it does not grow any more."""
    last = pss(pid)
    for _ in range(60):
        time.sleep(0.5)
        now = pss(pid)
        if abs(now - last) < 1:
            return now
        last = now
    return last


def bytes_per_chunk() -> float:
    """Bookkeeping of the memory tier for one chunk."""
    page = 4096
    geometry = GroupGeometry(0, GroupKind.FULL, 128, 1, (page,))
    with mmap.mmap(-1, CHUNKS * page) as room:
        view = memoryview(room)
        tier = MemoryTier(view, {0: geometry})
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(CHUNKS):
            key = make_key(number.to_bytes(32, "big"), 0)
            assert tier.reserve(key, "device") is not None
            tier.commit(key)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert len(list(tier.scan())) == CHUNKS
        del tier
        view.release()
    return grown / CHUNKS


def start(size: int, number: int, samples: Samples) -> None:
    """An arena of that size, and vLLM's region, in turn, from nothing to the last page."""
    name = label(size)
    for side in in_turn(["ours", "vllm"], number):
        begun = time.perf_counter()
        if side == "vllm":
            region = SharedOffloadRegion(uuid4().hex, size // ROW, 0, ROW, ROW, lambda: None)
            add(samples, f"vllm attach {name}", time.perf_counter() - begun)
            region.cleanup()
            continue
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            arena = Arena.attach(directory, "bench", size, 1)
            add(samples, f"arena attach {name}", time.perf_counter() - begun)
            arena.seal()
            arena.await_memory(60)
            add(samples, f"arena allocated {name}", time.perf_counter() - begun)
            arena.await_pages()
            add(samples, f"arena mapped {name}", time.perf_counter() - begun)
            arena.close()


def starts(rounds: int, samples: Samples, console: Console) -> None:
    """All sizes that fit twice."""
    for size in STARTS:
        status = os.statvfs("/dev/shm")
        free = min(psutil.virtual_memory().available, status.f_bavail * status.f_frsize)
        if free < 2 * size:
            console.print(f"no room to measure an arena of {label(size)}")
            continue
        for number in range(rounds):
            start(size, number, samples)
        console.print(f"start of {label(size)} measured")


def figures(samples: Samples) -> dict[str, float]:
    """Medians, and their differences."""
    middle = {case: statistics.median(values) for case, values in samples.items()}
    found = {"bytes_per_chunk": middle["bytes per chunk"]}
    for arena in ARENAS:
        case = f"pss {label(arena)}"
        if case in middle:
            extra = middle[case] - middle["pss without"] - arena / MIB
            found[f"engine_overhead_mib_{label(arena)}"] = extra
    for size in STARTS:
        name = label(size)
        if f"arena attach {name}" in middle:
            found[f"arena_attach_ms_{name}"] = middle[f"arena attach {name}"] * 1e3
            found[f"arena_allocated_s_{name}"] = middle[f"arena allocated {name}"]
            found[f"arena_mapped_s_{name}"] = middle[f"arena mapped {name}"]
            found[f"rival_attach_s_{name}"] = middle[f"vllm attach {name}"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="of engines")
    parser.add_argument("--starts", type=int, default=3, help="of arenas")
    chosen = parser.parse_args(arguments)
    console = Console()
    ensure(MODEL)
    samples: Samples = {"bytes per chunk": [bytes_per_chunk()]}
    with exclusive(report.MEASURING):
        starts(chosen.starts, samples, console)
        for number in range(chosen.rounds):
            for arena in (0, *ARENAS):
                name = f"pss {label(arena)}" if arena else "pss without"
                add(samples, name, engine(arena, number))
                console.print(f"{name}: {samples[name][-1]:.0f} MiB")
    found = figures(samples)
    for case, values in samples.items():
        console.print(f"  {case:24} {spread(values)}")
    for name, value in found.items():
        console.print(f"  {name} = {value:.2f}")
    path: Path = save("memory", found, NOTES, samples)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
