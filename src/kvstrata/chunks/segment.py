"""The segment: how several chunks of one group stand in one file. Pure.

A segment begins with a table (whole pages); behind it stand the chunks' blocks, each chunk on a page of its
own. The file stands in the directory under the name of each of its chunks, so whoever looks for one chunk
finds it as it finds a record, and whoever removes one removes a name. The table begins as a record's header
does, with another version, so that a reader that knows only records says so and leaves the file alone. All
integers are little endian. `docs/on-disk-format.md` describes it for readers in other languages.

::

    offset  bytes  field
         0      8  magic "KVSTRATA"
         8      4  record version (2)
        12      4  table bytes, a multiple of 4096
        16     16  namespace fingerprint
        32      2  zero
        34      2  checksum algorithm (1 = XXH3-128)
        36      4  blocks of a whole chunk, B
        40      4  chunks in the file, N
        44      4  tokens of a block
        48      8  bytes of a block (all ranks)
        56      8  zero (reserved)
        64     16  checksum of the table with these 16 bytes zero
        80   80*N  for each chunk: key length (2), zero (2), first block stored F (4), where its blocks
                   stand in the file (8, a multiple of 4096), key (56), tenant (8)
         ..     ..  for each chunk, in the same order: (B - F) block checksums of 16 bytes; then zeros

A sealed segment (version 4) has tags in place of checksums, the kind of its seal where others name the
checksum's algorithm, and 32 bytes of seal before the chunks (`kvstrata.chunks.sealing`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from kvstrata.chunks.checksum import DIGEST_BYTES, Buffer, digest
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey
from kvstrata.chunks.record import (
    CHECKSUM_ID,
    MAGIC,
    MAX_BLOCKS,
    NO_TENANT,
    PAGE,
    TENANT_BYTES,
    RecordHeader,
    check_identity,
)
from kvstrata.chunks.sealing import SEAL_BYTES, Seal, file_keys, read_seal
from kvstrata.errors import BadReason, RecordError

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import ChunkKeys, FileKeys, Keyring

SEGMENT_VERSION = 2
SEALED_SEGMENT_VERSION = 4
MAX_CHUNKS = 4096
"""Larger numbers of chunks are refused: no writer makes them, a damaged table can."""
_FIXED = struct.Struct("<8sII16sHHIIIQQ16s")
MAX_KEY_BYTES = 56
"""Of a chunk that shares a file; vLLM's keys have 36 at most."""
_ENTRY = struct.Struct("<HHIQ56s8s")
_SELF_CHECKSUM = slice(64, 80)
_BEGINNING = struct.pack("<8sI", MAGIC, SEGMENT_VERSION)
_SEALED_BEGINNING = struct.pack("<8sI", MAGIC, SEALED_SEGMENT_VERSION)
_MAX_TABLE = (1 << 24) + PAGE * MAX_CHUNKS
_FILE_END = 1 << 62
"""No file is so long: behind it the system knows no positions."""


