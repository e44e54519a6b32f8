"""Time to first token by prompt length: recompute, device hit, memory, storage.

One server a model. Its arena is a little larger than the longest prompt's KV, so asking another long
prompt in between pushes a prompt out of memory, and the next ask must come from files; the engine's own
counter of tokens by tier confirms it. Cases are interleaved, round by round, recomputes in the first rounds
only, because they take long. For the cold page cache the files' pages are dropped first (`posix_fadvise`,
after `sync`); a disk behind a virtual machine may still have them in its host's memory.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import report
from lab.bench.page_cache import drop_pages
from lab.bench.results import DIRECTORY, save, spread
from lab.exclusive import OccupiedError, exclusive
from lab.models import RECIPES, ensure, prompt_ids
from lab.plots import CACHED, Curve, curves
from lab.server import EngineServer, ServerError

MODELS = {"llama-bench": "", "gemma3-bench": "gemma3_"}
"""Model and the prefix of its figures."""
LENGTHS = {1024: "1k", 2048: "2k", 4096: "4k", 8192: "8k", 16384: "16k", 32768: "32k"}
RECOMPUTES = {1024: 5, 2048: 4, 4096: 3, 8192: 2, 16384: 2}
"""Samples of a recompute; two at the longest, where the prompt that flushes memory gives the second."""
CASES = ("recompute", "device", "memory", "storage", "storage_cold")
PUBLISHED = {16384: 4.8, 32768: 7.3, 65536: 10.6, 98304: 13.4, 131072: 16.8}
"""Storage over recompute, Llama-3.1-70B on four H100 (the authors' figures)."""
STYLES = {"device": "D-.", "memory": "o-", "storage": "s-", "storage_cold": "^:"}
"""Marker and line of each case in the picture."""
COLOURS = (CACHED, "#e0672b")
DEVICE_BYTES = 384 << 20
"""Room for two of the longest prompts. No more, so that after the first ones every page of it has been
touched: a page fault in a load would be charged to it, and a GPU's memory has none."""
FLUSH_SEED = 900
TABLE_WIDTH = 140
"""Columns of text: cells of a table that wraps cannot be compared."""
FEWEST_ROUNDS = 3
"""Taken even if the time is up: fewer would hide the spread."""


@dataclass
class Bench:
    """Samples of one model, in milliseconds, by case and length."""

    server: EngineServer
    directory: Path
    console: Console
    lengths: list[int]
    samples: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def measure(self, case: str, length: int, seed: int) -> None:
        """One sample: ask for one token and note the time."""
        answer = self.server.client.complete(prompt_ids(length - 20, seed=seed), 1)
        expected = 0 if case == "recompute" else (length - 20 - 1) // 128 * 128
        if answer.cached_tokens < expected or (case == "recompute" and answer.cached_tokens):
            raise RuntimeError(
                f"{case} of {length} tokens was served {answer.cached_tokens} cached tokens"
            )
        self.samples[case, length].append(answer.ttft_ms)

    def fill(self) -> None:
        """Compute every prompt once, and the one that will push others out of memory."""
        for length in self.lengths:
            self.measure("recompute", length, seed=length)
        self.measure("recompute", max(self.lengths), seed=FLUSH_SEED)
        self.settle()
        for length in self.lengths:
            self.console.print(f"  {length} tokens: {spread(self.samples['recompute', length])} ms")

    def settle(self) -> None:
        """Wait until what was stored is in files, and on the disk."""
        self.server.wait_idle()
        os.sync()

    def round(self, number: int) -> None:
        """One sample of every case and length; of a recompute only while samples are missing."""
        for length in self.lengths:
            if len(self.samples["recompute", length]) < RECOMPUTES.get(length, 1):
                self.measure("recompute", length, seed=length + 1 + number)
                self.settle()
            for case in ("storage_cold", "storage"):
                self.flush(length)
                if case == "storage_cold":
                    drop_pages(self.directory)
                self.measure(case, length, seed=length)
            self.server.client.reset_prefix_cache()
            self.measure("memory", length, seed=length)
            self.measure("device", length, seed=length)

    def flush(self, length: int) -> None:
        """Push a prompt out of memory and device."""
        longest = max(self.lengths)
        others = [FLUSH_SEED, longest] if length != longest else [FLUSH_SEED]
        for seed in others:
            self.server.client.reset_prefix_cache()
            self.server.client.complete(prompt_ids(longest - 20, seed=seed), 1)
        self.server.client.reset_prefix_cache()

    def confirm(self) -> None:
        """See by the engine's counters that the storage case comes from files.

        Raises:
            RuntimeError: it does not.
        """
        for length in self.lengths:
            self.flush(length)
            before = self.from_files()
            answer = self.server.client.complete(prompt_ids(length - 20, seed=length), 1)
            if not answer.cached_tokens or self.from_files() - before != answer.cached_tokens:
                raise RuntimeError(f"{length} tokens: not all of the load came from files")

    def from_files(self) -> float:
        """Prompt tokens that came from files so far."""
        self.server.warm_up(8)  # the engine publishes its counters when it steps
        return self.server.client.metrics().get("vllm:kvstrata_tokens_total{tier=filesystem}", 0)


def arena_bytes(model: str, longest: int) -> int:
    """Room for the longest prompt's KV and little more: full layers' tokens, and the windows' tails."""
    recipe = RECIPES[model]
    layer = 2 * recipe.key_value_heads * recipe.head_size * 4
    full = recipe.layer_types.count("full_attention") * layer * longest
    windowed = recipe.layer_types.count("sliding_attention") * layer * (recipe.window + 128)
    return int((full + windowed) * 1.05) + (2 << 20)


def run_model(
    model: str, rounds: int, seconds: float, lengths: list[int], console: Console
) -> Bench:
    """All samples of one model; no new round begins that would not end in time."""
    begun = time.monotonic()
    directory = DIRECTORY / "ttft" / model
    shutil.rmtree(directory, ignore_errors=True)
    server = EngineServer(
        model,
        DIRECTORY / f"ttft-{model}.log",
        kv={"path": str(directory), "memory": arena_bytes(model, max(lengths))},
        max_model_len=max(lengths) + 1024,
        device_bytes=DEVICE_BYTES,
        threads=os.cpu_count() or 1,
    )
    with server:
        server.warm_up()
        bench = Bench(server, directory, console, lengths)
        bench.fill()
        bench.confirm()
        for number in range(rounds):
            started = time.monotonic()
            bench.round(number)
            ended = time.monotonic()
            console.print(f"  round {number + 1} of {rounds}: {ended - started:.0f} s")
            if number + 1 >= FEWEST_ROUNDS and 2 * ended - started - begun > seconds:
                break
    shutil.rmtree(directory, ignore_errors=True)
    return bench


def figures_of(bench: Bench, prefix: str) -> dict[str, float]:
    """Ratios of medians."""
    found = {}
    for length in bench.lengths:
        name = LENGTHS[length]
        median = {case: statistics.median(bench.samples[case, length]) for case in CASES}
        found[f"{prefix}memory_over_device_{name}"] = median["memory"] / median["device"]
        found[f"{prefix}storage_over_device_{name}"] = median["storage"] / median["device"]
        found[f"{prefix}storage_cold_over_device_{name}"] = (
            median["storage_cold"] / median["device"]
        )
        found[f"{prefix}storage_speedup_{name}"] = median["recompute"] / median["storage"]
    return found


def show(benches: dict[str, Bench], console: Console) -> None:
    """The table: medians with their spread."""
    for model, bench in benches.items():
        table = Table(title=f"{model}: TTFT in ms, median (min - max, samples)")
        for column in ("tokens", *CASES):
            table.add_column(column, justify="right")
        for length in bench.lengths:
            cells = [spread(bench.samples[case, length]) for case in CASES]
            table.add_row(str(length), *cells)
        console.print(table)


def draw(benches: dict[str, Bench]) -> Path:
    """Speed-up over recompute by prompt length, the published curve beside ours."""
    path = DIRECTORY / "ttft.png"
    series = []
    for (model, bench), colour in zip(benches.items(), COLOURS, strict=True):
        for case, style in STYLES.items():
            speedups = [
                statistics.median(bench.samples["recompute", length])
                / statistics.median(bench.samples[case, length])
                for length in bench.lengths
            ]
            name = f"{model}, {case.replace('_', ', ')}"
            series.append(Curve(name, bench.lengths, speedups, style, colour))
    series.append(
        Curve(
            "published: Llama-3.1-70B,\n4 H100, storage",
            list(PUBLISHED),
            list(PUBLISHED.values()),
            "--",
            "black",
        )
    )
    curves(
        path,
        series,
        f"TTFT of a recompute over TTFT of a load (ours: tiny models, {os.cpu_count()} CPU cores)",
        "prompt tokens",
        "times faster than a recompute",
    )
    return path


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="three lengths up to 16K tokens, two rounds"
    )
    parser.add_argument(
        "--minutes", type=float, default=12, help="aim to end after so many (default 12)"
    )
    arguments = parser.parse_args()
    console = Console(width=max(TABLE_WIDTH, Console().width))
    try:
        with exclusive(report.MEASURING):
            run(arguments.quick, arguments.minutes * 60, console)
    except (OccupiedError, ServerError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 2
    return 0


def run(quick: bool, seconds: float, console: Console) -> None:
    """Measure, write, show.

    Args:
        quick: fewer lengths and rounds.
        seconds: that it should take, about.
        console: for the table and progress.
    """
    begun = time.monotonic()
    lengths = [1024, 4096, 16384] if quick else list(LENGTHS)
    benches = {}
    for done, model in enumerate(MODELS):
        ensure(model)
        console.print(model)
        left = seconds - (time.monotonic() - begun)
        share = left / (len(MODELS) - done)
        rounds = 2 if quick else 7
        benches[model] = run_model(model, rounds, share, lengths, console)
    figures: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for model, bench in benches.items():
        figures |= figures_of(bench, MODELS[model])
        samples |= {f"{model}/{case}/{n}": v for (case, n), v in bench.samples.items()}
    notes = {
        "*_over_device_*": "TTFT of a load over TTFT of a device hit, medians; 1 is ideal",
        "*_speedup_*": "TTFT of a recompute over TTFT of a load from files with a hot page cache",
        "storage_cold": "the files' pages were dropped from this machine's page cache before",
        "samples": "milliseconds, by model, case and prompt tokens",
    }
    show(benches, console)
    console.print(f"figures: {save('ttft', figures, notes, samples)}")
    console.print(f"picture: {draw(benches)}")
    for name, value in figures.items():
        if name.endswith("32k"):
            console.print(f"  {name} = {value:.3f}")


if __name__ == "__main__":
    sys.exit(main())
