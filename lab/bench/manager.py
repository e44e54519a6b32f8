"""The scheduler's thread: what a request of 8 192 keys costs it, ours beside vLLM's own tiering manager.

Both sides get the same keys, in turn in one run, and are called as vLLM's scheduler calls its manager.
Everything is measured in the calling thread, while the sides' own threads read and write files.
"""

import argparse
import gc
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import report
from lab.bench.manager_sides import (
    KEYS,
    MODELS,
    PATIENCE,
    REST,
    SIDES,
    Ours,
    Prompt,
    Side,
    bytes_per_chunk,
    geometries_of,
    remove,
)
from lab.bench.results import save
from lab.exclusive import exclusive

ROUNDS = 7
ROOM = 2
"""Prompts that fit the memory; both places are taken when one more is stored. Half of the memory may wait to
be written, so with less room a part of a prompt would reach no file."""
DIRECTORY = Path("/dev/shm/kvstrata-bench-manager")
"""Files in memory: what the scheduler's thread does is measured, not a disk."""
Samples = dict[str, list[float]]
TARGETS = {
    "hit_us": 0.5,
    "miss_us": 1.0,
    "pending_us": 1.0,
    "rescan_us": None,
    "complete_store_8192_ms": 20.0,
    "prepare_store_8192_ms": None,
    "prepare_load_8192_ms": None,
    "complete_load_8192_ms": None,
    "pause_ms": 5.0,
    "promotion_ms": None,
    "used_8192_ms": None,
    "bytes_per_chunk": 200.0,
}
NOTES = {
    "": "each name is `ours` of the model `one group`; `three_groups_` before it: of the other model; "
    "`vllm_`: of vLLM's manager",
    "hit_us": "a request whose chunks are in memory, from the first question to the last answer, a key",
    "miss_us": "the same where nothing is there, all steps until the last answer, a key",
    "pending_us": "the first step of a request whose chunks are in files only, a key",
    "rescan_us": "a later step of it that nothing has changed for, the whole request: a quarter of them took "
    "less; some of the others reserve places",
    "pause_ms": "the longest step of it, the one that answers included",
    "promotion_ms": "all steps of it",
    "used_8192_ms": "telling eviction of the request and letting its load go (vLLM: nothing alike)",
    "bytes_per_chunk": "of bookkeeping for a chunk in memory, its key included",
}


@dataclass
class Steps:
    """Seconds of one request's steps: of the questions, and of the ends of steps in between."""

    looks: list[float] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        """Seconds of all of them."""
        return sum(self.looks) + sum(self.ticks)


def follow(side: Side, prompt: Prompt, request: str, *, every_key: bool) -> Steps:
    """Ask step by step until a request is answered.

    Args:
        side: whom to ask.
        prompt: of the request.
        request: its id.
        every_key: ask for all keys once it is answered, not only for those of a hit.
    """
    context = prompt.context(request)
    side.begin(context)
    keys = prompt.keys if every_key else prompt.asked
    steps = Steps()
    begun = time.perf_counter()
    while True:
        started = time.perf_counter()
        answered = side.look(prompt, context, keys)
        steps.looks.append(time.perf_counter() - started)
        if answered:
            return steps
        time.sleep(REST)
        started = time.perf_counter()
        side.tick()
        steps.ticks.append(time.perf_counter() - started)
        assert started - begun < PATIENCE


def store(side: Side, prompt: Prompt, request: str) -> tuple[float, float]:
    """A request whose chunks are new, until its files stand; see `Side.store`."""
    context = prompt.context(request)
    side.begin(context)
    seconds = side.store(prompt, context)
    side.settle()
    side.finish(context)
    return seconds


