"""How the commands speak: tables and JSON on stdout, progress and errors on stderr."""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import rich.box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.errors import ConfigError
from kvstrata.sizes import format_size

_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def out() -> Console:
    """A console on stdout; made anew each time, since tests and shells replace the stream."""
    return Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False)


def err() -> Console:
    """A console on stderr."""
    return Console(file=sys.stderr, soft_wrap=True, highlight=False, markup=False)


def can_ask() -> bool:
    """Whether there is a person to answer."""
    return sys.stdin.isatty()


def print_json(document: Any) -> None:
    """One JSON document on stdout, indented."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table; the columns named in `numbers` are right-aligned."""
    right = set(numbers)
    made = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # Names and reasons are what a reader copies from here: they fold, they are never cut off.
        justify: Any = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column in right)
    return made


def parse_age(text: str) -> float:
    """Seconds that `text` stands for: a number and one of s, m, h, d, such as "7d" or "12h".

    Raises:
        ConfigError: anything else.
    """
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError(
            f'an age is a number and a unit, such as "7d", "12h", "30m" or "90s"; got {text!r}'
        )
    return float(match[1]) * _SECONDS[match[2]]


def format_age(seconds: float | None) -> str:
    """An age for people: "3 d", "12 h", "45 m", "9 s"; "-" for None."""
    if seconds is None:
        return "-"
    for unit in "dhm":
        if seconds >= _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.0f} s"


def require_root(path: Path) -> Path:
    """`path`, if it is a directory that can hold namespaces.

    Raises:
        ConfigError: absent, not a directory, or itself a namespace.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such directory; give the 'path' of the engine's options")
    if not path.is_dir():
        raise ConfigError(f"{path} is not a directory; give the 'path' of the engine's options")
    if (path / NAMESPACE_FILE).exists():
        raise ConfigError(f"{path} is one namespace; give the directory above it: {path.parent}")
    return path


class Advance(Protocol):
    """Called for each file that is done."""

    def __call__(self, nbytes: int) -> None:
        """`nbytes` is the size of the file."""
        ...


@contextmanager
def progress(doing: str) -> Iterator[Advance]:
    """Show files and bytes done while the block runs, if stderr is a terminal.

    Nothing is shown otherwise, so that logs hold only results. The total is unknown: counting the
    files of a large root first would take as long as the work.
    """
    console = err()
    if not console.is_terminal:
        yield _ignore
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(doing)
        files = size = 0

        def advance(nbytes: int) -> None:
            nonlocal files, size
            files += 1
            size += nbytes
            if files % 64 == 0:
                shown.update(task, description=f"{doing}: {files:,} files, {format_size(size)}")

        yield advance


def _ignore(nbytes: int) -> None:
    """Progress that nobody sees."""
