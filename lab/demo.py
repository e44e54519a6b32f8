"""The main job, seen: one hybrid model, real servers, the same prompt from every tier.

`python -m lab.demo` (or `make demo`) prints a table as it goes and writes `build/demo/report.json` and
`build/demo/ttft.png`. The files that it reads are still in the page cache: the storage steps show what
kvstrata and the engine cost, not a disk (for that see `lab.bench.ttft`).
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lab import report
from lab.client import Answer
from lab.exclusive import OccupiedError, exclusive
from lab.models import ensure, prompt_ids
from lab.plots import CACHED, RECOMPUTE, UNAWARE, bars
from lab.server import EngineServer, ServerError

MODEL = "gemma3-bench"
PROMPT_TOKENS = 16_500
ANSWER_TOKENS = 16
DIRECTORY = report.BUILD / "demo"
STORAGE_READ = "vllm:kvstrata_bytes_total{direction=read,tier=filesystem}"
DEVICE_LOAD = "vllm:kv_offload_load_bytes_total{}"
AIM = 5.0
"""Storage must be at least this many times faster than a recompute."""


@dataclass
class Row:
    """One step of the demo."""

    step: str
    ttft_ms: float
    cached_tokens: int
    speedup: float
    identical: bool
    bytes_read: int


@dataclass
class Demo:
    """What has been measured so far.

    Attributes:
        cold: the answer of a recompute, which all others must equal.
    """

    console: Console
    rows: list[Row] = field(default_factory=list)
    cold: Answer | None = None

    def ask(self, step: str, server: EngineServer, counter: str | None = None) -> None:
        """One step: ask the prompt, compare, note.

        Args:
            step: its name.
            server: asked.
            counter: metric of the bytes that the step reads, if any.
        """
        before = server.client.metrics().get(counter, 0) if counter else 0
        answer = server.client.complete(prompt_ids(PROMPT_TOKENS, seed=16), ANSWER_TOKENS)
        self.cold = self.cold or answer
        row = Row(
            step=step,
            ttft_ms=round(answer.ttft_ms, 1),
            cached_tokens=answer.cached_tokens,
            speedup=round(self.cold.ttft_ms / answer.ttft_ms, 1),
            identical=answer.tokens == self.cold.tokens and len(answer.tokens) == ANSWER_TOKENS,
            bytes_read=0,
        )
        if counter:
            server.warm_up(8)  # the engine publishes its counters when it steps
            row.bytes_read = round(server.client.metrics().get(counter, 0) - before)
        self.rows.append(row)
        self.console.print(line(row), highlight=False)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A line that says what is waited for, and since when; a terminal takes it away again."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        hidden = not self.console.is_terminal  # a log has no use for it
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            progress.add_task(what, total=None)
            yield

    @contextmanager
    def server(self, name: str, directory: str, *, hybrid: bool = True) -> Iterator[EngineServer]:
        """A warmed-up server on one of the demo's directories."""
        kv = {"path": str(DIRECTORY / directory), "memory": "1GiB"}
        server = EngineServer(
            MODEL,
            DIRECTORY / f"{name}.log",
            kv=kv,
            hybrid=hybrid,
            max_model_len=20_480,
            device_bytes=1 << 30,
            threads=os.cpu_count() or 1,
        )
        try:
            with self.waiting(f"starting {name}"):
                server.start()
                server.warm_up()
            yield server
        finally:
            with self.waiting(f"stopping {name}"):
                server.stop()

    def run(self) -> None:
        """All steps, in order."""
        self.console.print(HEADER, style="bold", highlight=False)
        with self.server("first server", "kv") as first:
            with self.waiting(f"computing {PROMPT_TOKENS:,} tokens"):
                self.ask("cold", first)
            self.ask("device", first)
            first.client.reset_prefix_cache()
            self.ask("memory", first, DEVICE_LOAD)
            with self.waiting("waiting until everything is stored"):
                first.wait_idle()
        with self.server("first server, restarted", "kv") as first:
            self.ask("storage_restart", first, STORAGE_READ)
            with self.server("second server", "kv") as second:
                self.ask("storage_other_replica", second, STORAGE_READ)
        with self.server("hybrid-unaware server", "kv-unaware", hybrid=False) as unaware:
            with self.waiting(f"computing {PROMPT_TOKENS:,} tokens"):
                unaware.client.complete(prompt_ids(PROMPT_TOKENS, seed=16), 1)
            with self.waiting("waiting until everything is stored"):
                unaware.wait_idle()
        with self.server("hybrid-unaware server, restarted", "kv-unaware", hybrid=False) as again:
            self.ask("storage_unaware", again, STORAGE_READ)


