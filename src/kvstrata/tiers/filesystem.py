"""The filesystem tier: chunks in files that have their names, and the directory is the index.

Any number of processes on any number of machines may use one root at once, without a service and without
locks: files appear by rename or link, their bytes are verified on every read, and two writers of one key
write the same bytes by definition of the key.
"""

import contextlib
import errno
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey, group_of, parse_file_name, relative_path
from kvstrata.chunks.namespace import DESCRIPTION_BYTES, NAMESPACE_FILE, Namespace
from kvstrata.chunks.segment import Segment
from kvstrata.errors import CONTENT_REASONS, BadReason, ConfigError, RecordError
from kvstrata.fileio.beneath import NO_FILES, TO_READ, check_beneath, check_path, read_small
from kvstrata.fileio.direct import Direct, DirectPolicy
from kvstrata.fileio.publish import publish
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.chunk_files import SEGMENT_BYTES, ChunkFiles
from kvstrata.tiers.place import PLACE_FILE, find_place
from kvstrata.tiers.recency import Recency
from kvstrata.tiers.records import Brought, RecordReader
from kvstrata.tiers.root import refuse_strangers, unusable
from kvstrata.tiers.tier import (
    Bad,
    Failed,
    Loaded,
    Missing,
    ReadOutcome,
    Stored,
    Tier,
    Transfer,
    WriteOutcome,
)

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import Keyring

