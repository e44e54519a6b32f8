"""Fleets, prompts and event batches for `lab.bench.index`, and what is measured on them."""

import gc
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.known_prefixes import KnownPrefixes
from kvstrata.fleet.index import FleetIndex
from kvstrata.routing.fleet_reuse import ReuseQuery
from kvstrata.routing.shape import ModelShape
from kvstrata.wire.batches import decode
from kvstrata.wire.snapshot import Place

BLOCK = 16
Words = npt.NDArray[np.uint64]
NONE = np.empty(0, np.uint64)
_ENCODE = msgspec.msgpack.Encoder().encode


def shape_of(groups: int) -> ModelShape:
    """Full attention; with three groups, a window of 128 tokens and a state beside it."""
    kinds = [(GroupKind.FULL, 0), (GroupKind.WINDOW, 128), (GroupKind.STATE, 0)][:groups]
    return ModelShape.make(
        [GroupGeometry(i, kind, BLOCK, 1, (1,), size) for i, (kind, size) in enumerate(kinds)],
        BLOCK,
        BLOCK,
        frozenset(range(groups)),
    )


@dataclass(frozen=True, slots=True)
class Question:
    """A fleet and a prompt to ask it about.

    Attributes:
        index: the fleet.
        query: of the model.
        hashes: uint64, the prompt's.
        boundary: tokens that the right answers add up to, over all replicas.
    """

    index: FleetIndex
    query: ReuseQuery
    hashes: Words
    boundary: int

    def seconds(self, times: int) -> float:
        """Seconds of one answer."""
        tokens = len(self.hashes) * BLOCK + 1
        begin = time.perf_counter()
        for _ in range(times):
            answer = self.query.ask(self.index, self.hashes, tokens)
        spent = (time.perf_counter() - begin) / times
        assert int(answer.storage.sum()) == self.boundary, answer.storage
        return spent


def own_blocks(blocks: int, replicas: int) -> int:
    """Blocks that each replica holds besides the prompt: at most half a million in the fleet."""
    return min(blocks, (1 << 19) // replicas)


def question(
    blocks: int, replicas: int, groups: int, case: str = "warm", tier: str = "GPU"
) -> Question:
    """A prompt that all replicas hold, each beside blocks of its own.

    Args:
        blocks: of the prompt; see `own_blocks` for what each replica holds besides.
        replicas: in the fleet.
        groups: 1 or 3, see `shape_of`.
        case: "warm": all hold all; "cut": each holds another length of it; "holes": no window and no
            state is whole; "miss": nobody holds its first block.
        tier: medium that holds it; in STORAGE one store that all mount holds the prompt.
    """
    draw = np.random.default_rng(1)
    hashes = draw.integers(1, 2**64, blocks, np.uint64)
    index = FleetIndex()
    boundary = 0
    for replica in range(replicas):
        number = index.add(f"replica {replica}")
        length = blocks * (replica + 1) // replicas if case == "cut" else blocks
        held = {}
        for group in range(groups):
            kept = hashes[:length]
            if case == "holes" and group:
                kept = kept[np.arange(length) % 8 != 7] if group == 1 else NONE
            own = draw.integers(1, 2**64, own_blocks(blocks, replicas), np.uint64)
            if tier == "STORAGE":
                held[Place(tier, group, "store")] = (kept, NONE)
                held[Place("GPU", group)] = (own, NONE)
            else:
                held[Place(tier, group)] = (np.concatenate((kept, own)), NONE)
        index.restore(number, held)
        boundary += length * BLOCK if case in ("warm", "cut") else 0
    asked = hashes
    if case == "miss":
        asked = hashes.copy()
        asked[0] ^= np.uint64(1)
    return Question(index, ReuseQuery(shape_of(groups)), asked, boundary)


def payloads(events: int, each: int, batch: int, removed: bool = False) -> list[bytes]:
    """Batches as an engine publishes them.

    Args:
        events: in all.
        each: blocks of one event.
        batch: events of one batch.
        removed: the removals of the same blocks.
    """
    draw, words = np.random.default_rng(3), np.random.default_rng(5)
    found = []
    for _ in range(0, events, batch):
        rows = []
        for hashes in draw.integers(1, 2**64, (batch, each), np.uint64).tolist():
            event = {"type": "BlockRemoved" if removed else "BlockStored", "block_hashes": hashes}
            if not removed:
                event["parent_block_hash"] = hashes[0] ^ 1
                event["token_ids"] = words.integers(0, 128_000, each * BLOCK).tolist()
                event["block_size"] = BLOCK
                event["lora_id"] = event["lora_name"] = None
            event["medium"] = "GPU"
            event["group_idx"] = 0
            if not removed:
                event["kv_cache_spec_kind"] = "full_attention"
            rows.append(event)
        found.append(_ENCODE([1.0, rows, 0]))
    return found


def apply_seconds(index: FleetIndex, replica: int, batches: list[bytes]) -> float:
    """Seconds to decode and apply batches."""
    begin = time.perf_counter()
    for payload in batches:
        index.apply(replica, decode(payload))
    return time.perf_counter() - begin


def key_seconds(tokens: int) -> tuple[float, float]:
    """Seconds from token ids to keys: never seen, and seen before."""
    ids = np.random.default_rng(2).integers(0, 128_000, tokens).astype(np.uint32)
    prefixes = KnownPrefixes(BlockHasher("sha256", BLOCK))
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        prefixes.keys(ids)
        times.append(time.perf_counter() - begin)
    return times[0], times[1]


def clear_seconds(blocks: int, replicas: int) -> float:
    """Seconds to forget one of many replicas."""
    index = question(blocks, replicas, 1).index
    begin = time.perf_counter()
    index.remove(0)
    return time.perf_counter() - begin


def resident_bytes_per_block(blocks: int, replicas: int) -> float:
    """Resident memory of a fleet that shares a prompt while each replica has one of its own.

    To be asked once in a process that has measured nothing yet.
    """
    draw = np.random.default_rng(4)
    warm_up = FleetIndex()
    warm_up.restore(warm_up.add("r"), {Place("GPU", 0): (np.arange(9, dtype=np.uint64), NONE)})
    shared = draw.integers(1, 2**64, blocks, np.uint64)
    gc.collect()
    before = _resident()
    index = FleetIndex()
    for replica in range(replicas):
        number = index.add(f"replica {replica}")
        own = draw.integers(1, 2**64, blocks, np.uint64)
        index.restore(number, {Place("GPU", 0): (np.concatenate((shared, own)), NONE)})
    gc.collect()
    return (_resident() - before) / (blocks * (replicas + 1))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
