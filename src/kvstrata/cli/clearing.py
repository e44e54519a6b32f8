"""`kvstrata clear`: delete records and left-over temporary files, and nothing else."""

import contextlib
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.cli import console, pool
from kvstrata.cli.place import is_ours
from kvstrata.errors import ConfigError
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.sizes import format_size
from kvstrata.tiers.catalog import NamespaceDir, RecordFile, iter_namespaces, iter_records

SOME_LEFT = 1
FAILURES_SHOWN = 20
LEFT_OVER_AGE = 3600.0
"""Seconds without a change after which a temporary file counts as left behind by a dead writer."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a namespace go.

    Attributes:
        before: only files not written or used since then, in seconds since 1970; None for all.
        temporary_only: only temporary files.
    """

    before: float | None
    temporary_only: bool

    @property
    def everything(self) -> bool:
        """Whether nothing of ours stays, so that the namespace itself goes too."""
        return self.before is None and not self.temporary_only

    def covers(self, file: RecordFile) -> bool:
        """Whether `file` goes."""
        if self.temporary_only and not file.temporary:
            return False
        return self.before is None or file.mtime <= self.before


def select(older_than: float | None, temporary: bool, now: float) -> Selection:
    """The selection that the options ask for.

    Args:
        older_than: seconds, or None.
        temporary: only temporary files. A writer may be at work on a young one, so without
            `older_than` those younger than `LEFT_OVER_AGE` stay.
        now: seconds since 1970.
    """
    if temporary and older_than is None:
        older_than = LEFT_OVER_AGE
    return Selection(None if older_than is None else now - older_than, temporary)


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
class Work:
    """One namespace and what goes, or went, of it."""

    namespace: NamespaceDir
    records: Tally = field(default_factory=Tally)
    temporary: Tally = field(default_factory=Tally)
    directory_removed: bool = False

    def add(self, file: RecordFile) -> None:
        """Count one file."""
        (self.temporary if file.temporary else self.records).add(file.size)


@dataclass(slots=True)
class Outcome:
    """What was deleted and what could not be.

    Attributes:
        done: what went of each namespace.
        beside: temporary files that went beside the namespaces.
        failed: files that could not be deleted.
        failures: why, for the first of them; a root that is not ours to change may hold millions.
    """

    done: list[Work] = field(default_factory=list)
    beside: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def deleted(self) -> int:
        """Files that are gone."""
        return sum(_size(work) for work in self.done) + self.beside

    def fail(self, error: OSError) -> None:
        """Count a file that could not be deleted."""
        self.failed += 1
        if len(self.failures) < FAILURES_SHOWN:
            self.failures.append(str(error))


