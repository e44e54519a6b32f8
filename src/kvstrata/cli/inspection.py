"""`kvstrata inspect`: what a root holds, from names and sizes alone."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from kvstrata.chunks.key import group_of
from kvstrata.cli import console
from kvstrata.sizes import format_size
from kvstrata.tiers.catalog import NamespaceDir, RecordFile, iter_namespaces, iter_records


@dataclass(slots=True)
class Tally:
    """Files and their bytes."""

    files: int = 0
    nbytes: int = 0

    def add(self, size: int) -> None:
        """Count a file of `size` bytes."""
        self.files += 1
        self.nbytes += size


@dataclass(slots=True)
class Survey:
    """What one namespace holds.

    Attributes:
        records: chunks.
        temporary: files that a writer has not published, or left behind.
        groups: `records`, by KV cache group.
        oldest, newest: seconds since a record was last written or used; None without records.
    """

    records: Tally = field(default_factory=Tally)
    temporary: Tally = field(default_factory=Tally)
    groups: dict[int, Tally] = field(default_factory=dict)
    oldest: float | None = None
    newest: float | None = None

    def add(self, file: RecordFile, now: float) -> None:
        """Count one file. `now` is seconds since 1970, as the file's time is."""
        if file.temporary:
            self.temporary.add(file.size)
            return
        self.records.add(file.size)
        self.groups.setdefault(group_of(file.key), Tally()).add(file.size)
        age = max(0.0, now - file.mtime)  # a file server's clock may be ahead of ours
        self.oldest = age if self.oldest is None else max(self.oldest, age)
        self.newest = age if self.newest is None else min(self.newest, age)


def survey(files: Iterable[RecordFile], now: float, advance: console.Advance) -> Survey:
    """Count `files`. `now`: seconds since 1970."""
    result = Survey()
    for file in files:
        result.add(file, now)
        advance(file.size)
    return result


def inspect(
    path: Annotated[Path, typer.Argument(help="The directory given to engines as 'path'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the namespaces of a directory: models, records, bytes, groups and ages."""
    console.require_root(path)
    now = time.time()
    with console.progress("counting") as advance:
        found = [
            (namespace, survey(iter_records(namespace.path), now, advance))
            for namespace in iter_namespaces(path)
        ]
    if as_json:
        console.print_json(_document(path, found))
    else:
        _show(path, found)


def _tally(tally: Tally) -> dict[str, int]:
    return {"files": tally.files, "bytes": tally.nbytes}


def _document(path: Path, found: list[tuple[NamespaceDir, Survey]]) -> dict[str, Any]:
    return {
        "path": str(path),
        "records": sum(held.records.files for _, held in found),
        "bytes": sum(held.records.nbytes for _, held in found),
        "namespaces": [
            {
                "directory": namespace.path.name,
                "model": namespace.model,
                "fingerprint": namespace.fingerprint,
                "covers": namespace.covers,
                "records": held.records.files,
                "bytes": held.records.nbytes,
                "groups": {str(group): _tally(held.groups[group]) for group in sorted(held.groups)},
                "oldest_age_s": held.oldest,
                "newest_age_s": held.newest,
                "temporary": _tally(held.temporary),
            }
            for namespace, held in found
        ],
    }


def _show(path: Path, found: list[tuple[NamespaceDir, Survey]]) -> None:
    out = console.out()
    if not found:
        out.print(f"{path}: no namespaces")
        return
    for namespace, held in found:
        out.print(namespace.path.name)
        out.print(f"  model        {namespace.model}")
        out.print(f"  fingerprint  {namespace.fingerprint}")
        out.print(f"  covers       {_covers(namespace)}")
        out.print(f"  records      {held.records.files:,}, {format_size(held.records.nbytes)}")
        for group in sorted(held.groups):
            part = held.groups[group]
            out.print(f"    group {group:<5} {part.files:,}, {format_size(part.nbytes)}")
        if held.records.files:
            out.print(
                f"  last used    {console.format_age(held.newest)} to "
                f"{console.format_age(held.oldest)} ago"
            )
        if held.temporary.files:
            left = held.temporary
            out.print(f"  temporary    {left.files:,}, {format_size(left.nbytes)}")
        out.print()
    files = sum(held.records.files for _, held in found)
    nbytes = sum(held.records.nbytes for _, held in found)
    out.print(f"{len(found)} namespaces, {files:,} records, {format_size(nbytes)}")


def _covers(namespace: NamespaceDir) -> str:
    if namespace.covers is None:
        return "unknown: namespace.json is missing or damaged"
    return ", ".join(sorted(namespace.covers))
