"""Copies between the device and the arena on the CPU build, beside a plain memcpy of the same bytes.

The device is one tensor a layer, (blocks, page) bytes; the arena is a shared mapping with all layers of a
block together, as an engine has them. Transfers are made of runs of consecutive blocks, from single blocks
at random places to runs of 64. `loop` is one `memmove` a page, the plain way to do it. vLLM's wheel for CPUs
has no copy of this kind of its own. Figures are medians over rounds of ratios within a round.
"""

import argparse
import ctypes
import itertools
import mmap
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from kvstrata.tiers.arena import Arena
from kvstrata.vllm_plugin.copies import Copies, GroupSlots, LayerPages, build_copies
from kvstrata.vllm_plugin.host_copier import HostCopier, copy
from lab import report
from lab.bench.results import Samples, add, in_turn, save
from lab.exclusive import exclusive

ROUNDS = 7
PAGES = (16 << 10, 64 << 10, 256 << 10, 1 << 20)
RUNS = (1, 4, 16, 64)
LAYERS = 8
TOTAL = 128 << 20
TABLE_WIDTH = 100
NOTES = {
    "copy_vs_memcpy_*": "GB/s of our copy, one thread, over one memcpy of the same bytes: runs of 16 blocks, "
    "the worse of both directions",
    "scatter_vs_memcpy_*": "the same, single blocks at random places on both sides",
    "copy_vs_loop_*": "our copy over one memmove a page",
    "copier_vs_memcpy_*": "the copier with its threads, from submit to the last byte",
    "busy_copy_vs_loop_*": "our copy over one memmove a page, while another thread runs Python without pause",
    "samples": "GB/s by case",
}


class Place(NamedTuple):
    """Memory of both sides."""

    device: int
    arena: int
    copier: HostCopier


def transfer(place: Place, page: int, run: int, seed: int) -> Copies:
    """All bytes once, in runs of `run` blocks whose places are shuffled on both sides."""
    blocks = TOTAL // page // LAYERS
    rng = np.random.default_rng(seed)

    def shuffled() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        first = rng.permutation(blocks // run) * run
        return (first[:, None] + np.arange(run)).ravel()

    layers = [
        LayerPages(place.device + layer * blocks * page, page, page, blocks)
        for layer in range(LAYERS)
    ]
    slots = GroupSlots(shuffled() * page * LAYERS, 1, page * LAYERS, (0,))
    ids = shuffled().astype(np.int32)
    return build_copies(ids, [blocks], [0], [slots], [layers], place.arena, 0)


def loop(copies: Copies, *, to_device: bool) -> None:
    """One memmove a page."""
    target, source = (copies.device, copies.arena) if to_device else (copies.arena, copies.device)
    rows = zip(target.tolist(), source.tolist(), copies.nbytes.tolist(), strict=True)
    for to, origin, nbytes in rows:
        ctypes.memmove(to, origin, nbytes)


def ways(place: Place, copies: Copies, to_device: bool) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    ends = (place.device, place.arena) if to_device else (place.arena, place.device)

    def whole() -> None:
        place.copier.submit(0, copies, to_device=to_device)
        place.copier.wait([0])

    return {
        "memcpy": lambda: ctypes.memmove(*ends, TOTAL),
        "loop": lambda: loop(copies, to_device=to_device),
        "ours": lambda: copy(copies, to_device=to_device),
        "copier": whole,
    }


def measure(place: Place, rounds: int, samples: Samples, console: Console, prefix: str) -> None:
    """All pages, runs and directions."""
    for page, run in itertools.product(PAGES, RUNS):
        if TOTAL // page // LAYERS < run:
            continue
        for turn, to_device in itertools.product(range(rounds), (True, False)):
            found = ways(place, transfer(place, page, run, turn), to_device)
            for name in in_turn(list(found), turn):
                begun = time.perf_counter()
                found[name]()
                seconds = time.perf_counter() - begun
                case = case_of(prefix, page, run, to_device, name)
                add(samples, case, TOTAL / seconds / 1e9)
        console.print(f"{prefix}pages of {page >> 10}K, runs of {run} measured")


def case_of(prefix: str, page: int, run: int, to_device: bool, name: str) -> str:
    """A case's name, such as `64K run 16 load ours`."""
    return f"{prefix}{page >> 10}K run {run} {'load' if to_device else 'store'} {name}"


def figures(samples: Samples) -> dict[str, float]:
    """Medians of the rounds' ratios, the worse of both directions."""
    wanted = {
        "copy_vs_memcpy": ("", 16, "ours", "memcpy"),
        "scatter_vs_memcpy": ("", 1, "ours", "memcpy"),
        "copy_vs_loop": ("", 16, "ours", "loop"),
        "copier_vs_memcpy": ("", 16, "copier", "memcpy"),
        "busy_copy_vs_loop": ("busy ", 16, "ours", "loop"),
    }
    found = {}
    for (figure, (prefix, run, ours, theirs)), page in itertools.product(wanted.items(), PAGES):
        ratios = [
            statistics.median(above / below for above, below in zip(*pairs, strict=True))
            for way in (True, False)
            if all(
                pairs := [
                    samples.get(case_of(prefix, page, run, way, name), ())
                    for name in (ours, theirs)
                ]
            )
        ]
        if ratios:
            found[f"{figure}_{page >> 10}K"] = min(ratios)
    return found


def busy(stop: threading.Event) -> None:
    """Python without pause, as in an engine's step."""
    number = 0
    while not stop.is_set():
        for _ in range(1000):
            number += 1


def show(samples: Samples, found: dict[str, float], console: Console) -> None:
    """A row for each page, run and direction."""
    table = Table(title="GB/s, medians")
    for column in ("case", "memcpy", "loop", "ours", "copier"):
        table.add_column(column, justify="right")
    cases = dict.fromkeys(case.rpartition(" ")[0] for case in samples)
    for case in cases:
        cells = [statistics.median(samples[f"{case} {name}"]) for name in ways_names()]
        table.add_row(case, *(f"{cell:.2f}" for cell in cells))
    console.print(table)
    for name, value in found.items():
        console.print(f"  {name} = {value:.2f}")


def ways_names() -> tuple[str, ...]:
    """Of what is compared."""
    return ("memcpy", "loop", "ours", "copier")


def main() -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="the busy part is left out after"
    )
    chosen = parser.parse_args()
    console = Console(width=TABLE_WIDTH)
    samples: Samples = {}
    begun = time.monotonic()
    with exclusive(report.MEASURING), tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        arena = Arena.attach(directory, "bench", TOTAL, 1)
        arena.seal()
        arena.await_memory(60)
        arena.await_pages()
        device = mmap.mmap(-1, TOTAL)
        view = np.frombuffer(device, np.uint8)
        view[:] = 1
        place = Place(view.ctypes.data, arena.address, HostCopier())
        measure(place, chosen.rounds, samples, console, "")
        if time.monotonic() - begun < chosen.seconds / 2:
            stop = threading.Event()
            thread = threading.Thread(target=busy, args=(stop,))
            thread.start()
            measure(place, 2, samples, console, "busy ")
            stop.set()
            thread.join()
        place.copier.close()
        arena.close()
    found = figures(samples)
    show(samples, found, console)
    console.print(f"written to {save('copies', found, NOTES, samples)}")


if __name__ == "__main__":
    main()
