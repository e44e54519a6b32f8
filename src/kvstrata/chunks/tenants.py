"""Marks of tenants: whose prompt a chunk belongs to, without saying who that is.

A tenant is whoever sends requests with one `cache_salt`. Two steps, so that an operator can name a tenant
once and for all, while files of different namespaces cannot be put together by their marks alone::

    salt ──BLAKE2b, with the operator's key where there is one──▶ name of 16 bytes
         ──BLAKE2b with the namespace──▶ mark of 8 bytes

Without a key whoever reads the directory can try salts that can be guessed; with one only who has it can.
"""

import hashlib
import re
from functools import lru_cache

from kvstrata.chunks.record import NO_TENANT, TENANT_BYTES

NAME_BYTES = 16
_NAME = re.compile(r"[0-9a-f]{32}")
_KEY_BYTES = 64


def tenant_name(salt: str, key: bytes = b"") -> bytes:
    """The name of a tenant, 16 bytes: what an operator writes into options, hexadecimal.

    Args:
        salt: the requests' `cache_salt`.
        key: the operator's secret of at most 64 bytes; none where there is none.
    """
    assert len(key) <= _KEY_BYTES
    return hashlib.blake2b(
        # A salt comes from a request and may hold half of a surrogate pair.
        salt.encode("utf-8", "surrogatepass"),
        digest_size=NAME_BYTES,
        key=key,
        person=b"kvstrata tenant",
    ).digest()


@lru_cache(maxsize=4096)
def tenant_mark(name: bytes, namespace: bytes) -> bytes:
    """What stands in the files of a tenant's chunks: 8 bytes, never zeros.

    Args:
        name: of the tenant; see `tenant_name`.
        namespace: fingerprint, 16 bytes.
    """
    mark = hashlib.blake2b(
        namespace, digest_size=TENANT_BYTES, key=name, person=b"kvstrata mark"
    ).digest()
    return mark if mark != NO_TENANT else b"\xff" * TENANT_BYTES


def read_name(text: str) -> bytes:
    """A tenant's name from its 32 hexadecimal digits.

    Raises:
        ValueError: it is something else.
    """
    if not _NAME.fullmatch(text):
        raise ValueError("a tenant's name has 32 hexadecimal digits: kvstrata tenant SALT")
    return bytes.fromhex(text)
