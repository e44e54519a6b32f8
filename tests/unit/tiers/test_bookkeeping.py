"""What is kept in mind of each chunk, of which there may be millions, costs no pause and no nested call."""

import gc
import subprocess
import sys

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.tiers.eviction import Boundary, Placed, PrefixUse
from kvstrata.tiers.memory import MemoryTier

BYTES = 64


def key_of(number: int) -> ChunkKey:
    return make_key(number.to_bytes(32, "big"), 0)


def chain_of(count: int) -> PrefixUse:
    chain = [Placed((index + 1) * 16, key_of(index)) for index in range(count)]
    return PrefixUse(chain, None, [Boundary(count * 16, count, ())])


def walked(count: int) -> int:
    """Objects that a collection of garbage looks at, more of them once so many chunks are held."""
    geometry = GroupGeometry(0, GroupKind.FULL, 16, 1, (BYTES,))
    memory = MemoryTier(memoryview(bytearray(count * 4096)), {0: geometry})
    keys = [key_of(number) for number in range(count)]
    memory.used(chain_of(count))
    gc.collect()
    before = len(gc.get_objects())
    places = memory.reserve_all(keys, "device")
    memory.commit_all([(key, 0) for key in keys])
    assert all(place is not None for place in places)
    return len(gc.get_objects()) - before


def run(script: str) -> str:
    """What a process of its own prints: others' threads make objects too."""
    ended = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, check=False, text=True
    )
    assert ended.returncode == 0
    return ended.stdout.strip()


def test_a_collection_of_garbage_does_not_walk_chunks() -> None:
    assert int(run(f"from {__name__} import walked\nprint(walked(1000))")) < 100


LONG = f"""
from kvstrata.tiers.eviction_boundary import BoundaryKeeping
from {__name__} import chain_of
policy = BoundaryKeeping(lambda key: 1)
use = chain_of(1_000_000)
policy.used(use)
policy.offer_all([placed.key for placed in use.chain])
del policy
print("ended")
"""


def test_a_chain_of_a_million_chunks_is_let_go() -> None:
    assert run(LONG) == "ended"