class Entry(NamedTuple):
    """Where one chunk stands.

    Attributes:
        first_block: first block that is stored.
        offset: of that block in the file.
        checksums_at: byte of the table at which its blocks' checksums begin.
        tenant: whose it is, 8 bytes.
        number: of the chunk in the file, from 0.
    """

    first_block: int
    offset: int
    checksums_at: int
    tenant: bytes = NO_TENANT
    number: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A decoded table.

    Attributes:
        namespace: fingerprint, 16 bytes.
        blocks: blocks of a whole chunk.
        tokens_per_block: tokens.
        block_bytes: bytes of one block over all ranks.
        entries: the chunks.
        data: the table as it stands in the file.
        seal: None where it is not sealed.
        keys: of a sealed file; None where it was decoded without.
    """

    namespace: bytes
    blocks: int
    tokens_per_block: int
    block_bytes: int
    entries: Mapping[ChunkKey, Entry]
    data: memoryview
    seal: Seal | None = None
    keys: FileKeys | None = None

    def keys_of(self, key: ChunkKey) -> ChunkKeys | None:
        """For the blocks of a chunk that the file holds; None where it is not sealed."""
        entry = self.entries[key]
        return None if self.keys is None else self.keys.chunk(entry.number, entry.tenant)

    def checksums(self, key: ChunkKey, first_block: int) -> memoryview:
        """Checksums of a chunk's blocks from `first_block` on, which must be stored; 16 bytes each."""
        entry = self.entries[key]
        begin = entry.checksums_at + (first_block - entry.first_block) * DIGEST_BYTES
        return self.data[begin : begin + (self.blocks - first_block) * DIGEST_BYTES]

    def header(self, key: ChunkKey) -> RecordHeader:
        """What the header of the chunk's record would say, had it a file of its own.

        Raises:
            RecordError: `KEY`, the file does not hold it.
        """
        entry = self.entries.get(key)
        if entry is None:
            raise RecordError(
                BadReason.KEY, f"holds {len(self.entries)} chunks, {key.hex()} not among them"
            )
        table = bytes(self.checksums(key, entry.first_block))
        return RecordHeader(
            namespace=self.namespace,
            key=key,
            blocks=self.blocks,
            first_block=entry.first_block,
            tokens_per_block=self.tokens_per_block,
            block_bytes=self.block_bytes,
            checksums=tuple(
                table[at : at + DIGEST_BYTES] for at in range(0, len(table), DIGEST_BYTES)
            ),
            tenant=entry.tenant,
            seal=self.seal,
            keys=self.keys_of(key),
        )

    def fits(self, namespace: bytes, geometry: GroupGeometry) -> bool:
        """Whether its chunks are those of this namespace and shape."""
        return (
            self.namespace == namespace
            and self.block_bytes == geometry.block_bytes
            and self.blocks == geometry.blocks_per_chunk
            and self.tokens_per_block == geometry.tokens_per_block
        )

    def check(self, namespace: bytes, key: ChunkKey, geometry: GroupGeometry) -> None:
        """Check that the file holds the chunk that was asked for.

        Raises:
            RecordError: `NAMESPACE`, `KEY` or `GEOMETRY`.
        """
        if key not in self.entries or not self.fits(namespace, geometry):
            if self.namespace != namespace:
                raise RecordError(BadReason.NAMESPACE, f"belongs to {self.namespace.hex()}")
            check_identity(self.header(key), namespace, key, geometry)


def is_segment(data: Buffer) -> bool:
    """Whether a file that begins so is a segment; else it may be a record."""
    return bytes(memoryview(data)[: len(_BEGINNING)]) in (_BEGINNING, _SEALED_BEGINNING)


