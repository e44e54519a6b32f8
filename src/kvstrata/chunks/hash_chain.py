"""A chain of SHA-256 block hashes in compiled code: serialised and hashed block by block, without the GIL.

The digests are OpenSSL's, which Python's `hashlib` brings along: the processor's own instructions, and no
Python object for each block. Importing this module compiles nothing; the first call does.

Raises:
    ImportError: Python has no OpenSSL, or hides its functions.
"""

import _hashlib
import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
import numpy.typing as npt
from numba import types

from kvstrata.compiled import compiled, part

DIGEST = 32
"""Bytes of a hash."""

_CONTEXT = 256
"""Room for OpenSSL's SHA256_CTX, which has 112 bytes."""
_LONGEST = 5
"""Bytes of an id."""

_FRAME = 3
"""Where the eight bytes of a pickle's frame length stand; the frame begins behind them."""
_K, _M, _J = 0x4B, 0x4D, 0x4A
"""Pickle's BININT1, BININT2 and BININT."""


def _openssl(name: str, arguments: int) -> Callable[..., Any]:
    """One of OpenSSL's functions, for compiled code; all its arguments are addresses or lengths."""
    library = ctypes.CDLL(_hashlib.__file__)
    try:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError:
        raise ImportError(f"Python's OpenSSL does not show {name}") from None
    # Machine code out of the cache looks for it by this name.
    symbol = f"kvstrata_{name}"
    llvmlite.binding.add_symbol(symbol, address)
    made: Callable[..., Any] = types.ExternalFunction(symbol, types.intc(*[types.intp] * arguments))
    return made


_begin = _openssl("SHA256_Init", 1)
_update = _openssl("SHA256_Update", 3)
_finish = _openssl("SHA256_Final", 2)


@part
def _pickled(message: Any, at: int, token: Any) -> int:
    """Write one id as pickle does; where the next one goes."""
    if token < 1 << 8:
        message[at] = _K
        message[at + 1] = token
        return at + 2
    message[at + 1] = token & 0xFF
    message[at + 2] = (token >> 8) & 0xFF
    if token < 1 << 16:
        message[at] = _M
        return at + 3
    message[at] = _J
    message[at + 3] = (token >> 16) & 0xFF
    message[at + 4] = token >> 24
    return at + 5


@part
def _in_cbor(message: Any, at: int, token: Any) -> int:
    """Write one id as canonical CBOR does; where the next one goes."""
    if token < 24:
        message[at] = token
        return at + 1
    size = 1 if token < 1 << 8 else 2 if token < 1 << 16 else 4
    message[at] = 0x18 if size == 1 else 0x19 if size == 2 else 0x1A
    for place in range(size):
        message[at + 1 + place] = (token >> (8 * (size - 1 - place))) & 0xFF
    return at + 1 + size


@compiled
def _chain(
    ids: Any, cbor: bool, message: Any, parent: int, suffix: Any, context: Any, hashes: Any
) -> None:
    begin = len(message) - ids.shape[1] * _LONGEST - len(suffix)
    for block in range(ids.shape[0]):
        at = begin
        for place in range(ids.shape[1]):
            token = ids[block, place]
            at = _in_cbor(message, at, token) if cbor else _pickled(message, at, token)
        for place in range(len(suffix)):
            message[at + place] = suffix[place]
        at += len(suffix)
        if not cbor:
            for place in range(8):
                message[_FRAME + place] = ((at - _FRAME - 8) >> (8 * place)) & 0xFF
        _begin(context.ctypes.data)
        _update(context.ctypes.data, message.ctypes.data, at)
        _finish(hashes[block].ctypes.data, context.ctypes.data)
        for place in range(DIGEST):
            message[parent + place] = hashes[block, place]


def sha256_chain(
    ids: npt.NDArray[np.uint32], cbor: bool, head: tuple[bytes, bytes], parent: bytes, suffix: bytes
) -> bytes:
    """Hashes of blocks, each with the one before as its parent, one behind the other.

    Args:
        ids: uint32 (blocks, tokens), in one piece.
        cbor: whether the form is CBOR, or else pickle.
        head: what stands before and behind the parent's hash; in a pickle with any frame length.
        parent: hash of the block before the first, `DIGEST` bytes.
        suffix: what stands behind the ids.
    """
    assert len(parent) == DIGEST and ids.flags.c_contiguous
    before = head[0] + parent + head[1]
    message = np.zeros(len(before) + ids.shape[1] * _LONGEST + len(suffix), np.uint8)
    message[: len(before)] = np.frombuffer(before, np.uint8)
    hashes = np.empty((len(ids), DIGEST), np.uint8)
    behind = np.array(np.frombuffer(suffix, np.uint8))
    context = np.zeros(_CONTEXT, np.uint8)
    _chain(ids, cbor, message, len(head[0]), behind, context, hashes)
    return hashes.tobytes()
