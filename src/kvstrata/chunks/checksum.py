"""The checksum over every block and header: XXH3-128.

Not cryptographic: it finds damage (bit flips, torn writes, truncation), not forgery. The choice and its
cost are in `docs/decisions/`.
"""

import xxhash

ALGORITHM = "xxh3-128"
DIGEST_BYTES = 16

Buffer = bytes | bytearray | memoryview
"""Anything contiguous that exposes its bytes."""


def digest(data: Buffer) -> bytes:
    """XXH3-128 of `data`: 16 bytes in canonical (big endian) form."""
    return xxhash.xxh3_128_digest(data)
