"""`kvstrata evict`: bring a root down to a number of bytes, as engines with such a bound would."""

import contextlib
import os
import random
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from kvstrata.cli import arguments, console
from kvstrata.cli.choosing import choose_namespaces
from kvstrata.cli.estimates import CONFIDENCE, Sum
from kvstrata.errors import ConfigError
from kvstrata.fileio.lease import lease
from kvstrata.fileio.sharing import Sharing
from kvstrata.sizes import format_size, parse_size
from kvstrata.tiers.keeper import FUTURE
from kvstrata.tiers.ring import Contents, Directories, sample, walk
from kvstrata.tiers.shares import LOW, RING, Eviction, Held, Part, Sample, evict
from kvstrata.tiers.spaces import Space, claims_of, find_spaces
from kvstrata.tiers.sweep import (
    LEASE_FILE,
    ORPHANED,
    USAGE_FILE,
    Swept,
    file_system_time,
    read_usage,
    sweep,
    write_usage,
)

NOT_DOWN = 1
LEASE_SECONDS = 60.0
"""So long another process may evict until this one gives up."""
WAIT_SECONDS = 0.1
SLICE_SECONDS = 1.0
"""The lease is given back so often: engines that have a bound write only so much without looking."""
ROUNDS = 8
"""Through all directories. One suffices, but for the sample's error and for what is written meanwhile."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    Attributes:
        root: the directory.
        spaces: namespaces that something may go of.
        bound: bytes that they may hold.
        now: seconds by the file system's clock.
        unused_for: only files that were not used for so many seconds.
    """

    root: Path
    spaces: Sequence[Space]
    bound: int
    now: float
    unused_for: float = 0.0

    @property
    def directories(self) -> Directories:
        """Where the namespaces' chunks are."""
        windowed = {one.path: one.windowed for one in self.spaces}
        return Directories([one.path for one in self.spaces], windowed, self.now + FUTURE)

    def due(self, seen: Sample) -> Eviction | None:
        """What is to go; None where there is nothing to do."""
        claims = claims_of(self.spaces, {}, self.now, 0.0)
        due = evict(seen, self.bound, 0, claims, self.now, burst=1.0, reach=1.0)
        if due is None or not self.unused_for:
            return due
        before = self.now - self.unused_for
        parts = {
            space: Part(min(part.until, before), part.nbytes) for space, part in due.parts.items()
        }
        return Eviction(min(due.until, before), due.nbytes, parts)


@dataclass(slots=True)
class Progress:
    """What was done.

    Attributes:
        before: bytes that the namespaces held, estimated.
        after: the same, when it ended.
        removed: chunks, by the name of their namespace's directory.
        nbytes: of them, likewise.
        rounds: through the directories.
    """

    before: float = 0.0
    after: float = 0.0
    removed: dict[str, int] = field(default_factory=dict)
    nbytes: float = 0.0
    rounds: int = 0

    def add(self, swept: Swept) -> None:
        """Count what one slice removed."""
        self.nbytes += swept.nbytes
        for path in swept.removed:
            name = Path(path).parents[2].name
            self.removed[name] = self.removed.get(name, 0) + 1


