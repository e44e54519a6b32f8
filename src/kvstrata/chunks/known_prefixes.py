"""Block hashes of prompts whose beginnings were seen before."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvstrata.chunks.beginnings import Beginnings
from kvstrata.chunks.block_hashes import (
    BlockHasher,
    Media,
    Tokens,
    as_tokens,
    joined_low_bits,
    split,
)


class _Segment(NamedTuple):
    joined: bytes
    keys: npt.NDArray[np.uint64]


class KnownPrefixes:
    """Remembers the hashes of prompts, so that a prefix seen before is not hashed again.

    Prompts are remembered in segments of `SEGMENT` blocks; see `Beginnings`.

    Args:
        hasher: computes what is not known.
        capacity: segments remembered; the least recently used go first.
    """

    SEGMENT = 64

    def __init__(self, hasher: BlockHasher, capacity: int = 4096) -> None:
        self._hasher = hasher
        self._segments: Beginnings[_Segment] = Beginnings(capacity, lambda _: 1)

    def __len__(self) -> int:
        return len(self._segments)

    def hashes(
        self,
        tokens: npt.ArrayLike,
        *,
        lora: tuple[str, str] | None = None,
        salt: str | None = None,
        media: Sequence[Media] = (),
    ) -> list[bytes]:
        """See `BlockHasher.hashes`; equal to it."""
        known, rest, _ = self._find(tokens, lora, salt, media)
        return split(b"".join([*(segment.joined for segment in known), rest]), self._hasher.size)

    def keys(
        self,
        tokens: npt.ArrayLike,
        *,
        lora: tuple[str, str] | None = None,
        salt: str | None = None,
        media: Sequence[Media] = (),
    ) -> npt.NDArray[np.uint64]:
        """The low 64 bits of each hash, as uint64 (blocks,): how events name blocks. See `hashes`."""
        known, _, rest = self._find(tokens, lora, salt, media)
        return np.concatenate([*(segment.keys for segment in known), rest])

    def _find(
        self,
        tokens: npt.ArrayLike,
        lora: tuple[str, str] | None,
        salt: str | None,
        media: Sequence[Media],
    ) -> tuple[list[_Segment], bytes, npt.NDArray[np.uint64]]:
        """Segments that are known, the hashes behind them, and the low bits of those."""
        ids, size = as_tokens(tokens), self._hasher.size
        step = self._hasher.block_tokens * self.SEGMENT
        names = self._names(ids, step, pickle.dumps((lora, salt)), media)
        known = self._segments.known(names)
        done = len(known)
        parent = known[-1].joined[-size:] if known else None
        ahead = [replace(item, offset=item.offset - done * step) for item in media]
        rest = self._hasher.joined(
            ids[done * step :], lora=lora, salt=salt, media=ahead, parent=parent
        )
        keys = joined_low_bits(rest, size)
        for index, name in enumerate(names[done:]):
            low, high = index * self.SEGMENT, (index + 1) * self.SEGMENT
            part = rest[low * size : high * size]
            self._segments.remember(name, _Segment(part, keys[low:high].copy()))
        return known, rest, keys

    def _names(self, ids: Tokens, step: int, request: bytes, media: Sequence[Media]) -> list[bytes]:
        running = self._segments.digest(request)
        names = []
        for end in range(step, len(ids) + 1, step):
            running.update(ids[end - step : end].data)
            for item in media:
                if end - step <= item.offset < end:
                    running.update(pickle.dumps((item.identifier, item.offset, item.length)))
            names.append(running.digest())
        return names