def table_bytes(chunks: int, stored_blocks: int, *, sealed: bool = False) -> int:
    """Bytes of the table for so many chunks that store so many blocks together; a multiple of 4096."""
    used = _FIXED.size + SEAL_BYTES * sealed + _ENTRY.size * chunks + DIGEST_BYTES * stored_blocks
    return -(-used // PAGE) * PAGE


def lay_out(headers: Sequence[RecordHeader]) -> list[int]:
    """Where in the file each chunk's blocks stand; their pages follow each other in this order."""
    at = _table_bytes_of(headers)
    offsets = []
    for one in headers:
        offsets.append(at)
        at += -(-one.payload_bytes // PAGE) * PAGE
    return offsets


def _table_bytes_of(headers: Sequence[RecordHeader]) -> int:
    blocks = sum(len(one.checksums) for one in headers)
    return table_bytes(len(headers), blocks, sealed=headers[0].seal is not None)


def encode(
    headers: Sequence[RecordHeader],
    offsets: Sequence[int],
    mark: Callable[[bytearray], bytes] = digest,
) -> bytes:
    """The table of a segment.

    Args:
        headers: of its chunks: different keys, one namespace, one geometry; the same seal.
        offsets: see `lay_out`.
        mark: makes the table's own checksum; of a sealed segment, `FileKeys.mark`.
    """
    first = headers[0]
    out = bytearray(_table_bytes_of(headers))
    _FIXED.pack_into(
        out,
        0,
        MAGIC,
        SEGMENT_VERSION if first.seal is None else SEALED_SEGMENT_VERSION,
        len(out),
        first.namespace,
        0,
        CHECKSUM_ID if first.seal is None else first.seal.kind,
        first.blocks,
        len(headers),
        first.tokens_per_block,
        first.block_bytes,
        0,
        bytes(DIGEST_BYTES),
    )
    at = _FIXED.size
    if first.seal is not None:
        out[at : at + SEAL_BYTES] = first.seal.pack()
        at += SEAL_BYTES
    for one, offset in zip(headers, offsets, strict=True):
        assert len(one.key) <= MAX_KEY_BYTES and len(one.tenant) == TENANT_BYTES
        _ENTRY.pack_into(out, at, len(one.key), 0, one.first_block, offset, one.key, one.tenant)
        at += _ENTRY.size
    tables = b"".join(one.table for one in headers)
    out[at : at + len(tables)] = tables
    out[_SELF_CHECKSUM] = mark(out)
    return bytes(out)


def declared_table_bytes(data: Buffer) -> int:
    """How long the table says it is, from its first page.

    Raises:
        RecordError: `HEADER`; the file is taken to be a segment.
    """
    (length,) = struct.unpack_from("<I", data, len(_BEGINNING))
    if length % PAGE or not PAGE <= length <= _MAX_TABLE:
        raise RecordError(BadReason.HEADER, f"table length {length} is impossible")
    return int(length)


def decode(data: Buffer, keyring: Keyring | None = None, *, check: bool = True) -> Segment:
    """Decode and check a table.

    Args:
        data: at least the whole table of a segment (see `is_segment`); more is ignored. Not changed by
            anyone as long as the result is used.
        keyring: to open seals, and which of them count; see `Keyring.kind`.
        check: whether its own checksum must be right; see `kvstrata.chunks.record.decode`.

    Raises:
        RecordError: `TRUNCATED`, `VERSION`, `SEALED`, or `HEADER` (checksum or fields impossible).
    """
    if len(data) < _FIXED.size:
        raise RecordError(BadReason.TRUNCATED, f"{len(data)} bytes are no table")
    length = declared_table_bytes(data)
    if len(data) < length:
        raise RecordError(BadReason.TRUNCATED, f"table of {length} bytes, {len(data)} present")
    raw = bytearray(memoryview(data)[:length])
    stored = raw[_SELF_CHECKSUM]
    raw[_SELF_CHECKSUM] = bytes(DIGEST_BYTES)
    fields = _FIXED.unpack_from(raw)
    _, version, _, namespace, _, checksum_id, blocks, count, tokens, block_bytes, _, _ = fields
    sealed = version == SEALED_SEGMENT_VERSION
    seal = read_seal(raw, checksum_id, _FIXED.size) if sealed else None
    keys = file_keys(seal, namespace, keyring, "a sealed segment") if check else None
    if check and not (digest(raw) == stored if keys is None else keys.marked(raw, stored)):
        raise RecordError(BadReason.HEADER, "table checksum does not match")
    entries_at = _FIXED.size + SEAL_BYTES * sealed
    entries_end = entries_at + _ENTRY.size * count
    if (
        (not sealed and checksum_id != CHECKSUM_ID)
        or not 0 < count <= MAX_CHUNKS
        or not 0 < blocks <= MAX_BLOCKS
        or entries_end > length
    ):
        raise RecordError(BadReason.HEADER, "table fields contradict each other")
    entries, end = _entries(memoryview(raw)[entries_at:entries_end], entries_end, blocks)
    if len(entries) < count or -(-end // PAGE) * PAGE != length:
        raise RecordError(BadReason.HEADER, "table entries contradict each other")
    data = memoryview(raw)
    return Segment(namespace, blocks, tokens, block_bytes, entries, data, seal, keys)


def _entries(data: memoryview, at: int, blocks: int) -> tuple[dict[ChunkKey, Entry], int]:
    """The entries, and where the checksums end that begin at byte `at` of the table."""
    entries: dict[ChunkKey, Entry] = {}
    make = tuple.__new__  # of a segment's read, the interpreter's share is what costs
    for key_length, _, first_block, offset, key, tenant in _ENTRY.iter_unpack(data):
        placed = 0 < offset < _FILE_END and not offset % PAGE
        if key_length > MAX_KEY_BYTES or first_block >= blocks or not placed:
            raise RecordError(BadReason.HEADER, "a table entry is impossible")
        entry = make(Entry, (first_block, offset, at, tenant, len(entries)))
        entries[key[:key_length]] = entry
        at += (blocks - first_block) * DIGEST_BYTES
    return entries, at
