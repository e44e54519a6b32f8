"""The record: how one chunk stands in a file.

A record is a header (whole pages) and the payload, block after block. The header holds a checksum for
each block, so that any run of blocks can be read and verified alone, and a checksum of itself. All
integers are little endian. `docs/on-disk-format.md` describes it for readers in other languages.

::

    offset  bytes  field
         0      8  magic "KVSTRATA"
         8      4  record version (1)
        12      4  header bytes, a multiple of 4096; the payload starts there
        16     16  namespace fingerprint
        32      2  key length K (hash and group index)
        34      2  checksum algorithm (1 = XXH3-128)
        36      4  blocks of a whole chunk, B
        40      4  first block stored, F: the payload holds blocks F .. B-1
        44      4  tokens of a block
        48      8  bytes of a block (all ranks)
        56      8  tenant; zeros where there is none
        64     16  checksum of the header with these 16 bytes zero
        80     64  key, padded with zeros
       144     ..  (B - F) block checksums of 16 bytes, then zeros to the end of the header

A sealed record (version 3) has tags in place of checksums, the kind of its seal where others name the
checksum's algorithm, and 32 bytes of seal between the key and the table (`kvstrata.chunks.sealing`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstrata.chunks.checksum import DIGEST_BYTES, Buffer, digest
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey
from kvstrata.chunks.sealing import SEAL_BYTES, Seal, file_keys, read_seal
from kvstrata.errors import BadReason, RecordError

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import ChunkKeys, Keyring

MAGIC = b"KVSTRATA"
RECORD_VERSION = 1
SEALED_RECORD_VERSION = 3
CHECKSUM_ID = 1
PAGE = 4096
MAX_KEY_BYTES = 64
FINGERPRINT_BYTES = 16
TENANT_BYTES = 8
NO_TENANT = bytes(TENANT_BYTES)
"""Of chunks that belong to nobody in particular."""
_FIXED = struct.Struct("<8sII16sHHIIIQ8s16s64s")
_SELF_CHECKSUM = slice(64, 80)
CHECKSUMS_AT = _FIXED.size
"""Byte of the header at which the blocks' checksums begin; of a sealed one, the seal."""
MAX_BLOCKS = 1 << 20
"""Larger block counts are refused: no engine makes them, a damaged header can."""


