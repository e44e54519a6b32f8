"""Headers of known files, changed as an input says, and checksums of those that are otherwise wrong."""

from kvstrata.chunks import record
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.keyring import Keyring
from kvstrata.chunks.sealing import Seal, SealKind
from kvstrata.errors import RecordError
from lab import golden
from lab.fuzz import documented
from lab.fuzz.taking import Taking, edit

MOST_BYTES = 1 << 16
"""Of a header or a table that is made longer, as it says it is."""
CHECKSUM = slice(64, 80)
KEYRING = Keyring([golden.MASTER])
"""Opens all seals, and takes files without."""
WIDE = GroupGeometry(0, GroupKind.FULL, 16, 250, (8,))
"""Of chunks whose headers have two pages."""


def known_heads() -> list[tuple[bytes, bytes]]:
    """Headers and tables of stored files: as they are, and the namespaces that they belong to."""
    heads = []
    for name in golden.ROOTS:
        namespace = golden.namespace_of(name)
        for path in sorted((golden.STORED / name / namespace.directory_name).rglob("*.kv")):
            heads.append((path.read_bytes()[: record.PAGE], namespace.fingerprint))
    fingerprint = golden.namespace_of("plain").fingerprint
    key = golden.RECORDS[0].key
    sums = (bytes(16),) * WIDE.blocks_per_chunk
    wide = record.RecordHeader(
        fingerprint, key, len(sums), 0, WIDE.tokens_per_block, WIDE.block_bytes, sums
    )
    return [*heads, (record.encode(wide), fingerprint)]


def head_of(taking: Taking, heads: list[tuple[bytes, bytes]]) -> bytes:
    """A header or table: see the module."""
    flags = taking.number()
    if flags & 1:
        chosen = taking.number()
        content = bytearray(heads[chosen % len(heads)][0])
        edit(taking, content, heads[(chosen // 16) % len(heads)][0])
    else:
        content = bytearray(taking.rest())
    if flags & 2 and len(content) >= 16:
        declared = int.from_bytes(content[12:16], "little")
        content.extend(bytes(max(min(declared, MOST_BYTES) - len(content), 0)))
    if flags & 4:
        repair(content)
    return bytes(content)


def repair(content: bytearray) -> None:
    """Make the checksum of a header or table what it should be, where it says how long it is."""
    length = int.from_bytes(content[12:16], "little")
    if not 80 <= length <= len(content):
        return
    head = content[:length]
    head[CHECKSUM] = bytes(16)
    if bytes(head[8:12]) in (b"\3\0\0\0", b"\4\0\0\0"):
        content[CHECKSUM] = _mark(head)
    else:
        content[CHECKSUM] = documented.checksum(bytes(head))


def _mark(head: bytearray) -> bytes:
    """The tag of a sealed header, which only who has the key can make."""
    kind = int.from_bytes(head[34:36], "little")
    offset = record.CHECKSUMS_AT if head[8] == 3 else 80
    if kind not in tuple(SealKind) or len(head) < offset + 32:
        return bytes(16)
    key_id, salt = bytes(head[offset : offset + 8]), bytes(head[offset + 16 : offset + 32])
    try:
        return KEYRING.find(Seal(SealKind(kind), key_id, salt), bytes(head[16:32])).mark(head)
    except RecordError:
        return bytes(16)