COLOURS = {"cold": RECOMPUTE, "storage_unaware": UNAWARE}
HEADER = f"{'step':22} {'TTFT ms':>10} {'speed-up':>9} {'cached':>7} {'MiB read':>9}  tokens"


def line(row: Row) -> str:
    """One row as a person reads it, below `HEADER`."""
    read = f"{row.bytes_read / 2**20:.1f}" if row.bytes_read else "-"
    return (
        f"{row.step:22} {row.ttft_ms:10,.1f} {row.speedup:8,.1f}x {row.cached_tokens:7} {read:>9}"
        f"  {'identical' if row.identical else 'DIFFERENT'}"
    )


def label(row: Row) -> str:
    """What stands beside a row's bar: the time, how much faster, and what was read for it."""
    shown = f"{row.ttft_ms:,.0f} ms"
    if row.step != "cold":
        shown += f"   {row.speedup:,.0f}x"
    if row.bytes_read:
        shown += f"   {row.bytes_read / 2**20:,.0f} MiB"
    return shown


def failures(rows: list[Row]) -> list[str]:
    """What is not as it should be."""
    found = [
        f"{row.step}: the tokens differ from a recompute's" for row in rows if not row.identical
    ]
    found += [
        f"{row.step}: only {row.speedup}x faster than a recompute, expected {AIM}x"
        for row in rows
        if row.step.startswith("storage") and row.speedup < AIM
    ]
    found += [
        f"{row.step}: nothing was read from files"
        for row in rows
        if row.step.startswith("storage") and not row.bytes_read
    ]
    return found


def save(rows: list[Row]) -> dict[str, Any]:
    """Write report and picture."""
    document = {
        "rows": [asdict(row) for row in rows],
        "model": MODEL,
        "prompt_tokens": PROMPT_TOKENS,
        "page_cache": "hot: the files were written just before",
        "machine": report.machine(),
        "versions": report.versions(),
    }
    (DIRECTORY / "report.json").write_text(json.dumps(document, indent=2) + "\n")
    bars(
        DIRECTORY / "ttft.png",
        [(row.step, row.ttft_ms, label(row), COLOURS.get(row.step, CACHED)) for row in rows],
        title=f"Time to first token of {PROMPT_TOKENS:,} prompt tokens ({MODEL})",
        unit="milliseconds, log scale",
    )
    return document


def main() -> int:
    """Run the demo; the exit status says whether all is as it should be."""
    console = Console()
    try:
        with exclusive(report.MEASURING):
            return show(console)
    except (OccupiedError, ServerError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 2


def show(console: Console) -> int:
    """All of it, from an empty directory; 1 if something is not as it should be."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    demo = Demo(console)
    with demo.waiting(f"making the model {MODEL}"):
        ensure(MODEL)
    console.print(f"{MODEL}, {PROMPT_TOKENS:,} prompt tokens, {ANSWER_TOKENS} generated, greedy")
    demo.run()
    save(demo.rows)
    console.print(f"report: {_relative(DIRECTORY / 'report.json')}")
    console.print(f"picture: {_relative(DIRECTORY / 'ttft.png')}")
    wrong = failures(demo.rows)
    for line in wrong:
        console.print(f"[bold red]{line}")
    return 1 if wrong else 0


def _relative(path: Path) -> Path:
    return path.relative_to(report.REPOSITORY)


if __name__ == "__main__":
    sys.exit(main())
