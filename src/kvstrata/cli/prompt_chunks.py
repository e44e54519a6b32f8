"""Which chunks a prompt has in a namespace, from what its `namespace.json` says. Pure.

It says how blocks are hashed, and how many tokens each group's blocks have, but not how many a hash covers:
that divides every group's block, and there are few such numbers. A wrong one gives hashes that no chunk has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy.typing as npt

from kvstrata.chunks.block_hashes import BlockHasher, as_tokens
from kvstrata.chunks.geometry import GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.errors import ConfigError

MAX_TOKENS = 1 << 24
"""Of a block or chunk; larger ones are no engine's."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of a namespace.

    Attributes:
        group: its number.
        full: whether a boundary needs all of its chunks before it.
        block_tokens: tokens of a block.
        chunk_tokens: tokens of a chunk.
    """

    group: int
    full: bool
    block_tokens: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class Hashing:
    """How a namespace's keys come about.

    Attributes:
        algorithm: of its block hashes.
        seed: of them; None for vLLM's own.
        groups: that are stored.
    """

    algorithm: str
    seed: str | None
    groups: Sequence[Group]

    @classmethod
    def of(cls, covers: Mapping[str, Any] | None) -> "Hashing":
        """What `namespace.json` says.

        Args:
            covers: its facts; None where it is missing or damaged.

        Raises:
            ConfigError: it does not say, or its hashes have a random seed, which is known to nobody.
        """
        if covers is None:
            raise ConfigError("its namespace.json is missing or damaged")
        try:
            algorithm, seed = str(covers["hash_algorithm"]), str(covers["hash_seed"])
            groups = [_group(one) for one in covers["groups"]]
            if not groups:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ConfigError("its namespace.json does not say how its keys are made") from None
        if seed != "default" and not seed.startswith("="):
            raise ConfigError("its block hashes have a random seed, which nobody else knows")
        found = cls(algorithm, None if seed == "default" else seed[1:], groups)
        BlockHasher(found.algorithm, 1, found.seed)
        return found

    @property
    def chained(self) -> bool:
        """Whether a longer prompt cannot be served without the chunks of its beginning."""
        return any(one.full for one in self.groups)

    def keys(self, tokens: npt.ArrayLike, salt: str | None) -> Iterator[ChunkKey]:
        """Keys that the prompt's chunks may have, those of its beginning first, for each size of hash.

        Args:
            tokens: token ids, one-dimensional.
            salt: the requests' cache salt.

        Raises:
            ValueError: token ids that are none.
        """
        ids = as_tokens(tokens)
        common = gcd(*(one.block_tokens for one in self.groups))
        for size in (one for one in range(common, 0, -1) if common % one == 0):
            hashes = BlockHasher(self.algorithm, size, self.seed).hashes(ids, salt=salt)
            chunks = [
                (end, group.group)
                for group in self.groups
                for end in range(group.chunk_tokens, len(hashes) * size + 1, group.chunk_tokens)
            ]
            for end, group in sorted(chunks):
                yield make_key(hashes[end // size - 1], group)


def _group(facts: Mapping[str, Any]) -> Group:
    block, blocks = int(facts["tokens_per_block"]), int(facts["blocks_per_chunk"])
    group = int(facts["group"])
    if not (0 < block <= block * blocks <= MAX_TOKENS and 0 <= group < 1 << 32):
        raise ValueError
    return Group(group, facts["kind"] == GroupKind.FULL, block, block * blocks)
