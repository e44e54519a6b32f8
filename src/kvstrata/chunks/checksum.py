"""The checksum over every block and header: XXH3-128.

Not cryptographic: it finds damage (bit flips, torn writes, truncation), not forgery. The choice and its
cost are in `docs/decisions/`.
"""

import xxhash

ALGORITHM = "xxh3-128"
DIGEST_BYTES = 16

digest_in_parts = xxhash.xxh3_128
"""Makes an object that is fed by `update` and gives the same by `digest`; for what comes piece by piece."""

Buffer = bytes | bytearray | memoryview
"""Anything contiguous that exposes its bytes."""

digest = xxhash.xxh3_128_digest
"""XXH3-128 of a `Buffer`: 16 bytes in canonical (big endian) form."""