def header_bytes(stored_blocks: int, *, sealed: bool = False) -> int:
    """Bytes of the header of a record that stores `stored_blocks` blocks; a multiple of 4096."""
    used = _FIXED.size + SEAL_BYTES * sealed + DIGEST_BYTES * stored_blocks
    return -(-used // PAGE) * PAGE


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """A decoded header.

    Attributes:
        namespace: fingerprint of the namespace, 16 bytes.
        key: the chunk's key.
        blocks: blocks of a whole chunk.
        first_block: index of the first block stored; a chunk whose oldest blocks had left a sliding
            window when it was stored has none of these.
        tokens_per_block: tokens.
        block_bytes: bytes of one block over all ranks.
        checksums: 16 bytes for each stored block, in order; tags where it is sealed.
        tenant: a mark of 8 bytes of whoever's prompt it was; never the salt itself.
        seal: None where it is not sealed.
        keys: of a sealed chunk's blocks; None where it was decoded without.
    """

    namespace: bytes
    key: ChunkKey
    blocks: int
    first_block: int
    tokens_per_block: int
    block_bytes: int
    checksums: tuple[bytes, ...]
    tenant: bytes = NO_TENANT
    seal: Seal | None = None
    keys: ChunkKeys | None = field(default=None, compare=False, repr=False)

    @property
    def header_bytes(self) -> int:
        """Bytes before the payload."""
        return header_bytes(self.blocks - self.first_block, sealed=self.seal is not None)

    @property
    def table(self) -> bytes:
        """The checksums as they stand in the header."""
        return b"".join(self.checksums)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the stored blocks."""
        return self.block_bytes * (self.blocks - self.first_block)

    @property
    def record_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.header_bytes + self.payload_bytes

    def block_offset(self, block: int) -> int:
        """Byte offset of `block` in the file; `block` counts from the start of the whole chunk."""
        assert self.first_block <= block <= self.blocks
        return self.header_bytes + self.block_bytes * (block - self.first_block)

    def verify(self, block: int, data: Buffer) -> None:
        """Check one block's bytes as they stand in the file; those that are encrypted become readable.

        Raises:
            RecordError: `CHECKSUM`, when they are not the bytes that were stored.
        """
        expected = self.checksums[block - self.first_block]
        if self.seal is None:
            right = digest(data) == expected
        else:
            assert self.keys is not None
            right = self.keys.open(block, memoryview(data), expected)
        if not right:
            raise RecordError(BadReason.CHECKSUM, f"block {block} of {self.key.hex()}")


def describe(
    namespace: bytes,
    key: ChunkKey,
    geometry: GroupGeometry,
    payload: memoryview,
    first_block: int = 0,
    tenant: bytes = NO_TENANT,
    *,
    keys: ChunkKeys | None = None,
    into: memoryview | None = None,
) -> RecordHeader:
    """Header for a chunk.

    Args:
        namespace: fingerprint, 16 bytes.
        key: the chunk's key.
        geometry: of the key's group.
        payload: uint8 view of `geometry.payload_bytes` bytes, in whole-chunk layout.
        first_block: blocks before this one are not valid and will not be stored.
        tenant: whose it is, 8 bytes.
        keys: for a chunk that is to be sealed.
        into: see `ChunkKeys.close`; with `keys`.
    """
    size = geometry.block_bytes
    numbers = range(first_block, geometry.blocks_per_chunk)
    blocks = [payload[block * size : (block + 1) * size] for block in numbers]
    checksums = map(digest, blocks) if keys is None else keys.close(blocks, first_block, into)
    return RecordHeader(
        namespace=namespace,
        key=key,
        blocks=geometry.blocks_per_chunk,
        first_block=first_block,
        tokens_per_block=geometry.tokens_per_block,
        block_bytes=size,
        checksums=tuple(checksums),
        tenant=tenant,
        seal=None if keys is None else keys.seal,
        keys=keys,
    )


def encode(header: RecordHeader, mark: Callable[[bytearray], bytes] = digest) -> bytes:
    """The header's bytes, `header.header_bytes` long; the payload follows them in the file.

    Args:
        header: of the record.
        mark: makes the header's own checksum; of a sealed record, `FileKeys.mark`.
    """
    assert len(header.namespace) == FINGERPRINT_BYTES and len(header.key) <= MAX_KEY_BYTES
    assert len(header.tenant) == TENANT_BYTES
    out = bytearray(header.header_bytes)
    _FIXED.pack_into(
        out,
        0,
        MAGIC,
        RECORD_VERSION if header.seal is None else SEALED_RECORD_VERSION,
        header.header_bytes,
        header.namespace,
        len(header.key),
        CHECKSUM_ID if header.seal is None else header.seal.kind,
        header.blocks,
        header.first_block,
        header.tokens_per_block,
        header.block_bytes,
        header.tenant,
        bytes(DIGEST_BYTES),
        header.key,
    )
    behind = (b"" if header.seal is None else header.seal.pack()) + header.table
    out[CHECKSUMS_AT : CHECKSUMS_AT + len(behind)] = behind
    out[_SELF_CHECKSUM] = mark(out)
    return bytes(out)


def declared_header_bytes(data: Buffer) -> int:
    """How long the header says it is, from its first page; for readers that do not know the geometry.

    Raises:
        RecordError: `TRUNCATED`, `FOREIGN` or `VERSION`.
    """
    if len(data) < _FIXED.size:
        raise RecordError(BadReason.TRUNCATED, f"{len(data)} bytes are no header")
    magic, version, length = struct.unpack_from("<8sII", data)
    if magic != MAGIC:
        raise RecordError(BadReason.FOREIGN, "magic number is not KVSTRATA")
    if version not in (RECORD_VERSION, SEALED_RECORD_VERSION):
        raise RecordError(BadReason.VERSION, f"record version {version}, expected {RECORD_VERSION}")
    if length % PAGE or not PAGE <= length <= header_bytes(MAX_BLOCKS, sealed=True):
        raise RecordError(BadReason.HEADER, f"header length {length} is impossible")
    return int(length)


def decode(data: Buffer, keyring: Keyring | None = None, *, check: bool = True) -> RecordHeader:
    """Decode and check a header.

    Args:
        data: at least the whole header; more is ignored.
        keyring: to open seals, and which of them count; see `Keyring.kind`.
        check: whether its own checksum must be right; where not, a seal needs no key and nothing that a
            sealed header says is sure.

    Raises:
        RecordError: `TRUNCATED`, `FOREIGN`, `VERSION`, `SEALED`, `HEADER` (checksum or fields impossible).
    """
    length = declared_header_bytes(data)
    if len(data) < length:
        raise RecordError(BadReason.TRUNCATED, f"header of {length} bytes, {len(data)} present")
    raw = bytearray(memoryview(data)[:length])
    stored = bytes(raw[_SELF_CHECKSUM])
    raw[_SELF_CHECKSUM] = bytes(DIGEST_BYTES)
    fields = _FIXED.unpack_from(raw)
    _, version, _, namespace, key_length, checksum_id, blocks, first_block = fields[:8]
    tokens_per_block, block_bytes, tenant, _, key = fields[8:]
    seal = read_seal(raw, checksum_id, CHECKSUMS_AT) if version == SEALED_RECORD_VERSION else None
    keys = file_keys(seal, namespace, keyring, "a sealed record") if check else None
    if check and not (digest(raw) == stored if keys is None else keys.marked(raw, stored)):
        raise RecordError(BadReason.HEADER, "header checksum does not match")
    count = blocks - first_block
    if (
        (seal is None and checksum_id != CHECKSUM_ID)
        or not 0 < count <= MAX_BLOCKS
        or key_length > MAX_KEY_BYTES
        or header_bytes(count, sealed=seal is not None) != length
    ):
        raise RecordError(BadReason.HEADER, "header fields contradict each other")
    begin = CHECKSUMS_AT + (SEAL_BYTES if seal else 0)
    table = raw[begin : begin + DIGEST_BYTES * count]
    return RecordHeader(
        namespace=namespace,
        key=key[:key_length],
        blocks=blocks,
        first_block=first_block,
        tokens_per_block=tokens_per_block,
        block_bytes=block_bytes,
        checksums=tuple(
            bytes(table[i : i + DIGEST_BYTES]) for i in range(0, len(table), DIGEST_BYTES)
        ),
        tenant=tenant,
        seal=seal,
        keys=None if keys is None else keys.chunk(0, tenant),
    )


class ExpectedHeader:
    """What headers of one group's chunks look like: tells a good one without taking it apart.

    Attributes:
        header_bytes: of a record that stores all blocks.

    Args:
        namespace: fingerprint, 16 bytes.
        geometry: of the group.
    """

    def __init__(self, namespace: bytes, geometry: GroupGeometry) -> None:
        blocks = geometry.blocks_per_chunk
        none = (bytes(DIGEST_BYTES),) * blocks
        size, tokens = geometry.block_bytes, geometry.tokens_per_block
        example = encode(RecordHeader(namespace, b"", blocks, 0, tokens, size, none))
        self.header_bytes = len(example)
        # With fewer blocks the header would have fewer pages.
        least = max((len(example) - PAGE - _FIXED.size) // DIGEST_BYTES + 1, 1)
        self._firsts = blocks - least + 1
        self._before_key_length = example[:32]
        self._before_first_block = example[34:40]
        self._before_tenant = example[44:56]

    def first_block(self, data: bytearray, key: ChunkKey) -> int | None:
        """First block that the record stores.

        Args:
            data: `header_bytes` bytes from the file's beginning; unchanged when the call returns.
            key: of the chunk.

        Returns:
            None where the header is not as expected: `decode` and `check_identity` know what it is.
        """
        stored = data[_SELF_CHECKSUM]
        first = data[40:44]
        data[_SELF_CHECKSUM] = bytes(DIGEST_BYTES)
        whole = digest(data) == stored
        data[_SELF_CHECKSUM] = stored
        expected = b"".join(
            (
                self._before_key_length,
                len(key).to_bytes(2, "little"),
                self._before_first_block,
                first,
                self._before_tenant,
                data[56:64],
                stored,
                key.ljust(MAX_KEY_BYTES, b"\0"),
            )
        )
        if not whole or data[: _FIXED.size] != expected:
            return None
        block = int.from_bytes(first, "little")
        return block if block < self._firsts else None


def check_identity(
    header: RecordHeader, namespace: bytes, key: ChunkKey, geometry: GroupGeometry
) -> None:
    """Check that a header describes the chunk that was asked for.

    Raises:
        RecordError: `NAMESPACE`, `KEY` or `GEOMETRY`.
    """
    if header.namespace != namespace:
        raise RecordError(BadReason.NAMESPACE, f"belongs to {header.namespace.hex()}")
    if header.key != key:
        raise RecordError(BadReason.KEY, f"holds {header.key.hex()}, wanted {key.hex()}")
    if (
        header.blocks != geometry.blocks_per_chunk
        or header.block_bytes != geometry.block_bytes
        or header.tokens_per_block != geometry.tokens_per_block
    ):
        raise RecordError(
            BadReason.GEOMETRY,
            f"{header.blocks} blocks of {header.block_bytes} bytes and {header.tokens_per_block} "
            f"tokens, expected {geometry.blocks_per_chunk} of {geometry.block_bytes} and "
            f"{geometry.tokens_per_block}",
        )
