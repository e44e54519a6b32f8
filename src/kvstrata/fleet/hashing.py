"""How an engine makes block hashes, and whether it really does. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.errors import ConfigError
from kvstrata.wire.batches import low_bits
from kvstrata.wire.samples import Sample
from kvstrata.wire.snapshot import EngineFacts

BY_DEFAULT = ("sha256", "sha256_cbor")
"""vLLM's algorithms that begin with a known value when PYTHONHASHSEED is not set."""
FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""Hashes that one block may have: groups of a hybrid model have blocks of several sizes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a prompt's block hashes, besides the prompt.

    Attributes:
        algorithm: vLLM's `prefix_caching_hash_algo`.
        none_hash: parent of the first block.
        hash_tokens: tokens of one hash.
    """

    algorithm: str
    none_hash: bytes
    hash_tokens: int

    @classmethod
    def of(cls, facts: EngineFacts) -> "Recipe":
        """What an engine told of itself."""
        return cls(facts.hash_algorithm, facts.none_hash, facts.hash_tokens)

    @classmethod
    def default(cls, hash_tokens: int) -> "Recipe":
        """How vLLM makes hashes unless it is told otherwise."""
        return cls(BY_DEFAULT[0], BlockHasher(BY_DEFAULT[0], 1).none_hash, hash_tokens)

    def hasher(self) -> BlockHasher:
        """Computes hashes as the engine does.

        Raises:
            ConfigError: the algorithm is not known.
        """
        # The seed matters only for the parent of the first block, which is given.
        hasher = BlockHasher(self.algorithm, self.hash_tokens, "0")
        hasher.none_hash = self.none_hash
        return hasher

    def makes(self, sample: Sample) -> bool:
        """Whether it gives the sample's hash; False too where it cannot be computed."""
        if self.hash_tokens < 1 or len(sample.tokens) % self.hash_tokens:
            return False
        try:
            hashes = self.hasher().hashes(sample.tokens)
        except (ConfigError, ValueError):
            return False
        # A block of several hashes goes by the last of them.
        return low_bits(hashes[-1]) == sample.hash


def find_recipe(sample: Sample, known: Iterable[Recipe]) -> Recipe | None:
    """The recipe that gives a sample's hash: one of those known, or one of vLLM's defaults."""
    return next((recipe for recipe in _candidates(sample, known) if recipe.makes(sample)), None)


def _candidates(sample: Sample, known: Iterable[Recipe]) -> Iterator[Recipe]:
    seeds = dict.fromkeys(
        (algorithm, BlockHasher(algorithm, 1).none_hash) for algorithm in BY_DEFAULT
    )
    for recipe in known:
        yield recipe
        seeds[recipe.algorithm, recipe.none_hash] = None
    size = len(sample.tokens)
    for factor in FACTORS:
        if size % factor == 0:
            for algorithm, none_hash in seeds:
                yield Recipe(algorithm, none_hash, size // factor)