def one_round(side: Side, prompt: Prompt, unknown: Prompt, request: str) -> dict[str, float]:
    """Every figure once.

    Args:
        side: whom to ask; its memory is full.
        prompt: new to it.
        unknown: new to it, and not stored.
        request: what its requests' ids begin with.
    """
    found: dict[str, float] = {}
    prepared, completed = store(side, prompt, f"{request} store")
    found["prepare_store_8192_ms"] = prepared * 1e3
    found["complete_store_8192_ms"] = completed * 1e3

    steps = follow(side, prompt, f"{request} hit", every_key=False)
    found["hit_us"] = steps.total / len(prompt.asked) * 1e6
    found.update(_load(side, prompt, f"{request} hit"))

    steps = follow(side, unknown, f"{request} miss", every_key=True)
    found["miss_us"] = steps.total / len(unknown.keys) * 1e6
    side.finish(unknown.context(f"{request} miss"))

    side.settle()
    side.forget()
    steps = follow(side, prompt, f"{request} pending", every_key=False)
    found["pending_us"] = steps.looks[0] / len(prompt.asked) * 1e6
    later = sorted(steps.looks[1:-1] or steps.looks[:1])
    found["rescan_us"] = later[len(later) // 4] * 1e6
    found["pause_ms"] = max(*steps.looks, *steps.ticks) * 1e3
    found["promotion_ms"] = steps.total * 1e3
    assert side.holds(prompt, prompt.context(f"{request} pending")), "not all of it came from files"
    side.finish(prompt.context(f"{request} pending"))
    side.settle()
    return found


def _load(side: Side, prompt: Prompt, request: str) -> dict[str, float]:
    context = prompt.context(request)
    found: dict[str, float] = {}
    scale = KEYS / len(prompt.asked) * 1e3
    prepared = side.load(prompt, context)
    found["prepare_load_8192_ms"], found["complete_load_8192_ms"] = (s * scale for s in prepared)
    if isinstance(side, Ours):
        found["used_8192_ms"] = side.use(prompt, context) * 1e3
    side.finish(context)
    return found


def measure(model: str, rounds: int, samples: Samples, console: Console) -> None:
    """All rounds of one model, the sides in turn."""
    geometries = geometries_of(model)
    sides = {name: make(geometries, ROOM * KEYS, DIRECTORY / name) for name, make in SIDES.items()}
    for turn in range(rounds + 1):
        prompt, unknown, other, another = (Prompt(geometries, 4 * turn + i) for i in range(4))
        names = list(sides) if turn % 2 else list(reversed(sides))
        for name in names:
            store(sides[name], other, f"{turn} other")
            store(sides[name], another, f"{turn} another")
            found = one_round(sides[name], prompt, unknown, f"{turn}")
            for figure, value in found.items() if turn else ():  # the first one warms up
                samples.setdefault(f"{prefix(model, name)}{figure}", []).append(value)
    for side in sides.values():
        side.close()
    remove(DIRECTORY)
    console.print(f"{model} measured")


def prefix(model: str, name: str) -> str:
    """What a figure's name begins with."""
    return f"{'vllm_' if name == 'vllm' else ''}{'three_groups_' if model != 'one group' else ''}"


def show(samples: Samples, console: Console) -> None:
    """A table for people."""
    table = Table("figure", "model", "ours", "vLLM", "target")
    for figure, target in TARGETS.items():
        for model in MODELS:
            cells = []
            for name in SIDES:
                values = samples.get(f"{prefix(model, name)}{figure}")
                cells.append(
                    f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"
                    if values
                    else "-"
                )
            table.add_row(figure, model, *cells, "" if target is None else f"{target:g}")
    console.print(table)


def main() -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=tuple(MODELS))
    chosen = parser.parse_args()
    console = Console(width=140)
    samples: Samples = {}
    gc.collect()
    gc.freeze()  # as vLLM's engine core does: what was imported is not walked again
    with exclusive(report.MEASURING):
        remove(DIRECTORY)
        for model in MODELS:
            if chosen.only in (None, model):
                measure(model, chosen.rounds, samples, console)
                for name in SIDES:
                    samples[f"{prefix(model, name)}bytes_per_chunk"] = [
                        bytes_per_chunk(name, model)
                    ]
    show(samples, console)
    figures = {name: statistics.median(values) for name, values in samples.items()}
    console.print(f"written to {save('manager', figures, NOTES, samples)}")


if __name__ == "__main__":
    main()
