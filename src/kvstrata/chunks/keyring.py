"""Sealing chunks and opening them: AES-256-GCM, with a key for each file.

The keys, in three steps of HKDF-SHA256::

    master key ──info "kvstrata tenant" ‖ tenant──▶ the tenant's key
               ──salt of the file, info "kvstrata file" ‖ kind ‖ namespace──▶ the file's key
               ──nonce: number of the chunk in the file ‖ block──▶ one block's tag

A file's salt is random, so no key is used for two files and its nonces may count. The header, or a segment's
table, has a tag of its own, and holds those of all blocks: whatever it says of namespace, key, tenant, place
and length is covered. Of authenticated chunks the blocks are what GCM calls associated data.

`cryptography` lets other threads run while it works on more than a few bytes.
"""

import hmac
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kvstrata.chunks.checksum import DIGEST_BYTES, Buffer
from kvstrata.chunks.sealing import KEY_ID_BYTES, SALT_BYTES, Seal, SealKind
from kvstrata.errors import BadReason, RecordError

MASTER_BYTES = 32
COPIED_BYTES = 128 << 10
"""Up to here a block is copied together with its tag and opened by one call; above, the copy costs more than
the three calls that opening it in place takes."""
NO_TENANT = bytes(8)
_OF_HEADER = b"\xff" * 12
"""Nonce of the header's tag; no chunk has such a number."""
_KNOWN_TENANTS = 1024
"""Keys of tenants that are remembered; deriving one takes some microseconds."""


def _derive(key: bytes, salt: bytes | None, info: bytes, length: int = MASTER_BYTES) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def key_id(master: bytes) -> bytes:
    """The name of a master key, 8 bytes; tells nothing else about it."""
    return _derive(master, None, b"kvstrata key id", KEY_ID_BYTES)


class ChunkKeys:
    """Seals and opens the blocks of one chunk in one file; for one thread.

    Attributes:
        seal: the file's.
    """

    def __init__(self, seal: Seal, key: bytes, cipher: AESGCM, number: int) -> None:
        self.seal = seal
        self._key = key
        self._cipher = cipher
        self._number = number.to_bytes(4, "little")

    def close(
        self, blocks: Sequence[memoryview], first: int, into: memoryview | None
    ) -> list[bytes]:
        """Seal blocks that follow each other.

        Args:
            blocks: their bytes; unchanged.
            first: number of the first, in the whole chunk.
            into: where encrypted blocks go, one behind the other, and 16 bytes more; not used for others,
                which are stored as they are.

        Returns:
            A tag of 16 bytes for each.
        """
        if self.seal.kind is SealKind.AUTHENTICATED:
            return [
                self._cipher.encrypt(self._nonce(block), b"", data)
                for block, data in enumerate(blocks, first)
            ]
        assert into is not None
        tags, end = [], 0
        for block, data in enumerate(blocks, first):
            begin, end = end, end + len(data)
            sealed = into[begin : end + DIGEST_BYTES]
            self._cipher.encrypt_into(self._nonce(block), data, None, sealed)
            tags.append(bytes(into[end : end + DIGEST_BYTES]))  # the next block takes its place
        return tags

    def open(self, block: int, data: memoryview, tag: Buffer) -> bool:
        """Check one block's bytes as they were stored, and decrypt them where they are.

        Args:
            block: its number, in the whole chunk.
            data: writable where blocks are encrypted; undefined then where they were not right.
            tag: 16 bytes.

        Returns:
            Whether they are what was sealed here.
        """
        nonce = self._nonce(block)
        try:
            if self.seal.kind is SealKind.AUTHENTICATED:
                self._cipher.decrypt(nonce, bytes(tag), data)
            elif len(data) <= COPIED_BYTES:
                self._cipher.decrypt_into(nonce, b"".join((data, tag)), None, data)
            else:
                mode = modes.GCM(nonce, bytes(tag))
                context = Cipher(algorithms.AES(self._key), mode).decryptor()
                context.update_into(data, data)
                context.finalize()
        except InvalidTag:
            return False
        return True

    def _nonce(self, block: int) -> bytes:
        return self._number + block.to_bytes(8, "little")


