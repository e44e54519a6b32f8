"""`kvstrata verify`: read every record of a root and check every checksum."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvstrata.cli import console, pool
from kvstrata.cli.place import is_ours
from kvstrata.cli.seals import given_keys
from kvstrata.errors import CONTENT_REASONS, BadReason, RecordError
from kvstrata.sizes import format_size
from kvstrata.tiers.catalog import RecordFile, check_record, iter_namespaces, iter_records

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import Keyring

BAD_FOUND = 1


@dataclass(frozen=True, slots=True)
class Good:
    """Every checksum of the record matches."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The file went away before it was read; an engine beside us may evict or replace it."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """The record is sealed with a key that was not given: nothing is known about it."""


@dataclass(frozen=True, slots=True)
class BadFile:
    """A record that no engine can use.

    Attributes:
        path: the file.
        reason: why.
        detail: one line for people.
        removed: whether it was deleted.
    """

    path: Path
    reason: BadReason
    detail: str
    removed: bool


Verdict = Good | Gone | Sealed | BadFile


def examine(
    namespace: Path, file: RecordFile, remove: bool, keyring: "Keyring | None" = None
) -> Verdict:
    """Read and check one record.

    Args:
        namespace: the directory of its namespace.
        file: a published record.
        remove: delete it where its content is what is wrong. A record of another version, of
            another namespace, or one that could not be read, stays: someone else may read it.
            So does a file that is not where a record of its name belongs.
        keyring: for sealed records.
    """
    try:
        before = file.path.lstat()
        check_record(file.path, deep=True, keyring=keyring)
    except FileNotFoundError:
        return Gone()
    except RecordError as error:
        if error.reason is BadReason.SEALED:
            return Sealed()
        condemned = remove and error.reason in CONTENT_REASONS and is_ours(namespace, file)
        removed = condemned and _remove(file.path, before)
        return BadFile(file.path, error.reason, str(error), removed)
    except PermissionError as error:
        return BadFile(file.path, BadReason.PERMISSION, error.strerror or str(error), False)
    except OSError as error:
        return BadFile(file.path, BadReason.IO, error.strerror or str(error), False)
    return Good()


def _remove(path: Path, before: os.stat_result) -> bool:
    """Delete `path`, if it is still the file that was read: an engine may have replaced it."""
    try:
        now = path.lstat()
        if (now.st_ino, now.st_mtime_ns, now.st_size) != (
            before.st_ino,
            before.st_mtime_ns,
            before.st_size,
        ):
            return False
        path.unlink()
    except OSError:
        return False  # the report says that it was not removed
    return True


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        listed: at most this many bad files are kept in `bad_files`.
        records: records read, the bad ones included.
        nbytes: their bytes.
        gone: records that went away before they were read.
        temporary: files that are not published, which are not read.
        sealed: records that could not be checked for want of their key.
        reasons: bad records by reason.
        removed: bad records deleted.
        bad_files: the first of them.
    """

    listed: int
    records: int = 0
    nbytes: int = 0
    gone: int = 0
    temporary: int = 0
    sealed: int = 0
    reasons: Counter[BadReason] = field(default_factory=Counter)
    removed: int = 0
    bad_files: list[BadFile] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """How many records are bad."""
        return self.reasons.total()

    def add(self, file: RecordFile, verdict: Verdict) -> None:
        """Count the verdict on one record."""
        if isinstance(verdict, Gone):
            self.gone += 1
            return
        self.records += 1
        self.nbytes += file.size
        self.sealed += isinstance(verdict, Sealed)
        if isinstance(verdict, BadFile):
            self.reasons[verdict.reason] += 1
            self.removed += verdict.removed
            if len(self.bad_files) < self.listed:
                self.bad_files.append(verdict)


def verify(
    path: Annotated[Path, typer.Argument(help="The directory given to engines as 'path'.")],
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete records whose content is damaged.")
    ] = False,
    listed: Annotated[
        int, typer.Option("--list", min=0, help="List at most this many bad records.")
    ] = 20,
    threads: Annotated[
        int, typer.Option(min=0, max=256, help="Threads that read; 0 follows the processors.")
    ] = 0,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of keys for sealed records; else the variable KVSTRATA_KEYS."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read every record and check every checksum, or tag where a record is sealed.

    A sealed record whose key is not given is counted, and not checked.

    Ends with status 0 if all are good, 1 if a bad one was found (removed or not), 2 if the
    directory cannot be read.
    """
    console.require_root(path)
    report = Report(listed)
    keyring = given_keys(keys)
    with console.progress("checking") as advance:
        work = pool.each(
            _published(path, report),
            lambda found: examine(*found, remove, keyring),
            threads or pool.default_threads(),
        )
        for (_, file), verdict in work:
            report.add(file, verdict)
            advance(file.size)
    if as_json:
        console.print_json(_document(path, report))
    else:
        _show(path, report)
    if report.bad:
        raise typer.Exit(BAD_FOUND)


def _published(root: Path, report: Report) -> Iterator[tuple[Path, RecordFile]]:
    """Every published record below `root` with its namespace; counts temporary files on the way."""
    for namespace in iter_namespaces(root):
        for file in iter_records(namespace.path):
            if file.temporary:
                report.temporary += 1
            else:
                yield namespace.path, file


def _document(path: Path, report: Report) -> dict[str, Any]:
    return {
        "path": str(path),
        "clean": report.bad == 0,
        "records": report.records,
        "bytes": report.nbytes,
        "bad": report.bad,
        "removed": report.removed,
        "reasons": {str(reason): count for reason, count in sorted(report.reasons.items())},
        "gone": report.gone,
        "temporary": report.temporary,
        "sealed_unchecked": report.sealed,
        "bad_files": [
            {
                "path": str(bad.path),
                "reason": str(bad.reason),
                "detail": bad.detail,
                "removed": bad.removed,
            }
            for bad in report.bad_files
        ],
    }


def _show(path: Path, report: Report) -> None:
    out = console.out()
    out.print(f"{path}: read {report.records:,} records, {format_size(report.nbytes)}")
    if report.temporary:
        out.print(f"{report.temporary:,} unpublished temporary files were not read")
    if report.gone:
        out.print(f"{report.gone:,} records went away while this ran")
    if report.sealed:
        out.print(
            f"{report.sealed:,} records are sealed with keys that were not given, and were not checked "
            f"(--keys FILE)"
        )
    if not report.bad:
        out.print("all others good" if report.sealed else "all good")
        return
    out.print(f"{report.bad:,} bad, {report.removed:,} of them removed")
    reasons = console.table("reason", "records", numbers=["records"])
    for reason, count in report.reasons.most_common():
        reasons.add_row(str(reason), f"{count:,}")
    out.print(reasons)
    for line in _lines(report.bad_files, path):
        out.print(line)
    if report.bad > len(report.bad_files):
        out.print(f"... and {report.bad - len(report.bad_files):,} more (--list N shows more)")


def _lines(bad_files: Iterable[BadFile], root: Path) -> Iterator[str]:
    for bad in bad_files:
        removed = " (removed)" if bad.removed else ""
        yield f"{bad.path.relative_to(root)}: {bad.detail}{removed}"
