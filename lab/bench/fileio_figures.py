"""What the samples of `bench-fileio` say: figures, tables and pictures."""

import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab.bench.results import Samples
from lab.plots import CACHED, RECOMPUTE, UNAWARE, Curve, speeds

COLD = ("ours", "vllm", "vllm direct", "bare")
"""Sides of the cold loads."""
WANTED = {
    "load_vs_vllm_1MiB": ("hot 1M x1 ours", "hot 1M x1 vllm"),
    "load_vs_vllm_4MiB": ("hot 4M x1 ours", "hot 4M x1 vllm"),
    "load_vs_vllm_default_4MiB": ("hot 4M x1 ours", "hot 4M x1 vllm direct"),
    "load_vs_limit_4MiB": ("hot 4M x1 ours", "hot 4M x1 bare"),
    "load_floor_4MiB": ("hot 4M x1 bare, hashed", "hot 4M x1 bare"),
    "cold_vs_vllm_4MiB": ("cold 4M x1 ours", "cold 4M x1 vllm"),
    "cold_vs_vllm_default_4MiB": ("cold 4M x1 ours", "cold 4M x1 vllm direct"),
    "store_vs_vllm_1MiB": ("store 1M x1 ours", "store 1M x1 vllm"),
    "store_vs_vllm_4MiB": ("store 4M x1 ours", "store 4M x1 vllm"),
    "request_vs_vllm_8192x64KiB": ("request vllm direct", "request ours"),
    "request_vs_vllm_buffered": ("request vllm", "request ours"),
    "ten_requests_vs_vllm": ("ten requests vllm direct", "ten requests ours"),
    "ten_requests_vs_vllm_buffered": ("ten requests vllm", "ten requests ours"),
    "load_vs_lmcache_disk_4MiB": ("hot 4M x4 ours", "hot 4M x4 lmcache disk"),
    "load_vs_lmcache_fs_4MiB": ("hot 4M x4 ours", "hot 4M x4 lmcache fs"),
    "load_vs_lmcache_disk_64KiB": ("hot 64K x4 ours", "hot 64K x4 lmcache disk"),
    "cold_vs_lmcache_disk_4MiB": ("cold 4M x4 ours", "cold 4M x4 lmcache disk"),
}
"""Figures: medians of which two cases are divided."""
LOOKS = {
    "ours": ("kvstrata, verified", "o-", CACHED),
    "vllm": ("vLLM, buffered", "s-", "#e07b39"),
    "vllm direct": ("vLLM, O_DIRECT (default)", "s--", "#e07b39"),
    "lmcache disk": ("LMCache, local disk, 4 threads", "^-", "#7a5195"),
    "lmcache fs": ("LMCache, fs, 4 threads", "^--", "#7a5195"),
    "bare": ("open, preadv, close", "-", RECOMPUTE),
    "bare, hashed": ("the same, and XXH3", "--", UNAWARE),
}
"""Sides: name, style and colour in pictures."""


def label(size: int) -> str:
    """Such as 64K or 4M."""
    return f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}K"


def figures(samples: Samples) -> dict[str, float]:
    """What the samples say, by name; those not measured are left out."""
    middle = {key: statistics.median(values) for key, values in samples.items()}
    return {
        name: middle[above] / middle[below]
        for name, (above, below) in WANTED.items()
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


def pictures(samples: Samples, directory: Path) -> None:
    """Hot by size, cold by size, hot by threads; only if loads were measured.

    Args:
        samples: see `Samples`.
        directory: for fileio-size.png, fileio-cold.png and fileio-threads.png.
    """
    sizes = [label(64 << 10 << 2 * step) for step in range(5)]
    threads = ["1", "2", "4", "8"]
    for name, title, xs, case in (
        ("size", "Loads, page cache hot, one thread", sizes, "hot {x} x{n}"),
        ("cold", "Loads, page cache dropped, one thread", sizes, "cold {x} x{n}"),
        ("threads", "Loads of 4 MiB, page cache hot", threads, "hot 4M x{x}"),
    ):
        lines = []
        for side, (about, style, colour) in LOOKS.items():
            number = 4 if side.startswith("lmcache") else 1
            keys = [f"{case.format(x=x, n=number)} {side}" for x in xs]
            found = [(at, samples[key]) for at, key in enumerate(keys) if key in samples]
            if found:
                places = [at for at, _ in found]
                middle = [statistics.median(values) for _, values in found]
                lines.append(Curve(about, places, middle, style, colour))
        if lines:
            below = "threads" if name == "threads" else "bytes of a chunk"
            speeds(directory / f"fileio-{name}.png", xs, lines, title, below)
