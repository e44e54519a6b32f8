"""Reading chunks out of open files; every byte is verified while it is in the processor's cache."""

from collections.abc import Sequence
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
from kvstrata.tiers.runs import Piece, bring, cut
from kvstrata.tiers.tier import Transfer

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import ChunkKeys, Keyring

Brought = int | None | RecordError | OSError
"""Bytes of the blocks that were asked for, all in their places; None where the file lacks some of them (the
buffer is as it was); or why they cannot be had."""


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
        # Properties that are added up anew each time.
        self.block_bytes = geometry.block_bytes
        self.payload_bytes = geometry.payload_bytes
        self._policy = policy

    def open(self, fd: int, nbytes: int) -> "OpenFile":
        """Find out what an open file holds; the caller closes what it gets, and then the file.

        Args:
            fd: of the file; stays open.
            nbytes: that will probably be read of it.

        Raises:
            RecordError: it is a segment that cannot be used. What else it is shows when it is read.
            OSError: as the operating system reports it.
        """
        source = Reading(fd, self._policy, nbytes)
        try:
            head = bytearray(self.header_bytes)
            count = source.header(memoryview(head), 0)
            table = None
            if segment.is_segment(head):
                table = _table(fd, memoryview(head)[:count], self.keyring)
        except BaseException:
            source.close()
            raise
        return OpenFile(fd, source, self, head if count == len(head) else None, table)


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
        self._size = reader.block_bytes
        self._end = reader.payload_bytes
        self.table = table

    def close(self) -> None:
        """Nothing more is read."""
        self._source.close()

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
        start, tags, tags_at, payload, keys = self._place(key)
        if start > first_block:
            return None
        size, most = self._size, self._source.step_bytes
        base = payload - start * size
        tags_at -= start * DIGEST_BYTES
        step = max(1, most // max(size, 1)) * size
        for low in range(first_block * size, self._end, step or 1):
            high = min(low + step, self._end)
            block = low // size
            at = tags_at + block * DIGEST_BYTES
            if size <= most or keys is not None:
                wrong = self._check(key, self._fill(into, low, high, base), tags, at, block, keys)
            else:
                whole = self._digest(into, low, high, base) == tags[at : at + DIGEST_BYTES]
                wrong = None if whole else _differs(key, block)
            if wrong is not None:
                raise wrong
        return self._end - first_block * size

    def read_together(self, wanted: Sequence[Transfer]) -> list[Brought]:
        """The same for several chunks of a segment, with as few calls as their sizes allow.

        Args:
            wanted: key, buffer and first block of each; different keys.
        """
        assert self.table is not None
        reader, size, end, table = self._reader, self._size, self._end, self.table
        held = table.entries if table.fits(reader.namespace, reader.geometry) else {}
        brought: list[Brought] = [None] * len(wanted)
        pieces: list[Piece] = []
        for index, (key, into, first_block) in enumerate(wanted):
            entry = held.get(key)
            if entry is None:
                brought[index] = self._alone(key, into, first_block)  # says why
                continue
            skipped = first_block - entry[0]
            if skipped >= 0:
                at, tags_at = entry[1] + skipped * size, entry[2] + skipped * DIGEST_BYTES
                pieces.append((at, into[first_block * size : end], index, tags_at))
        pieces.sort(key=itemgetter(0))
        gap = memoryview(bytearray(PAGE))
        tags = table.data.tobytes()
        plain = table.keys is None
        for run in cut(pieces, self._source.step_bytes):
            if not bring(self._source, run, gap):  # each alone, to tell which of them are good
                for _, _, index, _ in run:
                    brought[index] = self._alone(*wanted[index])
                continue
            for _, part, index, tags_at in run:
                nbytes = len(part)
                if (
                    plain
                    and nbytes == size
                    and digest(part) == tags[tags_at : tags_at + DIGEST_BYTES]
                ):
                    brought[index] = nbytes
                    continue
                key, _, first_block = wanted[index]
                keys = table.keys_of(key)
                brought[index] = self._check(key, part, tags, tags_at, first_block, keys) or nbytes
        return brought

    def _place(self, key: ChunkKey) -> tuple[int, Buffer, int, int, "ChunkKeys | None"]:
        """First stored block; its checksum, followed by those of the next ones: in which bytes, and where;
        where the block stands in the file; and what opens it."""
        reader = self._reader
        if self.table is not None:
            self.table.check(reader.namespace, key, reader.geometry)
            entry = self.table.entries[key]
            keys = self.table.keys_of(key)
            return entry.first_block, self.table.data, entry.checksums_at, entry.offset, keys
        head = self._head
        if head is not None and reader.keyring is None:
            start = reader.expected.first_block(head, key)
            if start is not None:
                return start, head, CHECKSUMS_AT, len(head), None
        header = _read_header(self._fd, reader.header_bytes, reader.keyring, head)
        check_identity(header, reader.namespace, key, reader.geometry)
        return header.first_block, header.table, 0, header.header_bytes, header.keys

    def _alone(self, key: ChunkKey, into: memoryview, first_block: int) -> Brought:
        try:
            return self.read(key, into, first_block)
        except (RecordError, OSError) as error:
            return error

    def _fill(self, into: memoryview, low: int, high: int, base: int) -> memoryview:
        """Bytes `low` to `high` of the buffer, whose first byte stands at `base` in the file, read.

        Raises:
            RecordError: the file ends before.
        """
        part = into[low:high]
        got = self._source.read_at((part,), base + low)
        if got < high - low:
            raise RecordError(BadReason.TRUNCATED, f"ends at byte {base + low + got}")
        return part

    def _digest(self, into: memoryview, low: int, high: int, base: int) -> bytes:
        """Checksum of one large block, piece by piece as it comes; see `_fill`."""
        running = digest_in_parts()
        step = self._source.step_bytes
        for begin in range(low, high, step):
            running.update(self._fill(into, begin, min(begin + step, high), base))
        return running.digest()

    def _check(
        self,
        key: ChunkKey,
        data: memoryview,
        tags: Buffer,
        tags_at: int,
        first_block: int,
        keys: "ChunkKeys | None",
    ) -> RecordError | None:
        """What is wrong with blocks from `first_block` on, as their checksums say; they are readable then.

        Args:
            key: of their chunk.
            data: the blocks.
            tags: their checksums or tags, from byte `tags_at` on.
            tags_at: see above.
            first_block: number of the first of them.
            keys: of a sealed chunk.
        """
        size = self._size
        for number in range(len(data) // size if size else 0):
            at = tags_at + number * DIGEST_BYTES
            part = data[number * size : (number + 1) * size]
            tag = tags[at : at + DIGEST_BYTES]
            right = (
                keys.open(first_block + number, part, tag)
                if keys is not None
                else digest(part) == tag
            )
            if not right:
                return _differs(key, first_block + number)
        return None


def _differs(key: ChunkKey, block: int) -> RecordError:
    return RecordError(BadReason.CHECKSUM, f"block {block} of {key.hex()}")


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
