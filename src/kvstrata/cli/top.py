"""`kvstrata top`: what engines and routers do now, from their metrics."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.live import Live

from kvstrata.cli import console, scrape, top_view
from kvstrata.cli.top_view import Watched
from kvstrata.cli.watched import EngineRow, RouterRow, engine_row, router_row
from kvstrata.cli.watching import Change, Kind, Reading, read
from kvstrata.errors import ConfigError

SILENT = 1
LEAST_EVERY, MOST_EVERY = 0.2, 3600.0
WIDE = 160
"""Columns of what is printed for no terminal."""
PATIENCE = 15.0
"""Seconds that the first looks of `--once` and `--json` may take, beside the pause between them."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one process told, and when, on the monotonic clock."""

    at: float
    reading: Reading


class Watcher:
    """Looks at one process again and again, in a thread of its own, however slowly it answers.

    Args:
        url: of an engine's API or of a router.
        every: seconds between the beginnings of two looks, at least.
        fetch: the text of its metrics; raises OSError.
    """

    def __init__(self, url: str, every: float, fetch: Callable[[str], str] | None = None) -> None:
        self.name = urlsplit(url).netloc or url
        self._url = url
        self._every = every
        self._fetch = fetch or scrape.fetch_metrics
        self._guard = threading.Lock()
        self._looks: tuple[Look, ...] = ()
        self._began = time.monotonic()
        self._tried = False
        self._error = ""

    def start(self) -> None:
        """Look from now on, until the process ends."""
        thread = threading.Thread(target=self._run, name=f"watch {self.name}", daemon=True)
        thread.start()

    def look(self) -> None:
        """Look once."""
        error = ""
        looks: tuple[Look, ...] = ()
        self._began = time.monotonic()
        try:
            looks = (Look(time.monotonic(), read(self._fetch(self._url))),)
        except (OSError, ValueError) as failure:
            # urllib wraps what the system says: its own text says no more, in brackets.
            reason = getattr(failure, "reason", None)
            error = str(reason if isinstance(reason, OSError) else failure)
            error = error or type(failure).__name__
        with self._guard:
            self._tried, self._error = True, error
            kept = [
                one for one in self._looks if looks and one.reading.kind is looks[0].reading.kind
            ]
            if looks:
                self._looks = (*kept[-1:], *looks)

    def change(self, now: float) -> Change | None:
        """What it did between its last two looks; None if there were none, or they are long over."""
        with self._guard:
            looks = self._looks
        if len(looks) < 2 or now - looks[-1].at > self._stale:
            return None
        return Change(looks[0].reading, looks[1].reading, max(looks[1].at - looks[0].at, 1e-9))

    def state(self, now: float) -> Watched:
        """As it is shown."""
        change = self.change(now)
        with self._guard:
            last = self._looks[-1].at if self._looks else None
            error = self._error
            if (
                not error
                and now - self._began > self._stale
                and (last is None or last < self._began)
            ):
                error = "no answer yet"
        row = None if change is None else _row(change)
        return Watched(self.name, row, error, None if last is None else now - last)

    @property
    def settled(self) -> bool:
        """Whether two looks brought something, or the last one failed."""
        with self._guard:
            return len(self._looks) == 2 or (self._tried and bool(self._error))

    @property
    def _stale(self) -> float:
        return max(3 * self._every, 5.0)

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            self.look()
            time.sleep(max(begun + self._every - time.monotonic(), 0.05))


def _row(change: Change) -> EngineRow | RouterRow:
    return router_row(change) if change.after.kind is Kind.ROUTER else engine_row([change])


def states(watchers: Sequence[Watcher]) -> tuple[list[Watched], EngineRow | None]:
    """All processes now, and all engines as one."""
    now = time.monotonic()
    changes = [change for one in watchers if (change := one.change(now)) is not None]
    engines = [change for change in changes if change.after.kind is Kind.ENGINE]
    return [one.state(now) for one in watchers], engine_row(engines) if engines else None


def top(
    urls: Annotated[
        list[str],
        typer.Argument(
            help="Engines and routers, such as http://127.0.0.1:8000.",
            metavar="URL...",
            show_default=False,
        ),
    ],
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, print what happened between, and leave.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, once.")] = False,
) -> None:
    """Show what engines and routers do now: hits by tier, bytes, queues, drops, usage, faults.

    Figures are of the time between the last two looks. Ends with status 0, or with --once and --json 1 if a
    process could not be looked at.
    """
    if not LEAST_EVERY <= every <= MOST_EVERY:
        raise ConfigError(f"--every takes {LEAST_EVERY:g} to {MOST_EVERY:g} seconds; got {every:g}")
    for url in urls:
        scrape.require_address(url)
    watchers = [Watcher(url, every) for url in dict.fromkeys(urls)]
    for one in watchers:
        one.start()
    if not (once or as_json):
        _show(watchers, every)
        return
    deadline = time.monotonic() + every + PATIENCE
    while time.monotonic() < deadline and not all(one.settled for one in watchers):
        time.sleep(0.05)
    watched, together = states(watchers)
    if as_json:
        console.print_json(top_view.as_dict(watched, together))
    else:
        out = console.out()
        if not out.is_terminal:
            out.width = WIDE
        out.print(top_view.screen(watched, together))
    if any(one.row is None for one in watched):
        raise typer.Exit(SILENT)


def _show(watchers: Sequence[Watcher], every: float) -> None:
    """A live view until Ctrl-C."""
    out = console.out()
    try:
        with Live(console=out, screen=out.is_terminal, auto_refresh=False) as live:
            while True:
                live.update(top_view.screen(*states(watchers)), refresh=True)
                time.sleep(min(every, 1.0))
    except KeyboardInterrupt:
        pass  # the way to end it