def clear(
    path: Annotated[Path, typer.Argument(help="The directory given to engines as 'path'.")],
    namespace: Annotated[
        str | None,
        typer.Option(help="Only namespaces whose directory name or fingerprint starts with this."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="Only files not written or used for this long: 7d, 12h, 30m, 90s."),
    ] = None,
    temporary: Annotated[
        bool,
        typer.Option(
            "--temporary", help="Only temporary files that dead writers left (1 hour old or more)."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Delete records, all or by namespace or age. Shows what will go and asks first.

    Files that kvstrata did not write are never touched. Without a terminal and without --yes it
    only shows. Ends with status 0 if all that was chosen is gone, 1 if something could not be
    deleted or the answer was no, 2 if the request cannot be done.
    """
    console.require_root(path)
    age = None if older_than is None else console.parse_age(older_than)
    selection = select(age, temporary, time.time())
    with console.progress("looking") as advance:
        plan = [_plan(found, selection, advance) for found in _chosen(path, namespace)]
    beside = _beside(path, selection) if namespace is None else []
    files = sum(_size(work) for work in plan) + len(beside)
    if not as_json or not yes:
        _show(plan, beside, selection, on_stderr=as_json)
    if files and not yes:
        _ask(files)
    outcome = _delete(plan, selection)
    _delete_beside(beside, outcome)
    if as_json:
        console.print_json(_document(path, outcome))
    else:
        console.out().print(f"{outcome.deleted:,} files deleted")
    for failure in outcome.failures:
        console.err().print(f"kvstrata: {failure}")
    if outcome.failed > len(outcome.failures):
        console.err().print(f"kvstrata: {outcome.failed:,} files could not be deleted")
    if outcome.failed:
        raise typer.Exit(SOME_LEFT)


def _chosen(root: Path, prefix: str | None) -> list[NamespaceDir]:
    found = list(iter_namespaces(root))
    if prefix is None:
        return found
    chosen = [
        one
        for one in found
        if prefix and (one.path.name.startswith(prefix) or one.fingerprint.startswith(prefix))
    ]
    if not chosen:
        known = ", ".join(one.path.name for one in found) or "none"
        raise ConfigError(f"no namespace of {root} starts with {prefix!r}; there are: {known}")
    return chosen


def _plan(namespace: NamespaceDir, selection: Selection, advance: console.Advance) -> Work:
    work = Work(namespace)
    for file in _chosen_files(namespace, selection, advance):
        work.add(file)
    return work


def _size(work: Work) -> int:
    return work.records.files + work.temporary.files


def _show(
    plan: list[Work], beside: list[RecordFile], selection: Selection, on_stderr: bool
) -> None:
    shown = console.table(
        "namespace",
        "records",
        "bytes",
        "temporary",
        numbers=["records", "bytes", "temporary"],
    )
    for work in plan:
        shown.add_row(
            work.namespace.path.name,
            f"{work.records.files:,}",
            format_size(work.records.nbytes + work.temporary.nbytes),
            f"{work.temporary.files:,}",
        )
    if beside:
        nbytes = sum(file.size for file in beside)
        shown.add_row("beside them", "0", format_size(nbytes), f"{len(beside):,}")
    to = console.err() if on_stderr else console.out()
    to.print("to be deleted" + (", with the namespaces themselves" if selection.everything else ""))
    to.print(shown)


def _ask(files: int) -> None:
    """Go on only after a yes.

    Raises:
        ConfigError: there is nobody to ask.
        typer.Abort: the answer was no.
    """
    if not console.can_ask():
        raise ConfigError("there is no terminal to ask on; give --yes to delete without asking")
    typer.confirm(f"Delete these {files:,} files?", abort=True, err=True)


def _delete(plan: list[Work], selection: Selection) -> Outcome:
    """Delete what the plan says, and what has come to match it since."""
    outcome = Outcome()
    with console.progress("deleting, looked at") as advance:
        for planned in plan:
            work = Work(planned.namespace)
            directories: set[Path] = set()
            chosen = _chosen_files(planned.namespace, selection, advance)
            for file, failure in pool.each(chosen, _unlink, pool.default_threads()):
                if failure is None:
                    work.add(file)
                    directories.add(file.path.parent)
                else:
                    outcome.fail(failure)
            _prune(directories, planned.namespace.path)
            known = planned.namespace.covers is not None or work.records.files
            if selection.everything and known:
                work.directory_removed = _remove_namespace(planned.namespace.path)
            outcome.done.append(work)
    return outcome


def _chosen_files(
    namespace: NamespaceDir, selection: Selection, advance: console.Advance
) -> Iterator[RecordFile]:
    for file in iter_records(namespace.path):
        advance(file.size)
        if selection.covers(file) and is_ours(namespace.path, file):
            yield file


def _beside(root: Path, selection: Selection) -> list[RecordFile]:
    """Temporary files in the root itself, left by who died while giving the place its name."""
    found = []
    for path in root.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):  # its writer lives, and is done
            status = path.lstat()
            file = RecordFile(path, b"", status.st_size, status.st_mtime, temporary=True)
            if stat.S_ISREG(status.st_mode) and selection.covers(file) and is_ours(root, file):
                found.append(file)
    return found


def _delete_beside(files: list[RecordFile], outcome: Outcome) -> None:
    for file in files:
        failure = _unlink(file)
        if failure is None:
            outcome.beside += 1
        else:
            outcome.fail(failure)


def _unlink(file: RecordFile) -> OSError | None:
    try:
        file.path.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def _prune(directories: set[Path], namespace: Path) -> None:
    """Remove those of the two levels of hash directories that are empty now."""
    for directory in directories:
        for level in (directory, directory.parent):
            if level == namespace or namespace not in level.parents or not _rmdir(level):
                break


def _rmdir(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:
        return False  # not empty, or gone already: either way it is not ours to remove
    return True


def _remove_namespace(namespace: Path) -> bool:
    """Remove the namespace's directory, unless something that is not ours is in it."""
    for level in (
        *namespace.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]"),
        *namespace.glob("[0-9a-f]" * 2),
    ):
        _rmdir(level)
    try:
        left = {entry.name for entry in namespace.iterdir()}
        if left - {NAMESPACE_FILE}:
            return False
        (namespace / NAMESPACE_FILE).unlink(missing_ok=True)
    except OSError:
        return False  # the directory went away, or is not ours to change
    return _rmdir(namespace)


def _document(path: Path, outcome: Outcome) -> dict[str, Any]:
    return {
        "path": str(path),
        "deleted": outcome.deleted,
        "bytes": sum(work.records.nbytes + work.temporary.nbytes for work in outcome.done),
        "namespaces": [
            {
                "directory": work.namespace.path.name,
                "records": {"files": work.records.files, "bytes": work.records.nbytes},
                "temporary": {"files": work.temporary.files, "bytes": work.temporary.nbytes},
                "directory_removed": work.directory_removed,
            }
            for work in outcome.done
        ],
        "failed": outcome.failed,
        "failures": outcome.failures,
    }