def evict_down(
    path: arguments.Root,
    to: Annotated[str, typer.Option(help='Bytes that may stay, such as "100GiB".')],
    namespace: arguments.Namespace = None,
    model: arguments.Model = None,
    older_than: arguments.OlderThan = None,
    dry_run: arguments.DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: arguments.Json = False,
) -> None:
    """Remove what was not used for longest until so much is left, as engines with that capacity would.

    Like them it begins above 97 % of that, and goes on to 95 %.
    With --namespace or --model only those are counted, and evicted from. Engines may run meanwhile,
    and need not. Bytes are estimated from a sample. Ends with status 0 if no more than that is left,
    1 if there is more or the answer was no, 2 if the request cannot be done.
    """
    console.require_root(path)
    bound = parse_size(int(to) if to.isdecimal() else to)
    age = None if older_than is None else console.parse_age(older_than)
    chosen = {str(one.path) for one in choose_namespaces(path, namespace, model)}
    spaces = [one for one in find_spaces(path) if one.path in chosen]
    order = Order(path, spaces, bound, time.time() if dry_run else _now(path), age or 0.0)
    chance = random.Random()
    plan = _plan(order, chance)
    if not as_json or not (yes or dry_run):
        _show(plan, order, on_stderr=as_json)
    if dry_run:
        if as_json:
            console.print_json(_planned(plan, order))
        return
    if plan.due is not None and not yes:
        console.ask(f"Evict about {format_size(round(plan.nbytes))}?", "evict")
    with console.progress("evicting") as advance:
        done = run(order, chance, advance)
    _tell(done, order, as_json)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would go.

    Attributes:
        seen: a sample of the namespaces.
        due: the decision; None where they hold no more than they may.
        going: files of the sample that it means.
    """

    seen: Sample
    due: Eviction | None
    going: Sequence[Held]

    @property
    def nbytes(self) -> float:
        """Bytes that would go, estimated."""
        return sum(one.nbytes for one in self.going) / self.seen.share


def _plan(order: Order, chance: random.Random) -> Plan:
    seen = sample(order.directories, chance)
    due = order.due(seen)
    going = [one for one in seen.files if due and one.used <= due.of(one.space).until]
    return Plan(seen, due, going)


def run(order: Order, chance: random.Random, advance: console.Advance) -> Progress:
    """Evict until the namespaces hold no more than they may, or nothing more can go.

    Raises:
        ConfigError: another process evicts, and goes on doing so.
        OSError: the root cannot be looked at, or the lease not be asked for.
    """
    done = Progress()
    for done.rounds in range(ROUNDS + 1):
        plan = _plan(order, chance)
        done.after = plan.seen.nbytes
        if not done.rounds:
            done.before = done.after
        if plan.due is None or done.rounds == ROUNDS:
            break
        places = walk(order.directories, chance.randrange(RING))
        before = done.nbytes
        _round(order, plan.due, places, done, advance)
        if done.nbytes == before:
            break
    return done


def _round(
    order: Order,
    due: Eviction,
    places: Iterator[tuple[int, Contents]],
    done: Progress,
    advance: console.Advance,
) -> None:
    """Go through all directories, and let others have the lease now and then."""
    left = due.nbytes
    while left > 0:
        swept = _slice(order, replace(due, nbytes=left), places)
        left -= swept.nbytes
        done.add(swept)
        for _ in swept.removed:
            advance(int(swept.nbytes / len(swept.removed)))
        if swept.around:
            return
        time.sleep(WAIT_SECONDS)


def _slice(order: Order, due: Eviction, places: Iterator[tuple[int, Contents]]) -> Swept:
    give_up = time.monotonic() + LEASE_SECONDS
    while True:
        with lease(f"{order.root}/{LEASE_FILE}") as got:
            if got:
                return _sweep(order, due, places)
        if time.monotonic() > give_up:
            raise ConfigError(
                f"another process has been evicting from {order.root} for a minute; try again"
            )
        time.sleep(WAIT_SECONDS)


def _sweep(order: Order, due: Eviction, places: Iterator[tuple[int, Contents]]) -> Swept:
    """One slice, with the lease."""
    end = time.monotonic() + SLICE_SECONDS
    orphaned = file_system_time(order.root) - ORPHANED
    windowed = {one.path: one.windowed for one in order.spaces}
    swept = sweep(places, due, orphaned, lambda: time.monotonic() > end, windowed)
    known = read_usage(order.root)
    if known is not None:
        # Engines that wait for their turn find out that there is room.
        used = max(known.used - swept.nbytes, 0.0)
        told = msgspec.structs.replace(known, round=known.round + 1, used=used)
        write_usage(order.root, told, _sharing(order.root))
        _hand_over(order.root, USAGE_FILE)
    return swept


def _now(root: Path) -> float:
    """The time by the file system's clock."""
    found = (root / LEASE_FILE).exists()
    with lease(f"{root}/{LEASE_FILE}"):  # makes the file, whoever has it
        if not found:
            _hand_over(root, LEASE_FILE)
        return file_system_time(root)


