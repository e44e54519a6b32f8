"""vLLM's own block hashes from token ids, without vLLM.

A block's hash covers its parent's hash, its token ids and its extra keys (vLLM's `hash_block_tokens`):
`H((parent, (t0, t1, ...), extra_keys or None))`, where H is SHA-256 or XXH3-128 of the pickle (protocol 5)
or of the canonical CBOR of that tuple. The token ids of a whole prompt are serialised at once with numpy;
what is left for each block is one concatenation and one digest.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from kvstrata.errors import ConfigError

Tokens = npt.NDArray[np.uint32]
Encoded = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Serialised token ids one after the other, and where each begins (with the end as last entry)."""

DEFAULT_SEED = "vllm-none-hash"
"""What the SHA-256 kinds hash for the parent of the first block when PYTHONHASHSEED is not set."""
PICKLE_FRAME = 60_000
"""Bytes of a pickle that surely is one frame; longer ones are left to the pickler."""
_SHA256_BYTES = 32
MAX_TOKEN = 2**31 - 1
"""Largest token id that both serialisations write in four bytes."""

ExtraKeys = tuple[Any, ...] | None
"""Extra keys of one block, as vLLM's `generate_block_hash_extra_keys` makes them."""


def lora_key(name: str, path: str) -> tuple[str, str, str]:
    """Extra key that every block of a request with a LoRA adapter has."""
    return ("lora", name, path)


def salt_key(salt: str) -> tuple[str, str]:
    """Extra key that the first block of a request with a cache salt has."""
    return ("cache_salt", salt)


@dataclass(frozen=True, slots=True)
class Media:
    """One multimodal input of a prompt, such as an image.

    Attributes:
        identifier: that the engine gives its content (vLLM's `MultiModalFeatureSpec.identifier`).
        offset: index of its first placeholder token.
        length: placeholder tokens.
    """

    identifier: str
    offset: int
    length: int


def _xxh3(message: bytes) -> bytes:
    return xxhash.xxh3_128_digest(message)


