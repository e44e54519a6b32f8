"""`kvstrata usage`: how much a root holds, by namespace, group, age and tenant."""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kvstrata.cli import arguments, console
from kvstrata.cli.estimates import CONFIDENCE, Estimate
from kvstrata.cli.holdings import ALL, BANDS, Part
from kvstrata.cli.looking import Look, look
from kvstrata.sizes import format_size
from kvstrata.tiers.catalog import NamespaceDir, iter_namespaces
from kvstrata.tiers.shares import ENOUGH
from kvstrata.tiers.spaces import find_spaces
from kvstrata.tiers.sweep import USAGE_FILE, Usage, read_usage


@dataclass(frozen=True, slots=True)
class Known:
    """What stands beside the chunks' own numbers.

    Attributes:
        namespaces: that were looked at.
        kept: what engines with a bound have written down of the root, if they have.
        kept_age: seconds since they did.
        disk_total: bytes of the file system.
        disk_available: bytes that it has left for this user.
    """

    namespaces: list[NamespaceDir]
    kept: Usage | None
    kept_age: float
    disk_total: int
    disk_available: int


def usage(
    path: arguments.Root,
    exact: Annotated[
        bool, typer.Option("--exact", help="Look at every file instead of a sample.")
    ] = False,
    sample: Annotated[
        int, typer.Option(min=100, help="Chunks to look at; four times as many halve the error.")
    ] = ENOUGH,
    tenants: Annotated[
        bool, typer.Option(help="Open each file that is looked at, to see whose it is.")
    ] = True,
    as_json: arguments.Json = False,
) -> None:
    """Show how much a directory holds: chunks and bytes by namespace, group, last use and tenant.

    Numbers are estimates from some directories, chosen by chance, with the interval that holds the
    true one in 95 cases of 100; of a small directory everything is counted. Ends with status 0, or 2
    if the directory cannot be read.
    """
    console.require_root(path)
    now = time.time()
    bases = [one.path for one in find_spaces(path)]
    with console.progress("looking") as advance:
        found = look(
            path,
            bases,
            enough=None if exact else sample,
            tenants=tenants,
            now=now,
            chance=random.Random(),
            advance=advance,
        )
    known = _known(path, {Path(one).name for one in bases}, now)
    if as_json:
        console.print_json(_document(path, found, known))
    else:
        _show(path, found, known)


def _known(path: Path, names: set[str], now: float) -> Known:
    kept, kept_age = read_usage(path), 0.0
    if kept is not None:
        try:
            kept_age = max(now - (path / USAGE_FILE).stat().st_mtime, 0.0)
        except OSError:
            kept = None
    disk = os.statvfs(path)
    return Known(
        [one for one in iter_namespaces(path) if one.path.name in names],
        kept,
        kept_age,
        disk.f_blocks * disk.f_frsize,
        disk.f_bavail * disk.f_frsize,
    )


def _number(estimate: Estimate) -> dict[str, int]:
    return {
        "estimate": round(estimate.value),
        "low": round(estimate.low),
        "high": round(estimate.high),
    }


def _amounts(found: Look, part: Part) -> dict[str, Any]:
    return {
        "chunks": _number(found.chunks.chunks(part, found.share)),
        "bytes": _number(found.chunks.nbytes(part, found.share)),
    }


def _document(path: Path, found: Look, known: Known) -> dict[str, Any]:
    spread, above = found.spread, found.above
    kept = known.kept
    return {
        "path": str(path),
        "exact": found.share >= 1.0,
        "confidence": CONFIDENCE,
        "share": found.share,
        "directories_read": found.directories,
        "chunks_seen": found.chunks.files,
        **_amounts(found, ALL),
        "namespaces": [_namespace(found, one) for one in known.namespaces],
        "last_used": {name: _amounts(found, ("age", name)) for name, _ in BANDS},
        "tenants": {
            name: _amounts(found, ("tenant", name)) for name in found.chunks.parts("tenant")
        },
        "temporary": {
            "files": _both(spread.files.estimate(found.share), above.files.total),
            "bytes": _both(spread.temporary.estimate(found.share), above.temporary.total),
            "left_over": _both(spread.left_over.estimate(found.share), above.left_over.total),
        },
        "foreign": _both(spread.foreign.estimate(found.share), above.foreign.total),
        "bound": None
        if kept is None
        else {"bytes": kept.bound or None, "used": kept.used, "age_s": known.kept_age},
        "disk": {"bytes": known.disk_total, "available": known.disk_available},
    }