class FileKeys:
    """The keys of one file; for one thread.

    Attributes:
        seal: the file's.
    """

    def __init__(self, keyring: "Keyring", seal: Seal, namespace: bytes) -> None:
        self.seal = seal
        self._keyring = keyring
        self._info = b"kvstrata file" + bytes([seal.kind]) + namespace
        self._of_tenants: dict[bytes, tuple[bytes, AESGCM]] = {}
        _, self._of_header = self._of_tenant(NO_TENANT)

    def mark(self, header: Buffer) -> bytes:
        """The header's tag: 16 bytes.

        Args:
            header: whole, with these 16 bytes zero.
        """
        return self._of_header.encrypt(_OF_HEADER, b"", header)

    def marked(self, header: Buffer, mark: Buffer) -> bool:
        """Whether a header has this tag."""
        return hmac.compare_digest(self.mark(header), mark)

    def chunk(self, number: int, tenant: bytes) -> ChunkKeys:
        """For the blocks of one chunk.

        Args:
            number: of the chunk in a segment, from 0; 0 in a record.
            tenant: the chunk's, 8 bytes.
        """
        return ChunkKeys(self.seal, *self._of_tenant(tenant), number)

    def _of_tenant(self, tenant: bytes) -> tuple[bytes, AESGCM]:
        known = self._of_tenants.get(tenant)
        if known is None:
            master = self._keyring.of_tenant(self.seal.key_id, tenant)
            key = _derive(master, self.seal.salt, self._info)
            known = self._of_tenants[tenant] = key, AESGCM(key)
        return known


class Keyring:
    """Master keys; for several threads at once.

    Attributes:
        kind: of the seals that are made, and the only one that is accepted; None where all are, and files
            without a seal too, as for looking at a root from outside.

    Args:
        keys: 32 bytes each; the first one seals, all open.
        kind: see above.
    """

    def __init__(self, keys: Sequence[bytes], kind: SealKind | None = None) -> None:
        assert keys and all(len(key) == MASTER_BYTES for key in keys)
        self.kind = kind
        self._masters = {key_id(key): key for key in keys}
        self._tenants: dict[tuple[bytes, bytes], bytes] = {}

    def __repr__(self) -> str:
        return f"<Keyring of {', '.join(self.key_ids)}>"

    @property
    def key_ids(self) -> list[str]:
        """Names of the keys, hexadecimal; the first one seals."""
        return [name.hex() for name in self._masters]

    def new(self, namespace: bytes) -> FileKeys:
        """For a file that is to be written. `namespace`: fingerprint, 16 bytes."""
        assert self.kind is not None
        name = next(iter(self._masters))
        return FileKeys(self, Seal(self.kind, name, secrets.token_bytes(SALT_BYTES)), namespace)

    def find(self, seal: Seal, namespace: bytes) -> FileKeys:
        """For a file that is there.

        Raises:
            RecordError: `SEALED`, with a key that is not here.
        """
        if seal.key_id not in self._masters:
            raise RecordError(
                BadReason.SEALED, f"sealed with the key {seal.key_id.hex()}, which is not at hand"
            )
        return FileKeys(self, seal, namespace)

    def of_tenant(self, name: bytes, tenant: bytes) -> bytes:
        """A tenant's key, 32 bytes, derived from the master key of this name, which must be here."""
        known = self._tenants.get((name, tenant))
        if known is None:
            known = _derive(self._masters[name], None, b"kvstrata tenant" + tenant)
            if len(self._tenants) >= _KNOWN_TENANTS:
                self._tenants.clear()
            self._tenants[name, tenant] = known
        return known
