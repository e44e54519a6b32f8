"""The picture of `lab.demo_fleet`."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lab.fleet_figures import Row
from lab.plots import CACHED, RECOMPUTE, UNAWARE

SOURCES = (
    ("device", "device", CACHED),
    ("memory", "memory", "#6ba6f0"),
    ("storage", "storage", UNAWARE),
    ("computed", "recomputed", RECOMPUTE),
)
"""Field of a row, how it is called, and its colour."""


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Two panels: milliseconds to the first token, and where the tokens of prompts came from.

    Args:
        path: of the PNG.
        rows: one for each policy, from the top.
    """
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 0.55 * len(rows) + 1.8), sharey=True)
    for place, row in enumerate(rows):
        left.barh(place, row.ttft_p90, 0.6, color=UNAWARE, label="" if place else "p90")
        left.barh(place, row.ttft_p50, 0.6, color=CACHED, label="" if place else "p50")
        left.text(
            row.ttft_p90,
            place,
            f"  {row.ttft_p50:,.0f} / {row.ttft_p90:,.0f}",
            va="center",
            fontsize=9,
        )
        begin = 0
        for source, name, colour in SOURCES:
            tokens = getattr(row, source)
            right.barh(place, tokens, 0.6, left=begin, color=colour, label="" if place else name)
            begin += tokens
        right.text(begin, place, f"  {row.computed:,}", va="center", fontsize=9)
    left.set_xlim(0, 1.35 * max(row.ttft_p90 for row in rows))
    left.set_xlabel("milliseconds to the first token, p50 / p90")
    left.set_yticks(range(len(rows)), [row.policy for row in rows])
    left.invert_yaxis()
    right.set_xlim(0, 1.2 * max(sum(getattr(row, one[0]) for one in SOURCES) for row in rows))
    right.set_xlabel("tokens of prompts, by where they came from (number: recomputed)")
    for axes in (left, right):
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0)
        )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