def _both(spread: Estimate, counted: float) -> dict[str, int]:
    """An estimate with what was counted elsewhere."""
    return _number(Estimate(spread.value + counted, spread.low + counted, spread.high + counted))


def _namespace(found: Look, namespace: NamespaceDir) -> dict[str, Any]:
    name = namespace.path.name
    ages = found.chunks.ages(name)
    return {
        "directory": name,
        "model": namespace.model,
        "fingerprint": namespace.fingerprint,
        **_amounts(found, ("namespace", name)),
        "groups": {
            group: _amounts(found, ("group", name, group))
            for group in sorted(found.chunks.parts("group", name), key=int)
        },
        "newest_age_s": ages.newest if ages else None,
        "oldest_age_s": ages.oldest if ages else None,
    }


def _show(path: Path, found: Look, known: Known) -> None:
    out = console.out()
    if not known.namespaces:
        out.print(f"{path}: no namespaces")
    else:
        out.print(_breakdown(found, known))
    if found.share >= 1.0:
        out.print(f"counted in {found.directories:,} directories")
    else:
        error = 100 * found.chunks.nbytes(ALL, found.share).error
        out.print(
            f"estimated from {found.chunks.files:,} chunks in {found.directories:,} directories, "
            f"{100 * found.share:.2g}% of all; in 95 cases of 100 the sum is within {error:.1f}%, "
            f"and each number within what stands beside it"
        )
    _show_beside(found, known)


def _breakdown(found: Look, known: Known) -> Any:
    shown = console.table(
        "", "chunks", "bytes", "±", "last used", numbers=["chunks", "bytes", "±", "last used"]
    )

    def row(label: str, part: Part, used: str = "") -> None:
        chunks = found.chunks.chunks(part, found.share)
        nbytes = found.chunks.nbytes(part, found.share)
        off = "" if nbytes.exact else f"{100 * nbytes.error:.2g}%"
        if not nbytes.exact and not nbytes.value:
            off = f"< {format_size(round(nbytes.high))}"
        shown.add_row(label, f"{chunks.value:,.0f}", format_size(round(nbytes.value)), off, used)

    for one in known.namespaces:
        ages = found.chunks.ages(one.path.name)
        span = (
            f"{console.format_age(ages.newest)} to {console.format_age(ages.oldest)} ago"
            if ages
            else "-"
        )
        row(one.path.name, ("namespace", one.path.name), span)
        for group in sorted(found.chunks.parts("group", one.path.name), key=int):
            row(f"  group {group}", ("group", one.path.name, group))
    for name, _ in BANDS:
        row(f"last used {name} ago", ("age", name))
    for tenant in found.chunks.parts("tenant"):
        row(f"tenant {tenant}", ("tenant", tenant))
    row("all", ALL)
    return shown


def _show_beside(found: Look, known: Known) -> None:
    out = console.out()
    temporary = found.spread.files.total / found.share + found.above.files.total
    if temporary:
        nbytes = found.spread.temporary.total / found.share + found.above.temporary.total
        left = found.spread.left_over.total / found.share + found.above.left_over.total
        out.print(
            f"temporary: {temporary:,.0f} files, {format_size(round(nbytes))}; {left:,.0f} left over "
            f"(kvstrata clear --temporary removes them)"
        )
    foreign = found.spread.foreign.total / found.share + found.above.foreign.total
    if foreign:
        out.print(f"not ours: {foreign:,.0f} entries, which do not count")
    kept = known.kept
    bound = "none" if kept is None or not kept.bound else format_size(round(kept.bound))
    out.print(f"bound that engines keep: {bound}")
    if kept is not None:
        ago = console.format_age(known.kept_age)
        out.print(f"an engine's estimate {ago} ago: {format_size(round(kept.used))}")
    out.print(f"disk: {format_size(known.disk_available)} free of {format_size(known.disk_total)}")
