"""`kvstrata clear`: delete records and left-over temporary files, and nothing else."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from kvstrata.cli import arguments, console, pool
from kvstrata.cli.choosing import (
    Prefix,
    Selection,
    choose_beside,
    choose_files,
    choose_namespaces,
    hashing_of,
    of_prefix,
    of_tenant,
    select,
)
from kvstrata.cli.prompt_tokens import read_prompt
from kvstrata.errors import ConfigError
from kvstrata.sizes import format_size
from kvstrata.tiers.catalog import NamespaceDir, RecordFile
from kvstrata.tiers.spaces import remove_shell

SOME_LEFT = 1
FAILURES_SHOWN = 20


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


Prompt = Annotated[
    Path | None,
    typer.Option(
        help="Only the chunks of this prompt, and so of all that begin with it: a JSON array of "
        "token ids, or text with --tokenizer; - reads it in."
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option(
        help="Only chunks of this tenant: its name (32 hexadecimal digits), its files' mark as "
        "kvstrata usage shows it (16), or none for those of nobody in particular."
    ),
]
Tokenizer = Annotated[Path | None, typer.Option(help="tokenizer.json, or the model's directory.")]
Salt = Annotated[str | None, typer.Option(help="The prompt's cache salt.")]
Temporary = Annotated[
    bool,
    typer.Option(
        "--temporary", help="Only temporary files that dead writers left (1 hour old or more)."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def clear(
    path: arguments.Root,
    namespace: arguments.Namespace = None,
    model: arguments.Model = None,
    older_than: arguments.OlderThan = None,
    tenant: Tenant = None,
    prompt_file: Prompt = None,
    tokenizer: Tokenizer = None,
    salt: Salt = None,
    temporary: Temporary = False,
    dry_run: arguments.DryRun = False,
    yes: Yes = False,
    as_json: arguments.Json = False,
) -> None:
    """Delete records: all, or by namespace, model, age, tenant or prompt. Shows what will go and asks first.

    Files that kvstrata did not write are never touched; engines go on, and miss what is gone. Without a
    terminal and without --yes it only shows. Ends with status 0 if all that was chosen is gone, 1 if
    something could not be deleted or the answer was no, 2 if the request cannot be done.
    """
    console.require_root(path)
    age = None if older_than is None else console.parse_age(older_than)
    selection = select(age, temporary, time.time())
    if tenant is not None:
        selection = of_tenant(selection, tenant)
    if prompt_file is not None:
        selection = of_prefix(selection, Prefix(read_prompt(prompt_file, tokenizer), salt))
    elif tokenizer is not None or salt is not None:
        raise ConfigError("--tokenizer and --salt go with --prompt-file")
    namespaces = choose_namespaces(path, namespace, model)
    everywhere = namespace is None and model is None
    notes: list[str] = []
    if selection.prefix is not None:
        namespaces, notes = _with_prompts(namespaces, everywhere)
    with console.progress("looking") as advance:
        plan = [_plan(found, selection, advance) for found in namespaces]
    beside = choose_beside(path, selection) if everywhere else []
    files = sum(_size(work) for work in plan) + len(beside)
    if not as_json or not (yes or dry_run):
        _show(plan, beside, selection, on_stderr=as_json)
    if files and not yes and not dry_run:
        console.ask(f"Delete these {files:,} files?", "delete")
    for note in notes:
        console.err().print(f"kvstrata: {note}")
    if dry_run:
        outcome = Outcome(plan, len(beside))
    else:
        outcome = _delete(plan, selection)
        _delete_beside(beside, outcome)
    _tell(path, outcome, dry_run, as_json)


def _with_prompts(
    namespaces: Sequence[NamespaceDir], everywhere: bool
) -> tuple[list[NamespaceDir], list[str]]:
    """Namespaces where a prompt's chunks can be told, and what is to be said of it.

    Raises:
        ConfigError: it can be told in none, or not in one that was named.
    """
    found: list[NamespaceDir] = []
    notes: list[str] = []
    for one in namespaces:
        try:
            chained = hashing_of(one).chained
        except ConfigError as error:
            if not everywhere:
                raise
            notes.append(str(error))
            continue
        found.append(one)
        if chained:
            note = (
                "longer prompts with this beginning cannot be served without it; what is left of "
            )
            notes.append(f"{one.path.name}: {note}them is evicted, or cleared, by age")
        else:
            note = "longer prompts with this beginning may still be served: no group of the model "
            notes.append(
                f"{one.path.name}: {note}needs all of it; clear by --tenant or --older-than"
            )
    if namespaces and not found:
        raise ConfigError("; ".join(notes))
    return found, notes


def _tell(path: Path, outcome: Outcome, dry_run: bool, as_json: bool) -> None:
    """Say what happened.

    Raises:
        typer.Exit: something could not be deleted.
    """
    if as_json:
        console.print_json({**_document(path, outcome), "dry_run": dry_run})
    elif not dry_run:
        console.out().print(f"{outcome.deleted:,} files deleted")
    for failure in outcome.failures:
        console.err().print(f"kvstrata: {failure}")
    if outcome.failed > len(outcome.failures):
        console.err().print(f"kvstrata: {outcome.failed:,} files could not be deleted")
    if outcome.failed:
        raise typer.Exit(SOME_LEFT)


def _plan(namespace: NamespaceDir, selection: Selection, advance: console.Advance) -> Work:
    work = Work(namespace)
    for file in choose_files(namespace, selection, advance):
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
    if not plan and not beside:
        to.print("nothing to delete")
        return
    to.print("to be deleted" + (", with the namespaces themselves" if selection.everything else ""))
    to.print(shown)


def _delete(plan: list[Work], selection: Selection) -> Outcome:
    """Delete what the plan says, and what has come to match it since."""
    outcome = Outcome()
    with console.progress("deleting, looked at") as advance:
        for planned in plan:
            work = Work(planned.namespace)
            directories: set[Path] = set()
            chosen = choose_files(planned.namespace, selection, advance)
            for file, failure in pool.each(chosen, _unlink, pool.default_threads()):
                if failure is None:
                    work.add(file)
                    directories.add(file.path.parent)
                else:
                    outcome.fail(failure)
            _prune(directories, planned.namespace.path)
            known = planned.namespace.covers is not None or work.records.files
            if selection.everything and known:
                work.directory_removed = remove_shell(str(planned.namespace.path))
            outcome.done.append(work)
    return outcome


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
