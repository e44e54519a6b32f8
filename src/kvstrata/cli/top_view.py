"""Tables of `kvstrata top`, from rows of figures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvstrata.cli import console
from kvstrata.cli.watched import COMPUTED, TIERS, Amount, EngineRow, RouterRow
from kvstrata.sizes import format_size

ALL = "all"
FOLDED = frozenset({"state", "stored", "trouble", "router"})
LEAST = 6
"""Columns of what folds, also on a narrow screen."""
SENTENCES = FOLDED | {"engine", "process", "from", "queues", "replicas"}


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """One process as it is shown.

    Attributes:
        name: host and port.
        row: figures; None until there were two looks.
        error: why the last look brought nothing; empty if it did.
        silent: seconds since the last look that brought something; None if there was none.
    """

    name: str
    row: EngineRow | RouterRow | None = None
    error: str = ""
    silent: float | None = None


def screen(watched: Sequence[Watched], together: EngineRow | None) -> RenderableType:
    """Everything: engines, routers, and what went wrong. Times are percentiles, 50th/90th."""
    engines = [one for one in watched if not isinstance(one.row, RouterRow)]
    routers = [one for one in watched if isinstance(one.row, RouterRow)]
    parts: list[RenderableType] = []
    if engines:
        whole = [Watched(ALL, together)] if together is not None and len(engines) > 1 else []
        rows = [*engines, *whole]
        parts += [_serving(rows), _storing(rows)]
    if routers:
        parts.append(_routers(routers))
    parts.append(_troubles(watched))
    return Group(*parts)


def as_dict(watched: Sequence[Watched], together: EngineRow | None) -> dict[str, Any]:
    """The same as plain data; numbers that are not known are None."""
    told = []
    for one in watched:
        kind = "router" if isinstance(one.row, RouterRow) else "engine" if one.row else None
        row = None if one.row is None else dataclasses.asdict(one.row)
        told.append({**dataclasses.asdict(one), "kind": kind, "row": row})
    return {
        "processes": told,
        "all_engines": None if together is None else dataclasses.asdict(together),
    }


def _serving(watched: Sequence[Watched]) -> Table:
    shown = _table("engine", "req/s", "run/wait", "tokens/s", "ttft", "from", "state")
    for one in watched:
        row = one.row
        if isinstance(row, EngineRow):
            figures = (
                f"{row.requests_per_s:.1f}",
                f"{row.running:.0f}/{row.waiting:.0f}",
                f"{row.prompt_tokens_per_s:,.0f}",
                _times(row.ttft),
                shares(row.shares, (*TIERS, COMPUTED)),
            )
        else:
            figures = ("-",) * 5
        shown.add_row(one.name, *figures, _state(one))
    return shown


def _storing(watched: Sequence[Watched]) -> Table:
    shown = _table("engine", "load wait", "read/s", "written/s", "queues", "stored")
    for one in watched:
        row = one.row
        if isinstance(row, EngineRow) and row.ours:
            shown.add_row(
                one.name,
                _times(row.load_wait),
                _bytes_by_tier(row.read_bytes_per_s),
                _bytes_by_tier(row.written_bytes_per_s),
                "\n".join(f"{name} {depth:.0f}" for name, depth in row.queues.items()) or "-",
                _stored(row),
            )
    return shown


def _troubles(watched: Sequence[Watched]) -> RenderableType:
    """One line for each process and each kind of trouble that it had: new ones, and all since it began."""
    shown = _table("process", "trouble", "new", "since start")
    for one in watched:
        for what, amount in _counted(one.row).items():
            if amount.all:
                figures = f"+{amount.new:,.0f}", f"{amount.all:,.0f}"
                shown.add_row(one.name, what, *figures, style="yellow" if amount.new else "")
    return shown if shown.row_count else Text("nothing dropped, nothing bad", style="green")


def _counted(row: EngineRow | RouterRow | None) -> dict[str, Amount]:
    if isinstance(row, EngineRow):
        return {
            **{f"not stored: {reason}": amount for reason, amount in row.dropped.items()},
            **{f"bad record: {reason}": amount for reason, amount in row.bad.items()},
            "read not in time": row.deadlines,
            "preempted": row.preempted,
        }
    if isinstance(row, RouterRow):
        refused = {f"refused: {code}": amount for code, amount in row.refused.items()}
        return {**refused, "tried again elsewhere": row.retried}
    return {}


def _routers(watched: Sequence[Watched]) -> Table:
    shown = _table("router", "answers/s", "busy/wait", "ttft", "from", "replicas", "state")
    for one in watched:
        row = one.row
        assert isinstance(row, RouterRow)
        statuses = (f"{status} {rate:.1f}" for status, rate in sorted(row.answers_per_s.items()))
        shown.add_row(
            one.name,
            "\n".join(statuses) or "-",
            f"{row.in_flight:.0f}/{row.waiting:.0f}",
            _times(row.ttft),
            shares(row.shares, ("device", "memory", "storage", COMPUTED)),
            _counts(row.replicas, row.trust),
            _state(one),
        )
    return shown


def _table(*columns: str) -> Table:
    """Only what is said in sentences folds: a figure in two lines is none."""
    shown = console.table(*columns, numbers=set(columns) - SENTENCES)
    for column in shown.columns:
        column.no_wrap = column.header not in FOLDED
        column.min_width = LEAST if column.header in FOLDED else None
        column.justify = "left" if column.header in SENTENCES else "right"
    return shown


def shares(found: Mapping[str, float], names: Sequence[str]) -> str:
    """Shares in percent, one a line, in the order of `names`; "-" without any."""
    known = [*(name for name in names if name in found), *(set(found) - set(names))]
    return "\n".join(f"{name} {100 * found[name]:.0f}%" for name in known) or "-"


def _state(one: Watched) -> Text:
    row = one.row
    if one.error:
        since = "" if one.silent is None else f" for {console.format_age(one.silent)}"
        return Text(f"silent{since}: {one.error}", style="red")
    if row is None:
        return Text("first look", style="dim")
    if isinstance(row, EngineRow):
        return _engine_state(row)
    if not row.replicas.get("up"):
        return Text("no replica is up", style="red")
    if row.alarms:
        return Text(f"index wrong: {', '.join(row.alarms)}", style="red")
    return _well(row)


def _engine_state(row: EngineRow) -> Text:
    if row.set_aside:
        return Text(f"set aside: {', '.join(row.set_aside)}", style="red")
    if row.stuck:
        return Text(f"{row.stuck:.0f} threads stuck", style="red")
    if not row.ours:
        return Text("tells nothing of kvstrata yet", style="yellow")
    return _well(row)


def _well(row: EngineRow | RouterRow) -> Text:
    return Text("restarted", style="yellow") if row.restarted else Text("well", style="green")


def _stored(row: EngineRow) -> str:
    if row.used is None or not row.bound:
        return "-"
    share = 100 * row.used / row.bound
    return f"{format_size(int(row.used))} of {format_size(int(row.bound))} ({share:.0f}%)"


def _bytes_by_tier(rates: Mapping[str, float]) -> str:
    several = len(rates) > 1
    return (
        "\n".join(
            f"{tier} {format_size(int(rate))}" if several else format_size(int(rate))
            for tier, rate in rates.items()
        )
        or "-"
    )


def _times(seconds: Sequence[float | None]) -> str:
    return "/".join(_time(one) for one in seconds)


def _time(seconds: float | None) -> str:
    if seconds is None or math.isnan(seconds):
        return "-"
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"


def _counts(*found: Mapping[str, float]) -> str:
    return "\n".join(f"{count:.0f} {name}" for one in found for name, count in one.items()) or "-"
