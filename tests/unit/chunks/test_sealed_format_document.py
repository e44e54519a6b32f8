"""What the document says of sealed files is enough to read them: a reader that is written from it alone.

It knows AES-256-GCM (of `cryptography`) and HMAC (of the standard library), and no code of the package.
"""

import hashlib
import hmac
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.keyring import Keyring
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.sealing import SealKind
from kvstrata.tiers.filesystem import FilesystemTier

MASTER = bytes(range(100, 132))
NAMESPACE = Namespace("m", {"seal": "some"})


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256, for at most one block of output."""
    pseudorandom = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(pseudorandom, info + b"\1", "sha256")[:length]


class Reader:
    """The file of a chunk, as the document describes it."""

    def __init__(self, data: bytes, master: bytes) -> None:
        self.data = data
        self.version = self.number(8, 4)
        assert data[:8] == b"KVSTRATA" and self.version in (3, 4)
        self.kind, at = self.number(34, 2), {3: 144, 4: 80}[self.version]
        name, zero, self.salt = data[at : at + 8], data[at + 8 : at + 16], data[at + 16 : at + 32]
        assert name == hkdf(master, b"", b"kvstrata key id", 8) and zero == bytes(8)
        self.master = master
        length = self.number(12, 4)
        covered = data[:64] + bytes(16) + data[80:length]
        self.cipher(bytes(8)).decrypt(b"\xff" * 12, data[64:80], covered)

    def number(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def cipher(self, tenant: bytes) -> AESGCM:
        of_tenant = hkdf(self.master, b"", b"kvstrata tenant" + tenant, 32)
        info = b"kvstrata file" + bytes([self.kind]) + self.data[16:32]
        return AESGCM(hkdf(of_tenant, self.salt, info, 32))

    def block(self, cipher: AESGCM, chunk: int, block: int, start: int, tag: bytes) -> bytes:
        stored = self.data[start : start + self.number(48, 8)]
        nonce = chunk.to_bytes(4, "little") + block.to_bytes(8, "little")
        if self.kind == 2:
            cipher.decrypt(nonce, tag, stored)
            return stored
        assert self.kind == 3
        return cipher.decrypt(nonce, stored + tag, None)

    def read(self, key: bytes) -> dict[int, bytes]:
        """Blocks by their number."""
        return self.record(key) if self.version == 3 else self.segment(key)

    def record(self, key: bytes) -> dict[int, bytes]:
        assert self.data[80 : 80 + self.number(32, 2)] == key
        first, whole, size = self.number(40, 4), self.number(36, 4), self.number(48, 8)
        length = self.number(12, 4)
        assert length == -(-(176 + 16 * (whole - first)) // 4096) * 4096
        cipher, found = self.cipher(self.data[56:64]), {}
        for block in range(first, whole):
            at = 176 + 16 * (block - first)
            start = length + size * (block - first)
            found[block] = self.block(cipher, 0, block, start, self.data[at : at + 16])
        return found

    def segment(self, key: bytes) -> dict[int, bytes]:
        whole, chunks, size = self.number(36, 4), self.number(40, 4), self.number(48, 8)
        found, at = {}, 112 + 80 * chunks
        for chunk in range(chunks):
            entry = 112 + 80 * chunk
            first, offset = self.number(entry + 4, 4), self.number(entry + 8, 8)
            cipher = self.cipher(self.data[entry + 72 : entry + 80])
            for block in range(first, whole):
                if self.data[entry + 16 : entry + 16 + self.number(entry, 2)] == key:
                    start = offset + size * (block - first)
                    tag = self.data[at : at + 16]
                    found[block] = self.block(cipher, chunk, block, start, tag)
                at += 16
        assert self.number(12, 4) == -(-at // 4096) * 4096
        return found


@pytest.mark.parametrize("kind", list(SealKind))
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize(("blocks", "first"), [(1, 0), (8, 3), (300, 200)])
def test_a_reader_written_from_the_document_reads_sealed_files(
    tmp_path: Path, kind: SealKind, count: int, blocks: int, first: int
) -> None:
    geometry = GroupGeometry(1, GroupKind.FULL, 16, blocks, (30, 7))
    tier = FilesystemTier(tmp_path, NAMESPACE, {1: geometry}, keyring=Keyring([MASTER], kind))
    tier.prepare()
    keys = [make_key(hashlib.sha256(b"%d" % one).digest(), 1) for one in range(count)]
    payloads = {key: hashlib.shake_128(key).digest(geometry.payload_bytes) for key in keys}
    tier.write_many([(key, memoryview(payloads[key]), first) for key in keys])
    for key in keys:
        data = (tier.directory / relative_path(key)).read_bytes()
        assert Reader(data, MASTER).version == (3 if count == 1 else 4)
        assert Reader(data, MASTER).read(key) == {
            block: payloads[key][block * 37 : (block + 1) * 37] for block in range(first, blocks)
        }
        changed = bytearray(data)
        changed[56] ^= 1
        with pytest.raises(InvalidTag):
            Reader(bytes(changed), MASTER)