def _sha256(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


class BlockHasher:
    """Block hashes of one engine's kind.

    Args:
        algorithm: vLLM's `prefix_caching_hash_algo`: sha256, sha256_cbor, xxhash or xxhash_cbor.
        block_tokens: tokens of one hash (vLLM's hash block size), at least 1.
        seed: the engine's PYTHONHASHSEED, or None when it is not set.

    Attributes:
        size: bytes of a hash.

    Raises:
        ConfigError: an unknown algorithm, or an xxhash kind without a seed: the engine then draws one at
            random, and nobody else can compute its hashes.
    """

    def __init__(self, algorithm: str, block_tokens: int, seed: str | None = None) -> None:
        assert block_tokens > 0
        kind, _, form = algorithm.partition("_")
        if kind not in ("sha256", "xxhash") or form not in ("", "cbor"):
            raise ConfigError(
                f"block hash algorithm {algorithm!r} is not known; known: sha256, sha256_cbor, xxhash, "
                f"xxhash_cbor"
            )
        if kind == "xxhash" and seed is None:
            raise ConfigError(
                f"block hashes of kind {algorithm} begin with a random seed when the engine runs without "
                f"PYTHONHASHSEED; set it to one value for all engines, or use sha256"
            )
        self.block_tokens = block_tokens
        self._digest: Callable[[bytes], bytes] = _sha256 if kind == "sha256" else _xxh3
        self.size = len(self._digest(b""))
        self._cbor = form == "cbor"
        first = DEFAULT_SEED if seed is None else seed
        self.none_hash = self._digest(
            _cbor_text(first) if self._cbor else pickle.dumps(first, protocol=5)
        )

    def hashes(
        self,
        tokens: npt.ArrayLike,
        *,
        lora: tuple[str, str] | None = None,
        salt: str | None = None,
        media: Sequence[Media] = (),
        parent: bytes | None = None,
    ) -> list[bytes]:
        """Hashes of the whole blocks of a prompt.

        Args:
            tokens: token ids, one-dimensional; an array of uint32 is used as it is.
            lora: the adapter's name and path as the engine knows them.
            salt: the request's cache salt; enters the first block of a prompt only.
            media: multimodal inputs, by offset in `tokens` (negative: it began before); they enter the blocks
                that hold their placeholders. One content twice in a single block is not told apart from two
                equal copies of it, which vLLM may hash in another way.
            parent: hash of the block before `tokens`; None for the beginning of a prompt.

        Raises:
            ValueError: a token id is negative or does not fit 31 bits.
        """
        raw = self.joined(tokens, lora=lora, salt=salt, media=media, parent=parent)
        return split(raw, self.size)

    def joined(
        self,
        tokens: npt.ArrayLike,
        *,
        lora: tuple[str, str] | None = None,
        salt: str | None = None,
        media: Sequence[Media] = (),
        parent: bytes | None = None,
    ) -> bytes:
        """The same, one behind the other, `size` bytes each; see `hashes`."""
        ids = as_tokens(tokens)
        common: ExtraKeys = (lora_key(*lora),) if lora else None
        salted = salt if parent is None else None
        previous = parent or self.none_hash
        found: list[bytes] = []
        done = 0
        for index, extra in self._special(len(ids) // self.block_tokens, common, salted, media):
            low = index * self.block_tokens
            for part, keys in (
                (ids[done:low], common),
                (ids[low : low + self.block_tokens], extra),
            ):
                if len(part):
                    found.append(self._chain(part, previous, keys))
                    previous = found[-1][-self.size :]
            done = low + self.block_tokens
        found.append(self._chain(ids[done:], previous, common))
        return b"".join(found)

    def _special(
        self, blocks: int, common: ExtraKeys, salt: str | None, media: Sequence[Media]
    ) -> Iterator[tuple[int, ExtraKeys]]:
        """Blocks with extra keys of their own, in order, and those keys in vLLM's order."""
        size = self.block_tokens
        held: dict[int, list[Any]] = {0: []} if salt and blocks else {}
        for item in sorted(media, key=lambda item: item.offset):
            first = max(item.offset, 0) // size
            for index in range(first, min(-(-(item.offset + item.length) // size), blocks)):
                held.setdefault(index, []).append(
                    ("mm", item.identifier, item.offset - index * size)
                )
        for index in sorted(held):
            tail = [salt_key(salt)] if salt and index == 0 else []
            yield index, (*(common or ()), *held[index], *tail)

    def _chain(self, ids: Tokens, parent: bytes, extra: ExtraKeys) -> bytes:
        count = len(ids) // self.block_tokens
        if not count:
            return b""
        ids = ids[: count * self.block_tokens]
        prefix: Callable[[int, int], tuple[bytes, bytes]]
        if self._cbor:
            prefix, suffix = self._cbor_prefix, _cbor_value(extra)
        elif self.block_tokens < 4 or self.block_tokens * 5 > PICKLE_FRAME:
            return self._pickle_one_by_one(ids, parent, extra)
        else:
            prefix = _pickle_prefix
            suffix = _plain_suffix() if extra is None else _pickle_suffix(extra)
        fast = _compiled() if _compiled.cache_info().currsize else None
        if fast is not None and self._digest is _sha256 and len(parent) == _SHA256_BYTES:
            blocks = ids.reshape(count, self.block_tokens)
            return fast(blocks, self._cbor, prefix(0, len(parent)), parent, suffix)
        data, starts = _cbor_integers(ids) if self._cbor else _pickle_integers(ids)
        serialised = data.tobytes()
        edges = starts[:: self.block_tokens].tolist()
        digest = self._digest
        heads: dict[int, tuple[bytes, bytes]] = {}
        found = []
        for low, high in pairwise(edges):
            head = heads.get(high - low)
            if head is None:
                head = heads[high - low] = prefix(high - low + len(suffix), len(parent))
            parent = digest(b"".join((head[0], parent, head[1], serialised[low:high], suffix)))
            found.append(parent)
        return b"".join(found)

    def _cbor_prefix(self, _tail: int, parent: int) -> tuple[bytes, bytes]:
        return b"\x83" + _cbor_head(2, parent), _cbor_head(4, self.block_tokens)

    def _pickle_one_by_one(self, ids: Tokens, parent: bytes, extra: ExtraKeys) -> bytes:
        found = []
        for block in ids.reshape(-1, self.block_tokens).tolist():
            parent = self._digest(pickle.dumps((parent, tuple(block), extra), protocol=5))
            found.append(parent)
        return b"".join(found)


def warm() -> None:
    """Bring compiled code, if there is any here: SHA-256 chains then take a tenth of the time.

    Takes seconds on a machine's first time; not for a process that will fork an engine's worker.
    """
    _compiled()


@cache
def _compiled() -> "Callable[[Tokens, bool, tuple[bytes, bytes], bytes, bytes], bytes] | None":
    """What `warm` brought, in use from then on; None where it does not give what `hashlib` does."""
    try:
        from kvstrata.chunks.hash_chain import sha256_chain
    except ImportError:
        return None  # no numba, or a Python without OpenSSL's functions
    sample = np.arange(64, dtype=np.uint32).reshape(4, 16) * np.uint32(16_411)
    parent, head = b"p" * _SHA256_BYTES, _pickle_prefix(0, _SHA256_BYTES)
    plain = BlockHasher("sha256", 16).joined(sample.ravel(), parent=parent)
    alike = sha256_chain(sample, False, head, parent, _pickle_suffix(None)) == plain
    return sha256_chain if alike else None


def split(joined: bytes, size: int) -> list[bytes]:
    """Hashes of `size` bytes that stand one behind the other."""
    return [joined[low : low + size] for low in range(0, len(joined), size)]


def low_bits(hashes: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """The low 64 bits of block hashes of one length, as uint64 (n,)."""
    return joined_low_bits(b"".join(hashes), len(hashes[0])) if hashes else np.empty(0, np.uint64)


def joined_low_bits(joined: bytes, size: int) -> npt.NDArray[np.uint64]:
    """The same of hashes of `size` bytes that stand one behind the other."""
    return np.frombuffer(joined, ">u8")[size // 8 - 1 :: size // 8].astype(np.uint64)


def as_tokens(tokens: npt.ArrayLike) -> Tokens:
    """Token ids as uint32 (n,), without a copy where they are that already.

    Raises:
        ValueError: they are no integers, not one-dimensional, negative or above `MAX_TOKEN`.
    """
    array = np.asarray(tokens)
    if array.size == 0:
        return np.empty(0, np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            "token ids must be one-dimensional integers, not "
            f"{array.ndim}-dimensional {array.dtype.name}"
        )
    if int(array.max()) > MAX_TOKEN or (array.dtype.kind == "i" and int(array.min()) < 0):
        raise ValueError(f"token ids must lie between 0 and {MAX_TOKEN}")
    return np.ascontiguousarray(array, dtype=np.uint32)


def _scatter(ids: Tokens, sizes: npt.NDArray[np.int64], big_endian: bool) -> Encoded:
    """Place each id's value bytes behind its first byte; `sizes` includes that first byte."""
    starts = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    data = np.zeros(int(starts[-1]), np.uint8)
    for place in range(1, 5):
        here = np.flatnonzero(sizes > place)
        shift = (sizes[here] - 1 - place) * 8 if big_endian else 8 * (place - 1)
        data[starts[here] + place] = (ids[here] >> np.asarray(shift, np.uint32)) & 0xFF
    return data, starts


def _pickle_integers(ids: Tokens) -> Encoded:
    """BININT1, BININT2 or BININT for each id."""
    sizes = np.where(ids < 1 << 8, 2, np.where(ids < 1 << 16, 3, 5)).astype(np.int64)
    data, starts = _scatter(ids, sizes, big_endian=False)
    data[starts[:-1]] = np.frombuffer(b"\0\0KM\0J", np.uint8)[sizes]
    return data, starts


def _cbor_integers(ids: Tokens) -> Encoded:
    """Major type 0 with the shortest head."""
    sizes = np.select([ids < 24, ids < 1 << 8, ids < 1 << 16], [1, 2, 3], 5).astype(np.int64)
    data, starts = _scatter(ids, sizes, big_endian=True)
    heads = np.frombuffer(b"\0\0\x18\x19\0\x1a", np.uint8)[sizes]
    data[starts[:-1]] = np.where(sizes == 1, ids, heads)
    return data, starts


def _pickle_prefix(tail: int, parent: int) -> tuple[bytes, bytes]:
    """What stands before and behind the parent's hash; `tail` bytes follow."""
    head = b"C" + bytes([parent])
    after = b"\x94("
    frame = len(head) + parent + len(after) + tail
    return b"\x80\x05\x95" + frame.to_bytes(8, "little") + head, after


def _pickle_suffix(extra: ExtraKeys) -> bytes:
    """What stands behind the token ids: the pickler itself says how extra keys look there."""
    marker = (1, 2, 3, 4)
    sample = pickle.dumps((b"", marker, extra), protocol=5)
    tokens = b"".join(b"K" + bytes([value]) for value in marker)
    return sample[sample.index(tokens) + len(tokens) :]


@cache
def _plain_suffix() -> bytes:
    return _pickle_suffix(None)


def _cbor_head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    for code, size in ((24, 1), (25, 2), (26, 4)):
        if value < 1 << 8 * size:
            return bytes([major << 5 | code]) + value.to_bytes(size, "big")
    return bytes([major << 5 | 27]) + value.to_bytes(8, "big")


def _cbor_text(text: str) -> bytes:
    encoded = text.encode()
    return _cbor_head(3, len(encoded)) + encoded


def _cbor_value(value: Sequence[Any] | str | bytes | int | None) -> bytes:
    if value is None:
        return b"\xf6"
    if isinstance(value, str):
        return _cbor_text(value)
    if isinstance(value, bytes):
        return _cbor_head(2, len(value)) + value
    if isinstance(value, int):
        return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)
    return _cbor_head(4, len(value)) + b"".join(_cbor_value(item) for item in value)
