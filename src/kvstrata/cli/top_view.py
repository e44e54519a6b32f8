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

NUMBERS = ("req/s", "run/wait", "tokens/s", "ttft p50/p90", "load p50/p90", "read/s", "write/s")
ALL = "all"


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
    """Everything: engines, what is wrong with them, routers."""
    engines = [one for one in watched if not isinstance(one.row, RouterRow)]
    routers = [one for one in watched if isinstance(one.row, RouterRow)]
    parts: list[RenderableType] = []
    if engines:
        whole = [Watched(ALL, together)] if together is not None and len(engines) > 1 else []
        parts += [_engines([*engines, *whole]), _troubles(engines)]
    if routers:
        parts.append(_routers(routers))
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


def _engines(watched: Sequence[Watched]) -> Table:
    columns = ("engine", *NUMBERS[:3], "from", *NUMBERS[3:], "queues", "stored", "state")
    shown = console.table(*columns, numbers=NUMBERS)
    for one in watched:
        row = one.row
        if not isinstance(row, EngineRow):
            shown.add_row(one.name, *["-"] * (len(columns) - 2), _state(one))
            continue
        shown.add_row(
            one.name,
            f"{row.requests_per_s:.1f}",
            f"{row.running:.0f}/{row.waiting:.0f}",
            f"{row.prompt_tokens_per_s:,.0f}",
            shares(row.shares, (*TIERS, COMPUTED)),
            _times(row.ttft),
            _times(row.load_wait),
            _bytes_by_tier(row.read_bytes_per_s),
            _bytes_by_tier(row.written_bytes_per_s),
            " ".join(f"{name} {depth:.0f}" for name, depth in row.queues.items()) or "-",
            _stored(row),
            _state(one),
        )
    return shown


def _troubles(engines: Sequence[Watched]) -> RenderableType:
    """One line for each engine and each kind of trouble that it had: new ones, and all since it began."""
    shown = console.table("engine", "trouble", "new", "since start", numbers=("new", "since start"))
    for one in engines:
        if not isinstance(one.row, EngineRow):
            continue
        row = one.row
        counted = {
            **{f"not stored: {reason}": amount for reason, amount in row.dropped.items()},
            **{f"bad record: {reason}": amount for reason, amount in row.bad.items()},
            "read not in time": row.deadlines,
            "preempted": row.preempted,
        }
        for what, amount in counted.items():
            if amount.all:
                style = "yellow" if amount.new else ""
                shown.add_row(one.name, what, *_amount(amount), style=style)
    return shown if shown.row_count else Text("nothing dropped, nothing bad", style="green")


def _routers(watched: Sequence[Watched]) -> Table:
    numbers = ("answers/s", "in flight/wait", "ttft p50/p90")
    columns = ("router", *numbers[:2], "from", numbers[2], "replicas", "events", "refused", "state")
    shown = console.table(*columns, numbers=numbers)
    for one in watched:
        row = one.row
        assert isinstance(row, RouterRow)
        statuses = (f"{status} {rate:.1f}" for status, rate in sorted(row.answers_per_s.items()))
        refused = (f"{code} +{n.new:.0f}/{n.all:.0f}" for code, n in row.refused.items())
        retried = f"retried +{row.retried.new:.0f}/{row.retried.all:.0f}" if row.retried.all else ""
        shown.add_row(
            one.name,
            "\n".join(statuses) or "-",
            f"{row.in_flight:.0f}/{row.waiting:.0f}",
            shares(row.shares, ("device", "memory", "storage", COMPUTED)),
            _times(row.ttft),
            _counts(row.replicas),
            _counts(row.trust),
            "\n".join(filter(None, (*refused, retried))) or "-",
            _state(one),
        )
    return shown


def shares(found: Mapping[str, float], names: Sequence[str]) -> str:
    """Shares in percent, in the order of `names`; "-" without any."""
    known = [*(name for name in names if name in found), *(set(found) - set(names))]
    return " ".join(f"{name} {100 * found[name]:.0f}%" for name in known) or "-"


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


def _amount(amount: Amount) -> tuple[str, str]:
    return f"+{amount.new:,.0f}", f"{amount.all:,.0f}"


def _counts(found: Mapping[str, float]) -> str:
    return " ".join(f"{count:.0f} {name}" for name, count in found.items()) or "-"
