"""Pictures of results."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

RECOMPUTE = "#9aa5b1"
CACHED = "#2b7de9"


def bars(path: Path, rows: Sequence[tuple[str, float, str]], title: str, unit: str) -> None:
    """Horizontal bars on a logarithmic axis.

    Args:
        path: of the PNG.
        rows: name, value and label of each bar, from the top; the first is the reference.
        title: above the picture.
        unit: below its axis.
    """
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.4))
    names = [name for name, _, _ in rows]
    values = [value for _, value, _ in rows]
    colours = [RECOMPUTE, *[CACHED] * (len(rows) - 1)]
    drawn = axes.barh(range(len(rows)), values, color=colours)
    axes.bar_label(drawn, [label for _, _, label in rows], padding=4, fontsize=9)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 6)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def curves(
    path: Path,
    series: Sequence[tuple[str, Sequence[float], Sequence[float], str]],
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Lines on two logarithmic axes.

    Args:
        path: of the PNG.
        series: name, x values, y values and line style of each.
        title: above the picture.
        x_label: below.
        y_label: beside.
    """
    figure, axes = pyplot.subplots(figsize=(8, 4.6))
    for name, xs, ys, style in series:
        axes.plot(xs, ys, style, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=11)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
