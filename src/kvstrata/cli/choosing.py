"""Which namespaces and files of a root a command is about."""

import contextlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kvstrata.chunks.key import relative_path
from kvstrata.chunks.tenants import NAME_BYTES, read_name, tenant_mark
from kvstrata.cli import console, pool
from kvstrata.cli.looking import NOBODY, tenant_in
from kvstrata.cli.place import is_ours
from kvstrata.cli.prompt_chunks import Hashing
from kvstrata.cli.prompt_tokens import Tokens
from kvstrata.errors import ConfigError
from kvstrata.fileio.beneath import check_path
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.tiers.catalog import NamespaceDir, RecordFile, iter_namespaces, iter_records

LEFT_OVER_AGE = 3600.0
"""Seconds without a change after which a temporary file counts as left behind by a dead writer."""
_TENANT = re.compile("[0-9a-f]{16}|[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of prompts.

    Attributes:
        tokens: token ids, uint32 (n,).
        salt: the requests' cache salt.
    """

    tokens: Tokens
    salt: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a namespace are chosen.

    Attributes:
        before: only files not written or used since then, in seconds since 1970; None for all.
        temporary_only: only temporary files.
        tenant: only chunks of this tenant: `NOBODY`, the mark of its files, or its name, from which the mark
            in each namespace follows (`kvstrata.chunks.tenants`); None for all.
        prefix: only chunks of prompts with this beginning that lie within it; None for all.
    """

    before: float | None
    temporary_only: bool
    tenant: str | None = None
    prefix: Prefix | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing of ours stays, so that the namespace itself goes too."""
        return self.before is None and not self.temporary_only and not self.chunks_only

    def covers(self, file: RecordFile) -> bool:
        """Whether `file` is chosen as far as its name and its age tell."""
        if self.chunks_only if file.temporary else self.temporary_only:
            return False
        return self.before is None or file.mtime <= self.before

    @property
    def chunks_only(self) -> bool:
        """Whether a tenant's or a prompt's chunks are chosen, and so no temporary files."""
        return self.tenant is not None or self.prefix is not None


def select(older_than: float | None, temporary: bool, now: float) -> Selection:
    """The selection by age and kind that the options ask for.

    Args:
        older_than: seconds, or None.
        temporary: only temporary files. A writer may be at work on a young one, so without
            `older_than` those younger than `LEFT_OVER_AGE` stay.
        now: seconds since 1970.
    """
    if temporary and older_than is None:
        older_than = LEFT_OVER_AGE
    return Selection(None if older_than is None else now - older_than, temporary)


def of_tenant(selection: Selection, tag: str) -> Selection:
    """Only what one tenant has.

    Args:
        selection: to narrow.
        tag: a name (32 hexadecimal digits), a mark (16), or "none".

    Raises:
        ConfigError: it is neither, or temporary files are asked for.
    """
    text = tag.strip().lower()
    if text != NOBODY and not _TENANT.fullmatch(text):
        raise ConfigError(
            f"a tenant is its name (32 hexadecimal digits), the mark that kvstrata usage shows (16), or "
            f"none; got {tag!r}"
        )
    if selection.temporary_only:
        raise ConfigError("--temporary goes with neither --tenant nor --prompt-file")
    return replace(selection, tenant=text)


def of_prefix(selection: Selection, prefix: Prefix) -> Selection:
    """Only chunks of a prompt's beginning.

    Raises:
        ConfigError: temporary files are asked for.
    """
    if selection.temporary_only:
        raise ConfigError("--temporary goes with neither --tenant nor --prompt-file")
    return replace(selection, prefix=prefix)


def choose_namespaces(
    root: Path, prefix: str | None = None, model: str | None = None
) -> list[NamespaceDir]:
    """Namespaces of a root, by name.

    Args:
        root: its directory.
        prefix: only those whose directory's name or fingerprint begins with this.
        model: only those of this model; what stands before a slash does not count.

    Raises:
        ConfigError: something was named that no namespace is.
        OSError: the root cannot be read.
    """
    found = list(iter_namespaces(root))
    chosen = found
    if prefix is not None:
        chosen = [
            one
            for one in chosen
            if prefix and (one.path.name.startswith(prefix) or one.fingerprint.startswith(prefix))
        ]
        if not chosen:
            known = ", ".join(one.path.name for one in found) or "none"
            raise ConfigError(f"no namespace of {root} starts with {prefix!r}; there are: {known}")
    if model is not None:
        name = _model(model)
        chosen, among = [one for one in chosen if name and _model(one.model) == name], chosen
        if not chosen:
            known = ", ".join(sorted({one.model for one in among})) or "none"
            raise ConfigError(f"no namespace of {root} is of model {model!r}; there are: {known}")
    return chosen


def choose_files(
    namespace: NamespaceDir, selection: Selection, advance: console.Advance
) -> Iterator[RecordFile]:
    """Files of a namespace that are chosen, and stand where only kvstrata puts files.

    Raises:
        ConfigError: a prompt's chunks cannot be told there.
        OSError: a directory cannot be read.
    """
    if selection.prefix is None:
        found = iter_records(namespace.path)
    else:
        found = _of_prompt(namespace, selection.prefix)
    chosen = _covered(namespace.path, found, selection, advance)
    if selection.tenant is None:
        yield from chosen
        return
    mark = _mark(selection.tenant, namespace)
    for file, tenant in pool.each(chosen, _tenant, pool.default_threads()):
        if tenant == mark:
            yield file


def choose_beside(root: Path, selection: Selection) -> list[RecordFile]:
    """Temporary files in the root itself, left by who died while giving the place its name."""
    found: list[RecordFile] = []
    for path in root.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):  # its writer lives, and is done
            status = path.lstat()
            file = RecordFile(path, b"", status.st_size, status.st_mtime, temporary=True)
            if stat.S_ISREG(status.st_mode) and selection.covers(file) and is_ours(root, file):
                found.append(file)
    return found


def hashing_of(namespace: NamespaceDir) -> Hashing:
    """How a namespace's keys come about.

    Raises:
        ConfigError: that cannot be told; names the namespace.
    """
    try:
        return Hashing.of(namespace.covers)
    except ConfigError as error:
        raise ConfigError(
            f"the chunks of a prompt cannot be told in {namespace.path.name}: {error}"
        ) from None


def _model(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _mark(tenant: str, namespace: NamespaceDir) -> str:
    """What `tenant_in` tells of a tenant's files in a namespace."""
    if len(tenant) != 2 * NAME_BYTES:
        return tenant
    return tenant_mark(read_name(tenant), bytes.fromhex(namespace.fingerprint)).hex()


def _tenant(file: RecordFile) -> str:
    return tenant_in(str(file.path), file.key)


def _covered(
    base: Path, found: Iterator[RecordFile], selection: Selection, advance: console.Advance
) -> Iterator[RecordFile]:
    for file in found:
        advance(file.size)
        if selection.covers(file) and is_ours(base, file):
            yield file


def _of_prompt(namespace: NamespaceDir, prefix: Prefix) -> Iterator[RecordFile]:
    """Chunks of a prompt that are there, from its beginning on."""
    for key in hashing_of(namespace).keys(prefix.tokens, prefix.salt):
        path = namespace.path / relative_path(key)
        with contextlib.suppress(OSError):
            check_path(str(path), str(namespace.path))  # what goes must not lie elsewhere
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                share = status.st_size // max(status.st_nlink, 1)
                yield RecordFile(path, key, share, status.st_mtime, temporary=False)
