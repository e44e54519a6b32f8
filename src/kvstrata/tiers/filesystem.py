"""The filesystem tier: one file for each chunk, and the directory is the index.

Any number of processes on any number of machines may use one root at once, without a service and without
locks: files appear by rename, their bytes are verified on every read, and two writers of one key write the
same bytes by definition of the key.
"""

import contextlib
import errno
import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey, group_of, parse_file_name, relative_path
from kvstrata.chunks.namespace import NAMESPACE_FILE, Namespace
from kvstrata.chunks.record import check_identity, describe, encode, header_bytes
from kvstrata.errors import CONTENT_REASONS, BadReason, ConfigError, RecordError
from kvstrata.fileio.publish import publish
from kvstrata.tiers.place import PLACE_FILE, find_place
from kvstrata.tiers.records import RecordReader, read_header
from kvstrata.tiers.tier import (
    Bad,
    Failed,
    Loaded,
    Missing,
    Present,
    ReadOutcome,
    Stored,
    Tier,
    WriteOutcome,
)

logger = logging.getLogger(__name__)

TOUCH_SECONDS = 3600
"""A file's recency is renewed at most this often."""
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
        touch: renew a file's modification time when it is read, so that recency survives.
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
        touch: bool = True,
    ) -> None:
        self.root = root
        self.directory = root / namespace.directory_name
        self.read_only = read_only
        self._base = str(self.directory)
        self._namespace = namespace
        self._fingerprint = namespace.fingerprint
        self._geometries = dict(geometries)
        self._readers = {
            group: RecordReader(self._fingerprint, geometry)
            for group, geometry in geometries.items()
        }
        self._fsync = fsync
        self._touch = touch

    def prepare(self) -> None:
        """Make the namespace's directory and describe it; turns read-only where it may not be written.

        A full file system does not turn it read-only, since it may get room again.

        Raises:
            ConfigError: the root cannot be made or read, or describes another engine; says the remedy.
        """
        refusal = None
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
                    raise _unusable(directory, refusal or error) from error
        self._check_description()

    def introduce(self) -> None:
        """Find out what others call this place, so that events can name it; after `prepare`."""
        place, own = find_place(self.root, read_only=self.read_only)
        self.owner = f"{self._namespace.directory_name}@{place}"
        if not own:
            logger.warning(
                "%s has no file %s and none can be made there; a router counts what lies there for engines "
                "of this host alone (option 'announce')",
                self.root,
                PLACE_FILE,
            )

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`: whether the files exist."""
        base = self._base
        return [os.path.exists(f"{base}/{relative_path(key)}") for key in keys]

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        path = f"{self._base}/{relative_path(key)}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return _read_error(error)
        try:
            return self._read_open(path, fd, key, into, first_block)
        except OSError as error:
            return _read_error(error)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        if self.read_only:
            return Failed("read_only", f"{self.directory} is not written")
        path = f"{self._base}/{relative_path(key)}"
        geometry = self._geometries[group_of(key)]
        try:
            if self._stored_from(path, key, geometry) <= first_block:
                return Present()
            header = describe(self._fingerprint, key, geometry, payload, first_block)
            body = payload[first_block * geometry.block_bytes : geometry.payload_bytes]
            publish(path, [memoryview(encode(header)), body], fsync=self._fsync)
        except OSError as error:
            return Failed(errno.errorcode.get(error.errno or 0, "EIO"), f"{path}: {error.strerror}")
        with contextlib.suppress(OSError):
            self._describe()  # if somebody removed the directory under us, the write made it anew
        return Stored(len(body))

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`."""
        try:
            os.unlink(f"{self._base}/{relative_path(key)}")
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

    def _read_open(
        self, path: str, fd: int, key: ChunkKey, into: memoryview, first_block: int
    ) -> ReadOutcome:
        status = os.fstat(fd)
        try:
            if not stat.S_ISREG(status.st_mode):
                raise RecordError(BadReason.FOREIGN, "not a file")
            nbytes = self._readers[group_of(key)].read(fd, key, into, first_block)
        except RecordError as error:
            if error.reason in CONTENT_REASONS:
                self._condemn(path, status)
            return Bad(error.reason, f"{path}: {error}")
        if nbytes is None:
            return Missing()
        self._renew(fd, status)
        return Loaded(nbytes)

    def _condemn(self, path: str, status: os.stat_result) -> None:
        """Remove a file that no reader can ever use, unless it has been replaced meanwhile."""
        if self.read_only:
            return
        with contextlib.suppress(OSError):
            now = os.stat(path)
            if (now.st_ino, now.st_dev) == (status.st_ino, status.st_dev):
                os.unlink(path)

    def _renew(self, fd: int, status: os.stat_result) -> None:
        if self._touch and not self.read_only and time.time() - status.st_mtime > TOUCH_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(fd)

    def _stored_from(self, path: str, key: ChunkKey, geometry: GroupGeometry) -> int:
        """First block of the record that is there already; beyond every block when there is none."""
        nothing = geometry.blocks_per_chunk
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return nothing
        try:
            header = read_header(fd, header_bytes(geometry.blocks_per_chunk))
            check_identity(header, self._fingerprint, key, geometry)
            whole = os.fstat(fd).st_size >= header.record_bytes
            return header.first_block if whole else nothing
        except RecordError:
            return nothing  # whatever it is, a good record may take its place
        finally:
            os.close(fd)

    def _describe(self) -> None:
        path = f"{self._base}/{NAMESPACE_FILE}"
        if not os.path.exists(path):
            publish(path, [memoryview(self._namespace.to_json().encode())], fsync=self._fsync)

    def _check_description(self) -> None:
        path = self.directory / NAMESPACE_FILE
        ours = self._namespace.to_json()
        try:
            found = json.loads(path.read_bytes())["covers"]
        except OSError:
            return  # only people need it, and there may be nothing stored here yet
        except (ValueError, TypeError, LookupError):
            if not self.read_only:  # damaged, as after a power failure
                with contextlib.suppress(OSError):
                    publish(str(path), [memoryview(ours.encode())], fsync=self._fsync)
            return
        # The model's name is not compared: one model may be served under two names.
        if found != json.loads(ours)["covers"]:
            raise ConfigError(
                f"{path} describes another engine than this one, though their fingerprints are equal; "
                f"if the file was edited, remove it"
            )


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


def _unusable(directory: Path, error: OSError) -> ConfigError:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    return ConfigError(
        f"the option 'path' cannot be used: {directory}: {error.strerror} ({name}); "
        f"give a directory that this user may create, read and write"
    )


def _read_error(error: OSError) -> ReadOutcome:
    if error.errno in _ABSENT:
        return Missing()
    reason = BadReason.PERMISSION if error.errno in _DENIED else BadReason.IO
    return Bad(reason, str(error))
