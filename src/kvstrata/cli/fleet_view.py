"""Tables of `kvstrata fleet`, from the plain data that a fleet tells of itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvstrata.cli import console
from kvstrata.sizes import format_size

STYLES = {"synced": "green", "catching up": "yellow", "stale": "red"}
TIERS = {"GPU": "device", "CPU": "memory", "STORAGE": "storage"}


class Rates:
    """Events per second of each rank, between two looks."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int]] = {}

    def of(self, told: Mapping[str, Any], now: float) -> dict[str, float]:
        """By rank; 0 at the first look."""
        found = {}
        for replica in told["replicas"]:
            for rank in replica["ranks"]:
                events = rank["counts"]["events"]
                at, before = self._before.get(rank["name"], (now, events))
                found[rank["name"]] = (events - before) / (now - at) if now > at else 0.0
                self._before[rank["name"]] = (now, events)
        return found


def fleet(told: Mapping[str, Any], rates: Mapping[str, float] | None = None) -> RenderableType:
    """Replicas, one line a rank, and below them what is wrong."""
    columns = ["replica", "trust", "epoch", "batch", "blocks by group"]
    numbers = ["batch", "events/s", "behind", "lag"]
    shown = console.table(*columns, *numbers[1:], "why", numbers=numbers)
    for replica in told["replicas"]:
        for rank in replica["ranks"]:
            rate = rates.get(rank["name"], 0.0) if rates is not None else None
            shown.add_row(
                rank["name"],
                Text(rank["trust"], style=STYLES[rank["trust"]]),
                (rank["epoch"] or "-")[:8],
                str(rank["sequence"]) if rank["sequence"] >= 0 else "-",
                blocks(rank["blocks"]),
                "-" if rate is None else f"{rate:,.0f}",
                f"{rank['behind']:,}",
                f"{rank['lag_seconds']:.1f} s" if rank["lag_seconds"] else "-",
                rank["reason"],
            )
    notes = [Text(f"{one['replica']}: {one['code']}: {one['text']}") for one in told["findings"]]
    return Group(shown, *notes)


def blocks(held: Sequence[Mapping[str, Any]]) -> str:
    """Blocks of each tier, group after group; the storage that others share is marked."""
    tiers: dict[str, list[str]] = {}
    for part in held:
        tier = TIERS.get(part["tier"], part["tier"])
        name = f"{tier} (shared)" if part["owner"] else tier
        tiers.setdefault(name, []).append(f"{part['group']}:{part['blocks']:,}")
    return "\n".join(f"{tier} {' '.join(parts)}" for tier, parts in tiers.items()) or "-"


def reuse(told: Sequence[Mapping[str, Any]]) -> Table:
    """What each replica could reuse of a prompt."""
    numbers = ["device", "+ memory", "+ storage"]
    shown = console.table(
        "replica", "trust", *numbers, "loaded for it", "cut short by", numbers=numbers
    )
    for one in told:
        if "unknown" in one:
            shown.add_row(one["replica"], one["trust"], "-", "-", "-", "-", one["unknown"])
            continue
        found = one["reuse"]
        loads = [
            f"{load['tier']} group {load['group']}: {load['tokens']:,} tokens, "
            f"{format_size(load['bytes'])}"
            for load in found["storage"]["loads"]
        ]
        shown.add_row(
            one["replica"],
            Text(one["trust"], style=STYLES[one["trust"]]),
            *(f"{found[tier]['tokens']:,}" for tier in ("device", "memory", "storage")),
            "\n".join(loads) or "-",
            "\n".join([*_cuts(found), *found["doubts"], *one["notes"]]) or "-",
        )
    return shown


def _cuts(found: Mapping[str, Any]) -> list[str]:
    said = []
    for tiers in ("device", "storage"):
        for cut in found[tiers]["cuts"]:
            groups = ", ".join(str(group) for group in cut["groups"])
            where = "device" if tiers == "device" else "tiers"
            said.append(
                f"{where}: group {groups} ({cut['kind']}) {cut['before']:,} to {cut['after']:,}"
            )
    return said
