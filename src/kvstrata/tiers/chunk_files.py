"""Writing chunks as files: one for each, or small ones together in a segment that has a name for each."""

import errno
import logging
import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from kvstrata.chunks import segment
from kvstrata.chunks.checksum import DIGEST_BYTES
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey, group_of, relative_path
from kvstrata.chunks.record import (
    PAGE,
    RecordHeader,
    check_identity,
    describe,
    encode,
    header_bytes,
)
from kvstrata.chunks.sealing import SealKind
from kvstrata.errors import RecordError
from kvstrata.fileio.beneath import NO_FILES, TO_READ
from kvstrata.fileio.publish import publish, publish_linked
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.attribution import Attribution
from kvstrata.tiers.records import find_chunk
from kvstrata.tiers.tier import Failed, Present, Stored, Transfer, WriteOutcome

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import FileKeys, Keyring

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 4 << 20
"""Payload bytes after which a segment is full."""
PACKED_TOGETHER = 6
"""Chunks of which fewer fit a segment have a file each: creating one costs little beside writing it."""
_WITHOUT_LINKS = frozenset(
    {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EMLINK}
)
"""How file systems say that they do not know hard links, or no more of them."""


class ChunkFiles:
    """Chunks of one namespace, as files; for several threads at once.

    Attributes:
        owners: whose the chunks are that are to be written.

    Args:
        base: the namespace's directory.
        fingerprint: of the namespace.
        geometries: by group index.
        fsync: whether a stored chunk must survive a power failure.
        segment_bytes: see `SEGMENT_BYTES`; 0 for a file for each chunk.
        keyring: seals the files; None for none.
        sharing: who may use them.
    """

    def __init__(
        self,
        base: str,
        fingerprint: bytes,
        geometries: Mapping[int, GroupGeometry],
        *,
        fsync: bool,
        segment_bytes: int,
        keyring: "Keyring | None" = None,
        sharing: Sharing = Sharing.USER,
    ) -> None:
        self.owners = Attribution()
        self._base = base
        self._fingerprint = fingerprint
        self._geometries = geometries
        self._fsync = fsync
        self._segment_bytes = segment_bytes
        self._keyring = keyring
        self._sharing = sharing
        self._root = os.path.dirname(base)
        self._rooms = threading.local()

    def path(self, key: ChunkKey) -> str:
        """Where the chunk is."""
        return f"{self._base}/{relative_path(key)}"

    def write(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """Publish chunks; see `Tier.write_many`."""
        outcomes: dict[int, WriteOutcome] = {}
        new: list[int] = []
        again: list[int] = []
        keys: set[ChunkKey] = set()
        for index, (key, _, first_block) in enumerate(given):
            if key in keys:
                again.append(index)
                continue
            keys.add(key)
            try:
                if self._stands(key, first_block):
                    outcomes[index] = Present()
                else:
                    new.append(index)
            except OSError as error:
                outcomes[index] = self._failed(key, error)
        for part in self._parts(new, given):
            chunks = [given[index] for index in part]
            written = (
                self._write_together(chunks) if len(part) > 1 else [self._write_one(*chunks[0])]
            )
            outcomes.update(zip(part, written, strict=True))
        for index in again:
            (outcomes[index],) = self.write([given[index]])
        return [outcomes[index] for index in range(len(given))]

    def _parts(self, new: Iterable[int], given: Sequence[Transfer]) -> list[list[int]]:
        """Which of the new chunks share a file: those of one group, in order, as many as fit."""
        parts: list[list[int]] = []

        def group_at(index: int) -> int:
            return group_of(given[index][0])

        for group, members in groupby(sorted(new, key=group_at), group_at):
            size = max(self._geometries[group].payload_bytes, 1)
            most = min(self._segment_bytes // size, segment.MAX_CHUNKS)
            if most < PACKED_TOGETHER:
                most = 1
            ordered = list(members)
            parts += [ordered[at : at + most] for at in range(0, len(ordered), most)]
        return parts

    def _write_one(self, key: ChunkKey, payload: memoryview, first_block: int) -> WriteOutcome:
        geometry = self._geometries[group_of(key)]
        file = self._new_keys()
        ((header, body),) = self._described([(key, payload, first_block)], geometry, file)
        encoded = encode(header) if file is None else encode(header, file.mark)
        try:
            publish(
                self.path(key),
                [memoryview(encoded), body],
                fsync=self._fsync,
                sharing=self._sharing,
                base=self._root,
            )
        except OSError as error:
            return self._failed(key, error)
        return Stored(len(body))

    def _write_together(self, chunks: Sequence[Transfer]) -> list[WriteOutcome]:
        geometry = self._geometries[group_of(chunks[0][0])]
        file = self._new_keys()
        described = self._described(chunks, geometry, file)
        paths = [self.path(key) for key, _, _ in chunks]
        wanted = dict(zip(paths, chunks, strict=True))

        def keep(path: str) -> bool:
            key, _, first_block = wanted[path]
            return self._stands(key, first_block)

        try:
            made = publish_linked(
                paths,
                _content(described, file),
                keep=keep,
                fsync=self._fsync,
                sharing=self._sharing,
                base=self._root,
            )
        except OSError as error:
            return [self._failed(key, error) for key, _, _ in chunks]
        return [
            self._outcome(one, chunk, header)
            for one, chunk, (header, _) in zip(made, chunks, described, strict=True)
        ]

    def _new_keys(self) -> "FileKeys | None":
        return None if self._keyring is None else self._keyring.new(self._fingerprint)

    def _described(
        self, chunks: Sequence[Transfer], geometry: GroupGeometry, file: "FileKeys | None"
    ) -> list[tuple[RecordHeader, memoryview]]:
        """For each chunk of a file, its header and the bytes that are stored of it.

        What is encrypted is a thread's own memory, and good until it writes the next file.
        """
        if file is None:
            return [
                (header, _body(header, payload))
                for key, payload, first in chunks
                for tenant in [self.owners.of(key)]
                for header in [describe(self._fingerprint, key, geometry, payload, first, tenant)]
            ]
        encrypts = file.seal.kind is SealKind.ENCRYPTED
        room = self._room(len(chunks) * geometry.payload_bytes + DIGEST_BYTES if encrypts else 0)
        described = []
        for number, (key, payload, first) in enumerate(chunks):
            tenant = self.owners.of(key)
            keys = file.chunk(number, tenant)
            header = describe(
                self._fingerprint, key, geometry, payload, first, tenant, keys=keys, into=room
            )
            body = room[: header.payload_bytes] if encrypts else _body(header, payload)
            described.append((header, body))
            room = room[header.payload_bytes :] if encrypts else room
        return described

    def _room(self, nbytes: int) -> memoryview:
        room: bytearray = getattr(self._rooms, "room", bytearray())
        if len(room) < nbytes:
            room = self._rooms.room = bytearray(nbytes)
        return memoryview(room)

    def _outcome(self, made: bool | OSError, chunk: Transfer, header: RecordHeader) -> WriteOutcome:
        if made is True:
            return Stored(header.payload_bytes)
        if made is False:
            return Present()
        if made.errno not in _WITHOUT_LINKS:
            return self._failed(chunk[0], made)
        if made.errno != errno.EMLINK and self._segment_bytes:
            self._segment_bytes = 0
            logger.warning(
                "no hard links can be made below %s (%s); each chunk gets a file of its own, which "
                "takes longer for small ones (option 'segment')",
                self._base,
                made.strerror,
            )
        return self._write_one(*chunk)

    def _stands(self, key: ChunkKey, first_block: int) -> bool:
        """Whether the chunk is there already, at least from this block on.

        Raises:
            OSError: as the operating system reports it.
        """
        geometry = self._geometries[group_of(key)]
        try:
            fd = os.open(self.path(key), TO_READ)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in NO_FILES:
                return False  # a link, or what else it is, is replaced
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return False
            expected = header_bytes(geometry.blocks_per_chunk, sealed=self._keyring is not None)
            header, start = find_chunk(fd, key, expected, self._keyring)
            check_identity(header, self._fingerprint, key, geometry)
            whole = status.st_size >= start + header.payload_bytes
            return whole and header.first_block <= first_block
        except RecordError:
            return False  # whatever it is, a good one may take its place
        finally:
            os.close(fd)

    def _failed(self, key: ChunkKey, error: OSError) -> Failed:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        return Failed(name, f"{self.path(key)}: {error.strerror}")


def _body(header: RecordHeader, payload: memoryview) -> memoryview:
    """The blocks that are stored."""
    return payload[header.first_block * header.block_bytes : header.blocks * header.block_bytes]


def _content(
    described: Sequence[tuple[RecordHeader, memoryview]], file: "FileKeys | None"
) -> list[memoryview]:
    """All of a segment's bytes."""
    headers = [header for header, _ in described]
    offsets = segment.lay_out(headers)
    table = (
        segment.encode(headers, offsets)
        if file is None
        else segment.encode(headers, offsets, file.mark)
    )
    buffers = [memoryview(table)]
    end = len(table)
    zeros = memoryview(bytes(PAGE))
    for (header, body), offset in zip(described, offsets, strict=True):
        if offset > end:
            buffers.append(zeros[: offset - end])
        buffers.append(body)
        end = offset + header.payload_bytes
    return buffers
