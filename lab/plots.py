"""Pictures of results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

RECOMPUTE = "#9aa5b1"
CACHED = "#2b7de9"
UNAWARE = "#9cc3f5"


def bars(path: Path, rows: Sequence[tuple[str, float, str, str]], title: str, unit: str) -> None:
    """Horizontal bars on a logarithmic axis.

    Args:
        path: of the PNG.
        rows: name, value, label and colour of each bar, from the top.
        title: above the picture.
        unit: below its axis.
    """
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.4))
    names, values, labels, colours = zip(*rows, strict=True)
    drawn = axes.barh(range(len(rows)), values, color=colours)
    axes.bar_label(drawn, labels, padding=4, fontsize=9)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10 ** math.floor(math.log10(min(values) / 2)), max(values) * 8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


@dataclass(frozen=True)
class Curve:
    """One line of `curves`; `style` is matplotlib's marker and dash, such as "o-"."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str
    colour: str


def curves(path: Path, series: Sequence[Curve], title: str, x_label: str, y_label: str) -> None:
    """Lines of factors by numbers of tokens, on two logarithmic axes.

    Args:
        path: of the PNG.
        series: the lines; x in tokens, y a factor.
        title: above the picture.
        x_label: below.
        y_label: beside.
    """
    figure, axes = pyplot.subplots(figsize=(10, 4.8))
    for curve in series:
        axes.plot(curve.xs, curve.ys, curve.style, color=curve.colour, label=curve.name, ms=5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}K"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=11)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


@dataclass(frozen=True)
class Bars:
    """One colour of `groups`: a factor for each group, None for none; `limit` is drawn above its bars."""

    name: str
    values: Sequence[float | None]
    colour: str
    limit: float | None = None


def groups(
    path: Path, names: Sequence[str], series: Sequence[Bars], title: str, y_label: str
) -> None:
    """Factors as bars that stand in groups.

    Args:
        path: of the PNG.
        names: of the groups, from the left.
        series: one bar of each in every group where it has a value.
        title: above the picture.
        y_label: beside.
    """
    figure, axes = pyplot.subplots(figsize=(10, 4.6))
    width = 0.84 / len(series)
    for place, one in enumerate(series):
        known = [(x, value) for x, value in enumerate(one.values) if value is not None]
        xs = [x + (place - (len(series) - 1) / 2) * width for x, _ in known]
        drawn = axes.bar(
            xs, [value for _, value in known], width * 0.94, color=one.colour, label=one.name
        )
        axes.bar_label(drawn, [f"{value:.2f}" for _, value in known], fontsize=7, padding=2)
        if one.limit is not None:
            axes.hlines(
                [one.limit] * len(xs),
                [x - width / 2 for x in xs],
                [x + width / 2 for x in xs],
                color="black",
                linewidth=1,
            )
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


@dataclass(frozen=True)
class Line:
    """One line of `growth`: (size, milliseconds) from the smallest size on."""

    name: str
    points: Sequence[tuple[float, float]]


def growth(path: Path, panels: Sequence[Sequence[Line]], labels: Sequence[str]) -> None:
    """How milliseconds grow with a size: one panel for each kind of size, logarithmic on both axes.

    Args:
        path: of the PNG.
        panels: the lines of each panel.
        labels: below each panel.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, every = pyplot.subplots(1, len(panels), figsize=(10, 4.2), squeeze=False)
    for axes, lines, label in zip(every[0], panels, labels, strict=True):
        for line, style in zip(lines, ("o-", "s-", "^--"), strict=False):
            xs, ys = zip(*line.points, strict=True)
            axes.plot(xs, ys, style, label=line.name, ms=5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.tick_params(axis="x", rotation=30)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_xlabel(label)
        axes.set_ylabel("ms")
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def speeds(
    path: Path, xs: Sequence[str], series: Sequence[Curve], title: str, x_label: str
) -> None:
    """GB/s, from zero, over equal steps.

    Args:
        path: of the PNG.
        xs: names of the steps.
        series: the lines; x counts steps from 0.
        title: above the picture.
        x_label: below.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for curve in series:
        axes.plot(curve.xs, curve.ys, curve.style, color=curve.colour, label=curve.name, ms=5)
    axes.set_xticks(range(len(xs)), xs)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel("GB/s")
    axes.set_title(title, fontsize=10)
    axes.grid(True, axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
