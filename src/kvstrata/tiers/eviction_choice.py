"""Eviction policies by the name that the option `eviction` gives them."""

from collections.abc import Callable, Mapping

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.eviction import EvictionPolicy, LeastRecentlyUsed
from kvstrata.tiers.eviction_arc import AdaptiveReplacement
from kvstrata.tiers.eviction_boundary import BoundaryKeeping

PolicyMaker = Callable[[Callable[[ChunkKey], int]], EvictionPolicy]
"""Makes a policy from what tells a chunk's slot size in bytes."""

POLICIES: Mapping[str, PolicyMaker] = {
    "boundary": BoundaryKeeping,
    "lru": lambda size_of: LeastRecentlyUsed(),
    "arc": lambda size_of: AdaptiveReplacement(),
}
