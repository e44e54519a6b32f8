"""Loading a batch of stored prompts: windows kept as windows, against everything kept as full attention.

Ten long prompts, all stored, the device's cache empty, given to the engine at once. Two servers a model,
vLLM's hybrid KV cache manager on and off, take turns. Measured: the load, from the scheduler's first look
at the batch to the last chunk on the device, and the time until the last prompt's first token.

For the load no request computes before all are loaded, because here the computation would take the cores
that copy (see `lab.bench.batch_probe`); for the time to first tokens nothing is held back.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import report
from lab.bench.batch_engine import BatchEngine, BatchError
from lab.bench.batch_shape import CASES, MODES, Batch, Samples, bytes_over_formula, speedup
from lab.bench.results import DIRECTORY, save
from lab.exclusive import OccupiedError, exclusive
from lab.models import ensure
from lab.plots import Bars, groups
from lab.server import ServerError

MODELS = {"wide-half": "", "wide-half-w1024": "w1024_", "wide-three-quarters": "three_quarters_"}
"""Model and the prefix of its figures."""
TITLES = {
    "wide-half": "half windows of 128",
    "wide-half-w1024": "half windows of 1024",
    "wide-three-quarters": "three quarters windows of 128",
}
PROMPTS = 10
TOKENS = 8192
QUICK_TOKENS = 2048
PUBLISHED = {
    "gpt-oss-20b, published": {"memory": 1.88, "storage": 1.77, "device capacity": 1.77},
    "gpt-oss-120b, published": {"memory": 1.90, "storage": 1.88},
}
"""The authors' factors for ten prompts of 128K tokens; half of the layers are windows of 128."""
COLOURS = ("#2b7de9", "#7fb3f5", "#e0672b", "#9aa5b1", "#5f6b76")
TABLE_WIDTH = 140
FEWEST_ROUNDS = 3
"""Taken even if the time is up: fewer would hide the spread."""
MOST_ROUNDS = 7


@dataclass
class Measured:
    """One model's results.

    Attributes:
        loads: batches whose computation was held back until all was loaded, by case and mode.
        plain: batches as an ordinary server serves them.
        needed: bytes that the load of a batch needs, by mode.
        resident: bytes of device cache in use with the batch on the device, by mode.
    """

    loads: dict[tuple[str, str], list[Batch]] = field(default_factory=lambda: defaultdict(list))
    plain: dict[tuple[str, str], list[Batch]] = field(default_factory=lambda: defaultdict(list))
    needed: dict[str, int] = field(default_factory=dict)
    resident: dict[str, float] = field(default_factory=dict)

    @property
    def formula(self) -> float:
        """How many times more bytes the mode "off" needs: what a load can gain at best."""
        return self.needed["off"] / self.needed["on"]


@dataclass(frozen=True)
class Size:
    """What is run: tokens of a prompt, blocks of a chunk, rounds at most."""

    tokens: int
    blocks_per_chunk: int
    rounds: int


def run_model(model: str, size: Size, seconds: float, console: Console) -> Measured:
    """All samples of one model; no new round begins that would not end in time."""
    begun = time.monotonic()
    directory = DIRECTORY / "batch-load" / model
    directory.mkdir(parents=True, exist_ok=True)
    found = Measured()
    with (
        BatchEngine(model, "on", directory, PROMPTS, size.tokens, size.blocks_per_chunk) as on,
        BatchEngine(model, "off", directory, PROMPTS, size.tokens, size.blocks_per_chunk) as off,
    ):
        engines = {"on": on, "off": off}
        for mode, engine in engines.items():
            started = time.monotonic()
            engine.fill()
            console.print(f"  {mode}: stored in {time.monotonic() - started:.0f} s")
            found.needed[mode] = engine.needed
            found.resident[mode] = engine.resident_bytes()
            for case in ("memory", "storage"):
                engine.measure(case, hold=True)  # touches every page for the first time
        for number in range(size.rounds):
            started = time.monotonic()
            take_round(engines, found)
            ended = time.monotonic()
            console.print(f"  round {number + 1} of {size.rounds}: {ended - started:.0f} s")
            if number + 1 >= FEWEST_ROUNDS and 2 * ended - started - begun > seconds:
                break
    return found


def take_round(engines: Mapping[str, BatchEngine], found: Measured) -> None:
    """One sample of every case and mode, held and not."""
    for case in CASES:
        for mode, engine in engines.items():
            found.loads[case, mode].append(engine.measure(case, hold=True))
        for mode, engine in engines.items():
            found.plain[case, mode].append(engine.measure(case, hold=False))


def figures_of(found: Measured, prefix: str) -> dict[str, float]:
    """Ratios of medians."""
    figures = {}
    for case in CASES:
        figures[f"{prefix}hma_speedup_{case}"] = speedup(found.loads, case, "load_ms")
        figures[f"{prefix}batch_ttft_speedup_{case}"] = speedup(found.plain, case, "ttft_ms")
        figures[f"{prefix}hma_speedup_{case}_unheld"] = speedup(found.plain, case, "load_ms")
    figures[f"{prefix}bytes_vs_formula"] = max(
        bytes_over_formula(samples, found.needed) for samples in (found.loads, found.plain)
    )
    figures[f"{prefix}formula"] = found.formula
    figures[f"{prefix}device_capacity_gain"] = found.resident["off"] / found.resident["on"]
    return figures


