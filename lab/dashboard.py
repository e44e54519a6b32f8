"""The Grafana dashboard read from its file, and drawn from a Prometheus' answers to its queries.

Grafana draws it better; this shows without one what its queries answer. Each panel has its title, its place
and its queries from the file.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from lab import report

FILE = report.REPOSITORY / "deploy" / "grafana" / "kvstrata.json"
ANYTHING = {"$engine": ".*", "$router": ".*"}
"""What the dashboard's variables stand for when nobody has chosen."""
COLUMNS = 24
INCHES_A_COLUMN, INCHES_A_ROW = 0.85, 0.42
DPI = 72
MOST_LEGENDS = 8
UNITS = {"s": "s", "bytes": "B", "Bps": "B/s", "reqps": "/s", "short": "", "percentunit": "%"}
Series = dict[str, Any]
Ask = Callable[[str], list[Series]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel, or the title of a row of them.

    Attributes:
        title: above it.
        place: x, y, width and height in units of the dashboard's grid of 24 columns.
        unit: Grafana's name of the values' unit.
        stacked: whether series are put on top of each other.
        queries: of its series, with variables, and the template of their legends.
    """

    title: str
    place: tuple[int, int, int, int]
    unit: str
    stacked: bool
    queries: tuple[tuple[str, str], ...]


def panels(path: Path = FILE) -> Iterator[Panel]:
    """All panels of the file, titles of rows included."""
    for one in json.loads(path.read_text())["panels"]:
        grid = one["gridPos"]
        defaults = one.get("fieldConfig", {}).get("defaults", {})
        yield Panel(
            title=one["title"],
            place=(grid["x"], grid["y"], grid["w"], grid["h"]),
            unit=defaults.get("unit", "short"),
            stacked="stacking" in defaults.get("custom", {}),
            queries=tuple((t["expr"], t["legendFormat"]) for t in one.get("targets", ())),
        )


def filled(query: str, interval: str = "30s") -> str:
    """A query with values for its variables."""
    for name, value in ANYTHING.items():
        query = query.replace(name, value)
    return query.replace("$__rate_interval", interval)


def draw(path: Path, ask: Ask, times: Mapping[str, float]) -> None:
    """Write the whole dashboard as a PNG.

    Args:
        path: of the picture.
        ask: Prometheus' answer to a query over the time that is shown.
        times: `start` and `end` of it, seconds since 1970.
    """
    shown = list(panels())
    rows = max(y + height for _, y, _, height in (one.place for one in shown))
    size = COLUMNS * INCHES_A_COLUMN, rows * INCHES_A_ROW
    with mpl.rc_context({"font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold"}):
        figure = Figure(figsize=size, dpi=DPI, facecolor="#f4f5f5")
        for one in shown:
            x, y, width, height = one.place
            if not one.queries:
                at = 1 - (y + 0.7) / rows
                figure.text(0.005, at, one.title, fontsize=12, fontweight="bold", va="center")
                continue
            inside = (
                (x + 0.9) / COLUMNS,
                1 - (y + height - 2.3) / rows,
                (width - 1.1) / COLUMNS,
                (height - 3.2) / rows,
            )
            _panel(figure.add_axes(inside), one, ask, times)
        figure.savefig(path)
    _compress(path)


def _panel(axes: Axes, panel: Panel, ask: Ask, times: Mapping[str, float]) -> None:
    lines = [
        (_legend(template, series["metric"]), series["values"])
        for query, template in panel.queries
        for series in ask(filled(query))
    ]
    if len(lines) > MOST_LEGENDS:  # those that say something get a name
        lines.sort(key=lambda line: -max(float(text) for _, text in line[1]))
    axes.set_title(panel.title, loc="left")
    axes.set_facecolor("white")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    if panel.stacked:
        _stack(axes, lines)
    else:
        for name, values in lines:
            at, heights = zip(*((float(at), float(text)) for at, text in values), strict=True)
            axes.plot(at, heights, linewidth=1, label=name)
    axes.set_xlim(times["start"], times["end"])
    axes.set_ylim(bottom=0)
    if panel.unit == "percentunit":
        axes.set_ylim(0, 1.02)
    elif axes.get_ylim()[1] < 1e-6 or not lines:
        axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, panel.unit)))
    minutes = range(int(times["end"] - times["start"]) // 60 + 1)
    axes.set_xticks(
        [times["start"] + 60 * one for one in minutes], [f"{one} min" for one in minutes]
    )
    if not lines:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="#888888")
        return
    axes.legend(
        *(part[:MOST_LEGENDS] for part in axes.get_legend_handles_labels()),
        loc="upper left",
        bbox_to_anchor=(-0.05, -0.14),
        ncols=2 if max(len(name) for name, _ in lines) > 16 else 4,
        frameon=False,
        fontsize=7,
        handlelength=1,
        columnspacing=1,
    )


def _stack(axes: Axes, lines: Sequence[tuple[str, Any]]) -> None:
    """Series on top of each other; where one has no value it counts as nothing."""
    ticks = sorted({float(at) for _, values in lines for at, _ in values})
    known = [{float(at): float(text) for at, text in values} for _, values in lines]
    heights = [[one.get(at, 0.0) for at in ticks] for one in known]
    if ticks:
        names = [name for name, _ in lines]
        axes.stackplot(ticks, *heights, labels=names, alpha=0.75)


def told(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if unit == "percentunit":
        return f"{100 * value:.0f}%"
    if unit == "s":
        return f"{value * 1000:g} ms" if 0 < value < 1 else f"{value:g} s"
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g} {prefix}{UNITS.get(unit, '')}"
    return f"{value:g} {UNITS.get(unit, '')}".strip()


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def _compress(path: Path) -> None:
    picture = Image.open(path).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
