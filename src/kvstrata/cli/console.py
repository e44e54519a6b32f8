"""How the commands speak: tables and JSON on stdout, progress and errors on stderr."""

import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import rich.box
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvstrata import sizes
from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.errors import ConfigError
from kvstrata.sizes import format_size
from kvstrata.sizes import parse_age as parse_age


def out() -> Console:
    """A console on stdout; made anew each time, since tests and shells replace the stream."""
    return _console(sys.stdout)


def err() -> Console:
    """A console on stderr."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    if isinstance(stream, io.TextIOWrapper):
        # Names of files need not be text.
        stream.reconfigure(errors="backslashreplace")
    return Console(file=stream, soft_wrap=True, highlight=False, markup=False)


def can_ask() -> bool:
    """Whether there is a person to answer."""
    return sys.stdin.isatty()


def ask(question: str, doing: str) -> None:
    """Go on only after a yes; `doing` is what `--yes` does without asking, such as "delete".

    Raises:
        ConfigError: there is nobody to ask.
        typer.Abort: the answer was no.
    """
    if not can_ask():
        raise ConfigError(f"there is no terminal to ask on; give --yes to {doing} without asking")
    typer.confirm(question, abort=True, err=True)


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


def format_age(seconds: float | None) -> str:
    """An age for people; "-" for None."""
    return "-" if seconds is None else sizes.format_age(seconds)


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