logger = logging.getLogger(__name__)

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class FilesystemTier(Tier):
    """Chunks as files below `<root>/<namespace>/`.

    Attributes:
        owner: the namespace and the place, known from `introduce` on.

    Args:
        root: any directory, local or shared.
        namespace: of the engine.
        geometries: by group index.
        fsync: whether a stored chunk must survive a power failure.
        read_only: never write, remove or touch.
        recency: when a file's modification time is renewed by reading it, and when it is past its time.
        segment: payload bytes of small chunks of one group that are written together are one file, up to
            so many; 0 for a file for each chunk.
        direct: when files are read past the page cache.
        keyring: seals what is written, and nothing else is read; the namespace must tell sealed chunks from
            others. None for none.
        sharing: who may use the files.
        world_writable: whether everybody may be able to write the root.
    """

    name = "filesystem"

    def __init__(
        self,
        root: Path,
        namespace: Namespace,
        geometries: Mapping[int, GroupGeometry],
        *,
        fsync: bool = False,
        read_only: bool = False,
        recency: Recency | None = None,
        segment: int = SEGMENT_BYTES,
        direct: Direct = Direct.NEVER,
        keyring: "Keyring | None" = None,
        sharing: Sharing = Sharing.USER,
        world_writable: bool = False,
    ) -> None:
        self.root = root
        self.directory = root / namespace.directory_name
        self.read_only = read_only
        self._base = str(self.directory)
        self._namespace = namespace
        self._root = str(root)
        self._sharing = sharing
        self._world_writable = world_writable
        self._files = ChunkFiles(
            self._base,
            namespace.fingerprint,
            dict(geometries),
            fsync=fsync,
            segment_bytes=segment,
            keyring=keyring,
            sharing=sharing,
        )
        policy = DirectPolicy(direct)
        self._readers = {
            group: RecordReader(namespace.fingerprint, geometry, policy, keyring)
            for group, geometry in geometries.items()
        }
        self._fsync = fsync
        self._recency = recency or Recency()

    def prepare(self) -> None:
        """Make the namespace's directory and describe it; turns read-only where it may not be written.

        A full file system does not turn it read-only, since it may get room again.

        Raises:
            ConfigError: the root cannot be made or read, everybody may write it, or it describes another
                engine; says the remedy.
        """
        refusal = None
        if not self._world_writable:
            refuse_strangers(self.root)
        if not self.read_only:
            try:
                self._describe()
                self.read_only = not os.access(self.directory, os.W_OK)
            except OSError as error:
                refusal = error
                self.read_only = error.errno not in _FULL
        for directory, required in ((self.root, True), (self.directory, False)):
            try:
                os.stat(f"{directory}/.")  # fails where the files inside could not be reached
            except OSError as error:
                if required or error.errno != errno.ENOENT:
                    raise unusable(directory, refusal or error) from error
        self._check_description()

    def introduce(self) -> None:
        """Find out what others call this place, so that events can name it; after `prepare`."""
        place, own = find_place(self.root, read_only=self.read_only, sharing=self._sharing)
        self.owner = f"{self._namespace.directory_name}@{place}"
        if not own:
            logger.warning(
                "%s has no file %s and none can be made there; a router counts what lies there for engines "
                "of this host alone (option 'announce')",
                self.root,
                PLACE_FILE,
            )

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`: whether the files exist. Where that cannot be found out, a read will tell why."""
        base = self._base
        return [_may_exist(f"{base}/{relative_path(key)}") for key in keys]

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        return self.read_many([(key, into, first_block)])[0]

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """See `Tier.read_many`: a file that holds several of the chunks is opened once."""
        outcomes: dict[int, ReadOutcome] = {}
        for index in range(len(wanted)):
            if index not in outcomes:
                left = [one for one in range(index + 1, len(wanted)) if one not in outcomes]
                outcomes |= self._read_file(wanted, index, left)
        return [outcomes[index] for index in range(len(wanted))]

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        return self.write_many([(key, payload, first_block)])[0]

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`: small chunks of one group become one file."""
        if self.read_only:
            return [Failed("read_only", f"{self.directory} is not written")] * len(given)
        outcomes = self._files.write(given)
        if any(isinstance(outcome, Stored) for outcome in outcomes):
            with contextlib.suppress(OSError):
                self._describe()  # if somebody removed the directory under us, a write made it anew
        return outcomes

    def attribute(self, marks: Mapping[ChunkKey, bytes]) -> None:
        """See `Tier.attribute`."""
        self._files.owners.set(marks)

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`."""
        path = self._files.path(key)
        try:
            check_path(path, self._root)
            os.unlink(path)
        except OSError:
            return False
        return True

    def scan(self) -> Iterator[ChunkKey]:
        """See `Tier.scan`."""
        for level in _names(self._base):
            if len(level) != 2:
                continue
            for below in _names(f"{self._base}/{level}"):
                yield from _keys(f"{self._base}/{level}/{below}")

    def _read_file(
        self, wanted: Sequence[Transfer], index: int, left: Sequence[int]
    ) -> dict[int, ReadOutcome]:
        """Read the file of one chunk.

        Args:
            wanted: by whoever called.
            index: of the chunk.
            left: those of `wanted` that are to be read too, here if the file holds them.

        Returns:
            Its outcome, and those of the others that are loaded; whatever else may be said of these is
            said under their own names.
        """
        path = self._files.path(wanted[index][0])
        try:
            fd = os.open(path, TO_READ)
        except OSError as error:
            return {index: _read_error(error)}
        try:
            return self._read_open(path, fd, wanted, index, left)
        except OSError as error:
            return {index: _read_error(error)}
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _read_open(
        self, path: str, fd: int, wanted: Sequence[Transfer], index: int, left: Sequence[int]
    ) -> dict[int, ReadOutcome]:
        status = os.fstat(fd)
        reader = self._readers[group_of(wanted[index][0])]
        others: dict[int, ReadOutcome] = {}
        try:
            if not stat.S_ISREG(status.st_mode):
                raise RecordError(BadReason.FOREIGN, "not a file")
            if self._recency.expired(status.st_mtime):
                self._condemn(path, status)
                return {index: Missing()}
            most = reader.payload_bytes * (len(left) + 1)
            file = reader.open(fd, min(status.st_size, most))
            try:
                together = self._together(file.table, status, wanted, index, left)
                if together:
                    brought = file.read_together([wanted[one] for one in (index, *together)])
                    others = _loaded(together, brought[1:])
                    own = brought[0]
                    if isinstance(own, Exception):
                        raise own
                else:
                    own = file.read(*wanted[index])
            finally:
                file.close()
        except RecordError as error:
            if error.reason in CONTENT_REASONS:
                self._condemn(path, status)
            return {index: Bad(error.reason, f"{path}: {error}"), **others}
        except OSError as error:
            return {index: _read_error(error), **others}
        if own is not None or others:
            self._renew(fd, path, status)
        return {index: Missing() if own is None else Loaded(own), **others}

    def _together(
        self,
        table: Segment | None,
        status: os.stat_result,
        wanted: Sequence[Transfer],
        index: int,
        left: Sequence[int],
    ) -> list[int]:
        """Which other chunks to read from an open file: those that it holds and still stands for."""
        if table is None or not left:
            return []
        held = table.entries
        by_key = {key: one for one in left if (key := wanted[one][0]) in held}
        by_key.pop(wanted[index][0], None)
        if status.st_nlink == len(held):
            return list(by_key.values())
        # A name is missing: its chunk was removed, or another file has taken its place.
        return [one for key, one in by_key.items() if _is(self._files.path(key), status)]

    def _condemn(self, path: str, status: os.stat_result) -> None:
        """Remove a file that no reader can ever use, unless it has been replaced meanwhile."""
        if self.read_only:
            return
        with contextlib.suppress(OSError):
            check_path(path, self._root)
            if _is(path, status):
                os.unlink(path)

    def _renew(self, fd: int, path: str, status: os.stat_result) -> None:
        if not self.read_only and self._recency.due(status.st_mtime):
            with contextlib.suppress(OSError):
                check_beneath(fd, path, self._root)
                os.utime(fd)

    def _describe(self) -> None:
        path = f"{self._base}/{NAMESPACE_FILE}"
        if not os.path.exists(path):
            self._publish_description(path)

    def _publish_description(self, path: str) -> None:
        publish(
            path,
            [memoryview(self._namespace.to_json().encode())],
            fsync=self._fsync,
            sharing=self._sharing,
            base=self._root,
        )

    def _check_description(self) -> None:
        path = self.directory / NAMESPACE_FILE
        ours = self._namespace.to_json()
        try:
            found = json.loads(read_small(str(path), DESCRIPTION_BYTES))["covers"]
        except OSError:
            return  # only people need it, and there may be nothing stored here yet
        except (ValueError, TypeError, LookupError, RecursionError):
            if not self.read_only:  # damaged, as after a power failure
                with contextlib.suppress(OSError):
                    self._publish_description(str(path))
            return
        # The model's name is not compared: one model may be served under two names.
        if found != json.loads(ours)["covers"]:
            raise ConfigError(
                f"{path} describes another engine than this one, though their fingerprints are equal; "
                f"if the file was edited, remove it"
            )


