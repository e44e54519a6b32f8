"""What a seal on a file says, and which seals count. Pure; the cryptography is in `kvstrata.chunks.keyring`.

XXH3 finds damage; it keeps nobody from writing a chunk of their own making. A sealed record or segment has
tags of AES-256-GCM where others have checksums, made with a key of the file's own that is derived from one
that strangers do not have. `docs/security.md` says what that is good for.
"""

import enum
import struct
from typing import TYPE_CHECKING, NamedTuple

from kvstrata.errors import BadReason, RecordError

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import FileKeys, Keyring

KEY_ID_BYTES = 8
SALT_BYTES = 16
_SEAL = struct.Struct("<8s8x16s")
SEAL_BYTES = _SEAL.size
"""Of a sealed file's header, behind the fields that all headers have."""


class SealKind(enum.IntEnum):
    """How a file's bytes are guarded; stands where others name their checksum function."""

    AUTHENTICATED = 2
    """AES-256-GMAC: whoever may read the file can read the bytes, none without the key can make them."""
    ENCRYPTED = 3
    """AES-256-GCM: without the key they can be neither made nor read."""


class Seal(NamedTuple):
    """What a sealed file says of its seal; no secret.

    Attributes:
        kind: see `SealKind`.
        key_id: 8 bytes that name the key.
        salt: 16 random bytes, of which the file's own key is made.
    """

    kind: SealKind
    key_id: bytes
    salt: bytes

    def pack(self) -> bytes:
        """As it stands in a header, `SEAL_BYTES` long."""
        return _SEAL.pack(self.key_id, self.salt)


def read_seal(header: bytearray, kind: int, offset: int) -> Seal:
    """The seal in a header.

    Args:
        header: whole, of a sealed file.
        kind: as it says.
        offset: where the seal stands.

    Raises:
        RecordError: `VERSION`, a kind that this release does not know.
    """
    if kind not in tuple(SealKind):
        raise RecordError(BadReason.VERSION, f"a seal of kind {kind} is not known")
    return Seal(SealKind(kind), *_SEAL.unpack_from(header, offset))


def file_keys(
    seal: Seal | None, namespace: bytes, keyring: "Keyring | None", expected: str
) -> "FileKeys | None":
    """The keys that a file is checked with; None where it has no seal, and none is wanted.

    Args:
        seal: the file's.
        namespace: that it says it belongs to, 16 bytes.
        keyring: whoever reads it has.
        expected: what is expected in place of a file without a seal, for the message.

    Raises:
        RecordError: `SEALED`, where the key is not at hand; `VERSION`, where the file has no seal, or
            another kind of seal, and the keyring accepts one kind alone.
    """
    if seal is None:
        if keyring is not None and keyring.kind is not None:
            raise RecordError(BadReason.VERSION, f"has no seal, expected {expected}")
        return None
    if keyring is None:
        raise RecordError(BadReason.SEALED, f"sealed with the key {seal.key_id.hex()}")
    if keyring.kind not in (None, seal.kind):
        raise RecordError(BadReason.VERSION, f"has a seal of kind {seal.kind}")
    return keyring.find(seal, namespace)
