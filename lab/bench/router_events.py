"""The stub engines' events: `python -m lab.bench.router_events ENDPOINTS` publishes what they hold.

ENDPOINTS as of `lab.bench.router_stub`. Each line on standard input names an `.npz` of token ids, each array
named by the number of the engine that holds it, a dash, and anything; it is published, then answered.
"""

import json
import sys

import numpy as np
import numpy.typing as npt

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.wire.batches import low_bits
from kvstrata.wire.snapshot import EngineFacts, GroupFacts
from tests.unit.events.fake_publisher import Event, FakeEngine

BLOCK = 16
ALGORITHM = "sha256"
EACH = 512
"""Blocks of one event: what a step of 8192 tokens stores."""


def facts() -> EngineFacts:
    """Full attention, as every router here understands it."""
    groups = (GroupFacts(0, "full", BLOCK, 1, BLOCK * 100_000),)
    none_hash = BlockHasher(ALGORITHM, BLOCK).none_hash
    return EngineFacts("m", ALGORITHM, none_hash, BLOCK, BLOCK, groups)


def stored(tokens: npt.NDArray[np.uint32]) -> list[Event]:
    """The events of a prompt that the device holds, as vLLM publishes them."""
    hashes = [low_bits(value) for value in BlockHasher(ALGORITHM, BLOCK).hashes(tokens)]
    return [
        {
            "type": "BlockStored",
            "block_hashes": hashes[low : low + EACH],
            "parent_block_hash": hashes[low - 1] if low else None,
            "token_ids": tokens[low * BLOCK : min(low + EACH, len(hashes)) * BLOCK].tolist(),
            "block_size": BLOCK,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
        for low in range(0, len(hashes), EACH)
    ]


def main() -> None:
    """Publish what the lines say."""
    engines = [
        FakeEngine(events, replay, facts=facts()) for events, replay in json.loads(sys.argv[1])
    ]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        with np.load(line.strip()) as held:
            for name in held.files:
                for event in stored(held[name]):
                    engines[int(name.partition("-")[0])].publish([event])
        sys.stdout.write(json.dumps([engine.settle() for engine in engines]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
