"""Looking at a root from outside: its namespaces, its files, and whether each is what it says."""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstrata.chunks.checksum import digest_in_parts
from kvstrata.chunks.key import ChunkKey, group_of, parse_file_name, relative_path
from kvstrata.chunks.namespace import DESCRIPTION_BYTES, NAMESPACE_FILE
from kvstrata.chunks.record import FINGERPRINT_BYTES, RecordHeader
from kvstrata.errors import BadReason, RecordError
from kvstrata.fileio.beneath import NO_FILES, TO_READ, read_small
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.fileio.transfer import read_at
from kvstrata.tiers.records import chunks_in, find_chunk

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import Keyring

STEP_BYTES = 1 << 20
"""Of a block that are in memory at a time: how large it is, is the file's word."""


@dataclass(frozen=True, slots=True)
class NamespaceDir:
    """One namespace's directory.

    Attributes:
        path: of the directory.
        model: the model's name, as the directory or `namespace.json` says.
        fingerprint: hexadecimal.
        covers: the facts that the namespace covers; None when `namespace.json` is missing or damaged.
    """

    path: Path
    model: str
    fingerprint: str
    covers: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One file of ours.

    Attributes:
        path: of the file.
        key: the chunk that its name stands for; empty for a temporary file.
        size: bytes; of a file that has several names, this name's share.
        mtime: seconds since the epoch; renewed when the chunk is read.
        temporary: a file that was being written when this was seen, or whose writer died.
    """

    path: Path
    key: ChunkKey
    size: int
    mtime: float
    temporary: bool


def fingerprint_of(directory: str) -> str | None:
    """The fingerprint at the end of a namespace directory's name, or None for a foreign directory."""
    _, dash, text = directory.rpartition("-")
    if not dash or len(text) != 2 * FINGERPRINT_BYTES:
        return None
    return text if all(char in "0123456789abcdef" for char in text) else None


def iter_namespaces(root: Path) -> Iterator[NamespaceDir]:
    """Namespaces below `root`, by name; everything else there is passed over.

    Raises:
        OSError: `root` cannot be read.
    """
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        fingerprint = fingerprint_of(entry.name)
        if fingerprint is None or not entry.is_dir(follow_symlinks=False):
            continue
        path = Path(entry.path)
        described = _description(path)
        model = described.get("model") if described else None
        covers = described.get("covers") if described else None
        yield NamespaceDir(
            path=path,
            model=model if isinstance(model, str) else entry.name.rpartition("-")[0],
            fingerprint=fingerprint,
            covers=covers if isinstance(covers, dict) else None,
        )


def iter_records(namespace_dir: Path) -> Iterator[RecordFile]:
    """Every file of ours in a namespace, in no order; what vanishes meanwhile is passed over.

    Raises:
        OSError: a directory cannot be read, so that the list would silently be short.
    """
    for directory, _, names in os.walk(namespace_dir, onerror=_raise_unless_gone):
        for name in names:
            key = parse_file_name(name)
            temporary = name.startswith(TEMPORARY)
            if key is None and not temporary:
                continue
            path = Path(directory, name)
            try:
                status = path.lstat()
            except OSError:
                continue
            share = status.st_size // max(status.st_nlink, 1)
            yield RecordFile(path, key or b"", share, status.st_mtime, temporary)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def names_of(path: Path) -> list[Path]:
    """Every name under which a chunk's file stands: for a segment, those of all its chunks that still count.

    Whoever wants the bytes back has to remove all of them; what they hold was stored together and is
    equally old.

    Raises:
        RecordError: the file looks like a segment and is damaged.
        OSError: it cannot be read.
    """
    fd = os.open(path, TO_READ)
    try:
        status = os.fstat(fd)
        keys = chunks_in(fd) if status.st_nlink > 1 else []
    finally:
        os.close(fd)
    base = path.parents[2]
    # Nobody has checked what the table says: a key that is none would name another place.
    others = [base / relative_path(key) for key in keys if _is_key(key)]
    return [path, *(one for one in others if one != path and _is(one, status))]


def _is_key(key: ChunkKey) -> bool:
    return parse_file_name(relative_path(key).rpartition("/")[2]) == key


def _is(path: Path, status: os.stat_result) -> bool:
    try:
        now = path.lstat()
    except OSError:
        return False
    return (now.st_ino, now.st_dev) == (status.st_ino, status.st_dev)


def check_record(
    path: Path, *, deep: bool = True, keyring: "Keyring | None" = None
) -> RecordHeader:
    """Check that a file is the chunk that its place says, or holds it among others.

    Args:
        path: of a published record.
        deep: read all the chunk's blocks and verify their checksums, in bounded memory; else only what the
            file says of it.
        keyring: for sealed files; see `kvstrata.chunks.keyring.Keyring.kind`.

    Returns:
        The header of the chunk's record, or of a segment what it would be.

    Raises:
        RecordError: why it is not.
        OSError: it cannot be read.
    """
    key = parse_file_name(path.name)
    try:
        fd = os.open(path, TO_READ)  # a pipe must not hold us up
    except OSError as error:
        if error.errno in NO_FILES:
            raise RecordError(BadReason.FOREIGN, "a link, a socket or a device") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RecordError(BadReason.FOREIGN, "not a file")
        header, start = find_chunk(fd, key or b"", keyring=keyring)
        if key is None or header.key != key or not str(path).endswith(relative_path(key)):
            raise RecordError(
                BadReason.KEY, f"holds {header.key.hex()}, group {group_of(header.key)}"
            )
        place = path.parents[2].name
        if fingerprint_of(place) != header.namespace.hex():
            raise RecordError(BadReason.NAMESPACE, f"belongs to {header.namespace.hex()}")
        end = start + header.payload_bytes
        if os.fstat(fd).st_size < end:
            raise RecordError(BadReason.TRUNCATED, f"shorter than {end} bytes")
        if deep:
            for block in range(header.first_block, header.blocks):
                offset = start + header.block_bytes * (block - header.first_block)
                _check_block(fd, header, block, offset)
    finally:
        os.close(fd)
    return header


def _check_block(fd: int, header: RecordHeader, block: int, offset: int) -> None:
    if header.seal is not None:
        # Who sealed it has the key, and says how large a block is.
        data = memoryview(bytearray(header.block_bytes))
        _fill(fd, data, offset, block)
        header.verify(block, data)
        return
    running = digest_in_parts()
    step = memoryview(bytearray(min(STEP_BYTES, header.block_bytes)))
    for begin in range(0, header.block_bytes, STEP_BYTES):
        part = step[: header.block_bytes - begin]
        _fill(fd, part, offset + begin, block)
        running.update(part)
    if running.digest() != header.checksums[block - header.first_block]:
        raise RecordError(BadReason.CHECKSUM, f"block {block} of {header.key.hex()}")


def _fill(fd: int, data: memoryview, offset: int, block: int) -> None:
    if read_at(fd, [data], offset) < len(data):
        raise RecordError(BadReason.TRUNCATED, f"ends inside block {block}")


def _description(directory: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(read_small(str(directory / NAMESPACE_FILE), DESCRIPTION_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
