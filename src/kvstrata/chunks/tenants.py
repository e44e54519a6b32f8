"""Marks of tenants: whose prompt a chunk belongs to, without saying who that is.

A tenant is whoever sends requests with one `cache_salt`. Two steps, so that an operator can name a tenant
once and for all, while files of different namespaces cannot be put together by their marks alone::

    salt ──BLAKE2b, with the operator's key where there is one──▶ name of 16 bytes
         ──BLAKE2b with the namespace──▶ mark of 8 bytes

Without a key whoever reads the directory can try salts that can be guessed; with one only who has it can.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from kvstrata.chunks.record import NO_TENANT, TENANT_BYTES
from kvstrata.option_values import read_positive_size, read_weight

DEFAULT = "default"
"""What stands in options for all tenants that are not named."""
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


class Terms(NamedTuple):
    """What one tenant may hold.

    Attributes:
        quota: bytes of all its chunks, or None.
        weight: its part of a full root, compared with the other tenants'.
    """

    quota: int | None = None
    weight: float = 1.0


class TenantTerms(NamedTuple):
    """What each tenant may hold.

    Attributes:
        default: of those that are not named.
        named: by the tenant's name.
    """

    default: Terms
    named: Mapping[bytes, Terms]


def name_key(master: bytes) -> bytes:
    """The key of tenants' names, 32 bytes, that follows from a key that seals; tells nothing about that."""
    return hashlib.blake2b(key=master, digest_size=32, person=b"kvstrata names").digest()


def read_terms(value: object) -> TenantTerms:
    """Terms by tenant, as an operator writes them: `{"default": {"quota": "10GiB"}, NAME: {"weight": 2}}`.

    Raises:
        ValueError: a hint, where there is one.
    """
    if not isinstance(value, Mapping) or not value:
        raise ValueError
    read = {str(who): _read_one(str(who), terms) for who, terms in value.items()}
    named = {read_name(who): terms for who, terms in read.items() if who != DEFAULT}
    return TenantTerms(read.get(DEFAULT, Terms()), named)


def _read_one(who: str, terms: object) -> Terms:
    if not isinstance(terms, Mapping) or not terms.keys() <= {"quota", "weight"}:
        raise ValueError(f"{who} has a quota, a weight, or both")
    try:
        quota = read_positive_size(terms["quota"]) if terms.get("quota") is not None else None
        return Terms(quota, read_weight(terms.get("weight", 1.0)))
    except ValueError:
        raise ValueError(f"the quota or the weight of {who} is none") from None
