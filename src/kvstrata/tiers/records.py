"""Reading chunks out of open files; every byte is verified while it is in the processor's cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING

from kvstrata.chunks import segment
from kvstrata.chunks.checksum import DIGEST_BYTES, Buffer, digest, digest_in_parts
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey
from kvstrata.chunks.record import (
    CHECKSUMS_AT,
    PAGE,
    ExpectedHeader,
    RecordHeader,
    check_identity,
    declared_header_bytes,
    decode,
    header_bytes,
)
from kvstrata.chunks.segment import Segment
from kvstrata.errors import BadReason, RecordError
from kvstrata.fileio.direct import DirectPolicy, Reading
from kvstrata.fileio.transfer import read_at
from kvstrata.tiers.tier import Transfer

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import ChunkKeys, Keyring

Brought = int | None | RecordError | OSError
"""Bytes of the blocks that were asked for, all in their places; None where the file lacks some of them (the
buffer is as it was); or why they cannot be had."""


Piece = tuple[int, memoryview, int, int]
"""Of a segment's chunk: where it stands in the file, where it goes, which one it is, and where its checksums
stand in the table."""


class RecordReader:
    """Reads chunks of one group; for several threads at once.

    A header that is as expected is not taken apart: of a small chunk's read, the interpreter's share is what
    costs.

    Args:
        namespace: fingerprint, 16 bytes.
        geometry: of the group.
        policy: whether files are read past the page cache.
        keyring: of an engine that seals: what has no seal is nothing to it.
    """

    def __init__(
        self,
        namespace: bytes,
        geometry: GroupGeometry,
        policy: DirectPolicy,
        keyring: "Keyring | None" = None,
    ) -> None:
        self.namespace = namespace
        self.geometry = geometry
        self.keyring = keyring
        self.expected = ExpectedHeader(namespace, geometry)
        self.header_bytes = (
            self.expected.header_bytes
            if keyring is None
            else header_bytes(geometry.blocks_per_chunk, sealed=True)
        )
        self._policy = policy

    @contextmanager
    def open(self, fd: int, nbytes: int) -> Iterator["OpenFile"]:
        """Find out what an open file holds.

        Args:
            fd: of the file; stays open.
            nbytes: that will probably be read of it.

        Raises:
            RecordError: it is a segment that cannot be used. What else it is shows when it is read.
            OSError: as the operating system reports it.
        """
        with Reading(fd, self._policy, nbytes) as source:
            head = bytearray(self.header_bytes)
            count = source.header(memoryview(head), 0)
            table = None
            if segment.is_segment(head):
                table = _table(fd, memoryview(head)[:count], self.keyring)
            yield OpenFile(fd, source, self, head if count == len(head) else None, table)


class OpenFile:
    """One open file of chunks; for one thread.

    Attributes:
        table: of a segment; None for anything else.

    Args:
        fd: of the file.
        source: the way to its bytes.
        reader: of the chunks' group.
        head: the file's beginning, as long as a whole chunk's header; None where the file is shorter.
        table: see above.
    """

    def __init__(
        self,
        fd: int,
        source: Reading,
        reader: RecordReader,
        head: bytearray | None,
        table: Segment | None,
    ) -> None:
        self._fd = fd
        self._source = source
        self._reader = reader
        self._head = head
        self._size = reader.geometry.block_bytes
        self._end = reader.geometry.payload_bytes
        self.table = table

    def read(self, key: ChunkKey, into: memoryview, first_block: int) -> int | None:
        """Bring blocks `first_block` to the chunk's end into their places and verify each.

        Args:
            key: of the chunk.
            into: writable uint8 view of the whole chunk's `payload_bytes`.
            first_block: where to start.

        Returns:
            Bytes of these blocks; None where the file lacks some of them.

        Raises:
            RecordError: it cannot be used.
            OSError: as the operating system reports it.
        """
        start, table, payload, keys = self._place(key)
        if start > first_block:
            return None
        run = _Run(self._source, into, payload - start * self._size)
        self._verify(run, key, table[(first_block - start) * DIGEST_BYTES :], first_block, keys)
        return self._end - first_block * self._size

    def read_together(self, wanted: Sequence[Transfer]) -> list[Brought]:
        """The same for several chunks of a segment, with as few calls as their sizes allow.

        Args:
            wanted: key, buffer and first block of each; different keys.
        """
        assert self.table is not None
        size, table = self._size, self.table
        brought: list[Brought] = [None] * len(wanted)
        pieces: list[Piece] = []
        for index, (key, into, first_block) in enumerate(wanted):
            try:
                table.check(self._reader.namespace, key, self._reader.geometry)
            except RecordError as error:
                brought[index] = error
                continue
            start, offset, checksums_at, *_ = table.entries[key]
            if start <= first_block:
                offset += (first_block - start) * size
                checksums_at += (first_block - start) * DIGEST_BYTES
                pieces.append((offset, into[first_block * size : self._end], index, checksums_at))
        pieces.sort(key=itemgetter(0))
        gap = memoryview(bytearray(PAGE))
        for step in _steps(pieces, self._source.step_bytes):
            whole = _read_step(self._source, step, gap)
            for _, part, index, checksums_at in step:
                key, into, first_block = wanted[index]
                if whole:
                    tags = table.data[checksums_at:]
                    wrong = self._check(key, part, tags, first_block, table.keys_of(key))
                    brought[index] = wrong or len(part)
                else:  # each alone, to tell which of them are good
                    brought[index] = self._alone(key, into, first_block)
        return brought

    def _place(self, key: ChunkKey) -> tuple[int, memoryview, int, "ChunkKeys | None"]:
        """First stored block, its checksum and the following ones, where it stands in the file, and what
        opens it."""
        reader = self._reader
        if self.table is not None:
            self.table.check(reader.namespace, key, reader.geometry)
            entry = self.table.entries[key]
            tags = self.table.checksums(key, entry.first_block)
            return entry.first_block, tags, entry.offset, self.table.keys_of(key)
        head = self._head
        if head is not None and reader.keyring is None:
            start = reader.expected.first_block(head, key)
            if start is not None:
                return start, memoryview(head)[CHECKSUMS_AT:], len(head), None
        header = _read_header(self._fd, reader.header_bytes, reader.keyring, head)
        check_identity(header, reader.namespace, key, reader.geometry)
        return header.first_block, memoryview(header.table), header.header_bytes, header.keys

    def _alone(self, key: ChunkKey, into: memoryview, first_block: int) -> Brought:
        try:
            return self.read(key, into, first_block)
        except (RecordError, OSError) as error:
            return error

    def _verify(
        self,
        run: "_Run",
        key: ChunkKey,
        table: memoryview,
        first_block: int,
        keys: "ChunkKeys | None",
    ) -> None:
        """Fill and check blocks; `table` begins with the checksum of `first_block`."""
        size, most = self._size, self._source.step_bytes
        step = max(1, most // max(size, 1)) * size
        for low in range(first_block * size, self._end, step or 1):
            high = min(low + step, self._end)
            block = low // size
            at = (block - first_block) * DIGEST_BYTES
            if size <= most or keys is not None:
                wrong = self._check(key, run.fill(low, high), table[at:], block, keys)
            else:
                whole = run.digest(low, high, most) == table[at : at + DIGEST_BYTES]
                wrong = None if whole else _differs(key, block)
            if wrong is not None:
                raise wrong

    def _check(
        self,
        key: ChunkKey,
        data: memoryview,
        table: Buffer,
        first_block: int,
        keys: "ChunkKeys | None",
    ) -> RecordError | None:
        """What is wrong with blocks from `first_block` on, as their checksums say; they are readable then."""
        size = self._size
        if keys is not None:
            for number in range(len(data) // size if size else 0):
                tag = table[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
                part = data[number * size : (number + 1) * size]
                if not keys.open(first_block + number, part, tag):
                    return _differs(key, first_block + number)
            return None
        if len(data) == size:
            return None if digest(data) == table[:DIGEST_BYTES] else _differs(key, first_block)
        for number in range(len(data) // size if size else 0):
            at = number * DIGEST_BYTES
            if digest(data[number * size : (number + 1) * size]) != table[at : at + DIGEST_BYTES]:
                return _differs(key, first_block + number)
        return None


def _differs(key: ChunkKey, block: int) -> RecordError:
    return RecordError(BadReason.CHECKSUM, f"block {block} of {key.hex()}")


def _steps(pieces: Sequence[Piece], step_bytes: int) -> list[list[Piece]]:
    """Cut pieces of a file, in order, into runs that follow each other, each read by one call."""
    steps: list[list[Piece]] = []
    nbytes, end = 0, -1
    for piece in pieces:
        offset, part, _, _ = piece
        follows = 0 <= offset - end < PAGE
        if not follows or nbytes + len(part) > step_bytes:
            steps.append([])
            nbytes = 0
        steps[-1].append(piece)
        nbytes += len(part)
        end = offset + len(part)
    return steps


def _read_step(source: Reading, step: Sequence[Piece], gap: memoryview) -> bool:
    """Read pieces that follow each other; what stands between them goes to `gap`. Whether all came."""
    first = step[0][0]
    buffers: list[memoryview] = []
    at = first
    for offset, part, _, _ in step:
        if offset > at:
            buffers.append(gap[: offset - at])
        buffers.append(part)
        at = offset + len(part)
    try:
        return source.read_at(buffers, first) == at - first
    except OSError:
        return False


class _Run:
    """Bytes of a file on their way to the same positions of a buffer.

    Args:
        source: the way to the file's bytes.
        into: the buffer.
        base: position in the file of the buffer's first byte.
    """

    def __init__(self, source: Reading, into: memoryview, base: int) -> None:
        self._source = source
        self._into = into
        self._base = base

    def fill(self, low: int, high: int) -> memoryview:
        """Bytes `low` to `high` of the buffer, read. Raises RecordError where the file ends before."""
        part = self._into[low:high]
        got = self._source.read_at([part], self._base + low)
        if got < high - low:
            raise RecordError(BadReason.TRUNCATED, f"ends at byte {self._base + low + got}")
        return part

    def digest(self, low: int, high: int, step: int) -> bytes:
        """Checksum of one large block, piece by piece as it comes."""
        running = digest_in_parts()
        for begin in range(low, high, step):
            running.update(self.fill(begin, min(begin + step, high)))
        return running.digest()


def find_chunk(
    fd: int,
    key: ChunkKey,
    expected_bytes: int = PAGE,
    keyring: "Keyring | None" = None,
    *,
    check: bool = True,
) -> tuple[RecordHeader, int]:
    """What an open file, a record or a segment, says of a chunk.

    Args:
        fd: of the file.
        key: of the chunk; a record may say another, which is for the caller to compare.
        expected_bytes: how long a record's header probably is.
        keyring, check: see `kvstrata.chunks.record.decode`.

    Returns:
        The header of the chunk's record, or what it would be; where in the file its first block stands.

    Raises:
        RecordError: see `kvstrata.chunks.record.decode` and `kvstrata.chunks.segment.decode`; `KEY`
            where a segment does not hold it.
        OSError: as the operating system reports it.
    """
    head = memoryview(bytearray(expected_bytes))
    head = head[: read_at(fd, [head], 0)]
    if segment.is_segment(head):
        table = _table(fd, head, keyring, check=check)
        header = table.header(key)
        return header, table.entries[key].offset
    header = _read_header(fd, expected_bytes, keyring, check=check)
    return header, header.header_bytes


def tenant_of(fd: int, key: ChunkKey) -> bytes:
    """Whose a chunk is, as the file says that holds it: 8 bytes, zeros where nobody's.

    The file's word is taken for it: it is not checked against damage, and no key is needed.

    Raises:
        RecordError, OSError: see `find_chunk`.
    """
    return find_chunk(fd, key, check=False)[0].tenant


def chunks_in(fd: int) -> list[ChunkKey]:
    """Keys of the chunks that an open segment says it was made of; none of anything else. Unchecked.

    Raises:
        RecordError: see `kvstrata.chunks.segment.decode`.
        OSError: as the operating system reports it.
    """
    head = memoryview(bytearray(PAGE))
    head = head[: read_at(fd, [head], 0)]
    return list(_table(fd, head, None, check=False).entries) if segment.is_segment(head) else []


def _table(fd: int, head: memoryview, keyring: "Keyring | None", *, check: bool = True) -> Segment:
    """The table of an open segment that begins with `head`."""
    if len(head) >= PAGE and len(head) < (length := segment.declared_table_bytes(head)):
        head = memoryview(bytearray(length))
        head = head[: read_at(fd, [head], 0)]
    return segment.decode(head, keyring, check=check)


def _read_header(
    fd: int,
    expected_bytes: int,
    keyring: "Keyring | None",
    head: bytearray | None = None,
    *,
    check: bool = True,
) -> RecordHeader:
    """The header of an open record, which begins with `head` where that is known."""
    data = memoryview(bytearray(expected_bytes) if head is None else head)
    if head is None:
        data = data[: read_at(fd, [data], 0)]
    if len(data) < (length := declared_header_bytes(data)):
        data = memoryview(bytearray(length))
        data = data[: read_at(fd, [data], 0)]
    return decode(data, keyring, check=check)