def _sharing(root: Path) -> Sharing:
    return Sharing.GROUP if root.stat().st_mode & stat.S_IWGRP else Sharing.USER


def _hand_over(root: Path, name: str) -> None:
    """Make a file that this command made belong to whom the root does: engines must be able to use it.

    Whoever owns the root may have put something else in its place meanwhile, which is left alone.
    """
    owner = root.stat()
    with contextlib.suppress(OSError):
        fd = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                return
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            os.fchmod(fd, _sharing(root).file_mode)
        finally:
            os.close(fd)


def _amounts(plan: Plan) -> dict[str, Sum]:
    """Of each namespace what of the sample would go."""
    found: dict[str, Sum] = {}
    for one in plan.going:
        found.setdefault(Path(one.path).parents[2].name, Sum()).add(one.nbytes)
    return found


def _show(plan: Plan, order: Order, on_stderr: bool) -> None:
    to = console.err() if on_stderr else console.out()
    held = format_size(round(plan.seen.nbytes))
    if plan.due is None:
        to.print(f"about {held} held, {format_size(order.bound)} wanted: nothing is to go")
        return
    youngest = max((one.used for one in plan.going), default=None)
    shown = console.table("namespace", "bytes", "±", numbers=["bytes", "±"])
    for name, amount in sorted(_amounts(plan).items()):
        estimate = amount.estimate(plan.seen.share)
        off = "" if estimate.exact else f"{100 * estimate.error:.2g}%"
        shown.add_row(name, format_size(round(estimate.value)), off)
    # Without the share, what goes seems to be more than what is too much.
    down = f"to be evicted, down to {LOW:.0%} of that as engines do"
    to.print(f"about {held} held, {format_size(order.bound)} wanted; {down}:")
    to.print(shown)
    if youngest is not None:
        age = console.format_age(max(time.time() - youngest, 0.0))
        to.print(f"about {format_size(round(plan.nbytes))} in all, not used for {age} or longer")


def _planned(plan: Plan, order: Order) -> dict[str, Any]:
    share = plan.seen.share
    estimates = {name: one.estimate(share) for name, one in sorted(_amounts(plan).items())}
    youngest = max((one.used for one in plan.going), default=None)
    return {
        "path": str(order.root),
        "dry_run": True,
        "wanted": order.bound,
        "held": round(plan.seen.nbytes),
        "bytes": round(plan.nbytes),
        "confidence": CONFIDENCE,
        "namespaces": {
            name: {"estimate": round(one.value), "low": round(one.low), "high": round(one.high)}
            for name, one in estimates.items()
        },
        "unused_for_s": None if youngest is None else max(time.time() - youngest, 0.0),
    }


def _tell(done: Progress, order: Order, as_json: bool) -> None:
    """Say what was done.

    Raises:
        typer.Exit: more is left than was wanted.
    """
    removed = sum(done.removed.values())
    if as_json:
        console.print_json(
            {
                "path": str(order.root),
                "dry_run": False,
                "wanted": order.bound,
                "held_before": round(done.before),
                "held": round(done.after),
                "chunks": removed,
                "bytes": round(done.nbytes),
                "namespaces": dict(sorted(done.removed.items())),
                "rounds": done.rounds,
            }
        )
    else:
        console.out().print(
            f"{removed:,} chunks evicted, {format_size(round(done.nbytes))}; "
            f"about {format_size(round(done.after))} left"
        )
    if done.after > order.bound:
        console.err().print(
            "kvstrata: more is left than was wanted: nothing older can go, or engines write as fast"
        )
        raise typer.Exit(NOT_DOWN)