def _loaded(which: Sequence[int], brought: Sequence[Brought]) -> dict[int, ReadOutcome]:
    """Outcomes of those chunks that were brought; all that have as many bytes share one."""
    outcomes: dict[int, ReadOutcome] = {}
    last = Loaded(0)
    for one, nbytes in zip(which, brought, strict=True):
        if isinstance(nbytes, int):
            if nbytes != last.nbytes:
                last = Loaded(nbytes)
            outcomes[one] = last
    return outcomes


def _is(path: str, status: os.stat_result) -> bool:
    """Whether a file is the one that has this status."""
    try:
        now = os.lstat(path)
    except OSError:
        return False
    return (now.st_ino, now.st_dev) == (status.st_ino, status.st_dev)


def _may_exist(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in _ABSENT
    return True


def _names(directory: str) -> list[str]:
    """Names in a directory; none where it is gone or no directory."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _keys(directory: str) -> list[ChunkKey]:
    """Keys of the files in a directory."""
    try:
        with os.scandir(directory) as entries:
            files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return [key for name in files if (key := parse_file_name(name)) is not None]


def _read_error(error: OSError) -> ReadOutcome:
    if error.errno in _ABSENT:
        return Missing()
    if error.errno in NO_FILES:
        return Bad(BadReason.FOREIGN, f"{error}: a link, a socket or a device")
    reason = BadReason.PERMISSION if error.errno in _DENIED else BadReason.IO
    return Bad(reason, str(error))