def brief(values: Sequence[float]) -> str:
    """`median (min-max, n)` in whole milliseconds: four such columns must stand beside each other."""
    middle = statistics.median(values)
    return f"{middle:.0f} ({min(values):.0f}-{max(values):.0f}, {len(values)})"


def table_of(model: str, tokens: int, found: Measured) -> Table:
    """Medians with their spread, and the ratios."""
    table = Table(
        title=f"{model}: {PROMPTS} prompts of {tokens} tokens, {TITLES[model]}; ms, median (min - max, n)"
    )
    for column in ("case", "load, on", "load, off", "off/on", "TTFT, on", "TTFT, off", "off/on"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in CASES:
        table.add_row(
            case.replace("_", ", "),
            *(brief([b.load_ms for b in found.loads[case, mode]]) for mode in MODES),
            f"{speedup(found.loads, case, 'load_ms'):.2f}",
            *(brief([b.ttft_ms for b in found.plain[case, mode]]) for mode in MODES),
            f"{speedup(found.plain, case, 'ttft_ms'):.2f}",
        )
    rates = (found.needed[mode] / 2**20 for mode in MODES)
    table.caption = "MiB of a batch: " + ", ".join(
        f"{mode} {size:,.0f}" for mode, size in zip(MODES, rates, strict=True)
    )
    return table


def draw(measured: Mapping[str, Measured], tokens: int) -> Path:
    """Our factors beside the published ones, with what the formula allows."""
    path = DIRECTORY / "batch-load.png"
    names = ("memory", "storage", "storage, cold", "device capacity")
    bars = []
    for (model, found), colour in zip(measured.items(), COLOURS, strict=False):
        values = [speedup(found.loads, case, "load_ms") for case in CASES]
        values.append(found.resident["off"] / found.resident["on"])
        bars.append(Bars(TITLES[model], values, colour, found.formula))
    for (name, factors), colour in zip(PUBLISHED.items(), COLOURS[-2:], strict=True):
        bars.append(Bars(name, [factors.get(group) for group in names], colour))
    groups(
        path,
        names,
        bars,
        f"Load of ten stored prompts: hybrid KV cache manager off over on ({tokens // 1024}K tokens each,\n"
        "tiny models on a CPU; published: 128K tokens on GPUs). Black line: ratio of bytes",
        "times faster, or more tokens",
    )
    return path


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help=f"prompts of {QUICK_TOKENS} tokens, three rounds"
    )
    parser.add_argument(
        "--minutes", type=float, default=11, help="aim to end after so many (default 11)"
    )
    parser.add_argument(
        "--blocks-per-chunk", type=int, default=1, help="of vLLM; divides the prompts (default 1)"
    )
    parser.add_argument("--model", choices=MODELS, action="append", help="only this one; repeat")
    arguments = parser.parse_args()
    console = Console(width=max(TABLE_WIDTH, Console().width))
    try:
        with exclusive(report.MEASURING):
            run(
                arguments.model or list(MODELS),
                Size(
                    QUICK_TOKENS if arguments.quick else TOKENS,
                    arguments.blocks_per_chunk,
                    FEWEST_ROUNDS if arguments.quick else MOST_ROUNDS,
                ),
                arguments.minutes * 60,
                console,
            )
    except (OccupiedError, ServerError, BatchError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 2
    return 0


def run(models: list[str], size: Size, seconds: float, console: Console) -> None:
    """Measure, write, show.

    Args:
        models: names.
        size: of prompts and chunks, and how often.
        seconds: that it should take, about.
        console: for the tables and progress.
    """
    begun = time.monotonic()
    measured: dict[str, Measured] = {}
    figures: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for done, model in enumerate(models):
        ensure(model)
        console.print(f"{model}: {TITLES[model]}")
        share = (seconds - (time.monotonic() - begun)) / (len(models) - done)
        found = run_model(model, size, share, console)
        measured[model] = found
        figures |= figures_of(found, MODELS[model])
        samples |= samples_of(model, "load", "load_ms", found.loads)
        samples |= samples_of(model, "load_unheld", "load_ms", found.plain)
        samples |= samples_of(model, "ttft", "ttft_ms", found.plain)
    notes = {
        "hma_speedup_*": "load time with vLLM's hybrid KV cache manager off over on, medians",
        "*_unheld": "the same while the requests loaded first compute on the cores that copy",
        "batch_ttft_speedup_*": "the same for the time to the batch's last first token",
        "bytes_vs_formula": "largest ratio of bytes read to bytes needed; 1 is ideal",
        "formula": "bytes needed with it off over on: what a load gains if only bytes cost",
        "device_capacity_gain": "device bytes in use with the batch resident, off over on",
        "storage_cold": "the files' pages were dropped from this machine's page cache before",
        "samples": "milliseconds, by model, what, case and mode",
        "size": f"{PROMPTS} prompts of {size.tokens} tokens, {size.blocks_per_chunk} blocks a chunk",
    }
    for model, found in measured.items():
        console.print(table_of(model, size.tokens, found))
    console.print(f"figures: {save('batch-load', figures, notes, samples)}")
    console.print(f"picture: {draw(measured, size.tokens)}")
    for name, value in figures.items():
        console.print(f"  {name} = {value:.3f}")


def samples_of(model: str, what: str, field_name: str, batches: Samples) -> dict[str, list[float]]:
    """Every sample of one kind, by the name it gets in the report."""
    return {
        f"{model}/{what}/{case}/{mode}": [getattr(batch, field_name) for batch in values]
        for (case, mode), values in batches.items()
    }


if __name__ == "__main__":
    sys.exit(main())
