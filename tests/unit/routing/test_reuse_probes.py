"""The questions that other indexes answer wrongly, with vLLM's answers, and what is said about them."""

import json

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.routing.reuse import explain, find_reuse
from kvstrata.routing.shape import Holdings, ModelShape
from kvstrata.wire.batches import Batch, Cleared, Stored
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import EngineFacts, GroupFacts, Place

BLOCK, BLOCKS = 16, 64
TOKENS = BLOCK * BLOCKS + 1
HASHES = [(i * 0x9E3779B97F4A7C15) % 2**64 for i in range(1, BLOCKS + 1)]


def group(index: int, kind: GroupKind, window: int = 0, per_chunk: int = 1) -> GroupGeometry:
    return GroupGeometry(index, kind, BLOCK, per_chunk, (100, 100), window)


def shape_of(*groups: GroupGeometry) -> ModelShape:
    return ModelShape.make(list(groups), BLOCK, BLOCK, frozenset(g.group for g in groups))


FULL = group(0, GroupKind.FULL)
WINDOW = group(1, GroupKind.WINDOW, 8 * BLOCK)
STATE = group(1, GroupKind.STATE)


def reuse(shape, device=None, memory=None, storage=None, tokens=TOKENS, cap=None):
    """Of a replica; content as slices of the prompt's blocks, by group."""
    return find_reuse(shape, HASHES, tokens, holdings(device, memory, storage), cap)


def holdings(*tiers) -> Holdings:
    return Holdings(
        *({g: {HASHES[i] for i in blocks} for g, blocks in (tier or {}).items()} for tier in tiers)
    )


def blocks_of(reached) -> int:
    return reached.tokens // BLOCK


ALL = range(BLOCKS)


def test_a_window_of_which_only_the_beginning_is_left() -> None:
    found = reuse(shape_of(FULL, WINDOW), {0: ALL, 1: range(4)})
    assert blocks_of(found.device) == 4
    (cut,) = found.device.cuts
    assert (cut.groups, cut.before, cut.after) == ((1,), BLOCKS * BLOCK, 4 * BLOCK)


def test_a_pure_window_with_its_end() -> None:
    only = group(0, GroupKind.WINDOW, 8 * BLOCK)
    found = reuse(shape_of(only), {0: range(56, 64)})
    assert blocks_of(found.device) == 64 and found.device.cuts == ()
    assert blocks_of(reuse(shape_of(only), {0: range(57, 64)}).device) == 0


def test_a_state_after_block_17() -> None:
    assert blocks_of(reuse(shape_of(FULL, STATE), {0: ALL, 1: [16]}).device) == 17


def test_two_full_groups_of_which_one_is_cut() -> None:
    found = reuse(shape_of(FULL, group(1, GroupKind.FULL)), {0: ALL, 1: range(10)})
    assert blocks_of(found.device) == 10
    assert [cut.groups for cut in found.device.cuts] == [(1,)]


def test_the_last_token_is_always_computed() -> None:
    assert blocks_of(reuse(shape_of(FULL), {0: ALL}, tokens=TOKENS - 1).device) == 63


@pytest.mark.parametrize(("medium", "tier"), [("CPU", "memory"), ("STORAGE", "storage")])
def test_what_another_engine_stored_counts_where_it_can_be_read(medium: str, tier: str) -> None:
    """Storage is announced by one engine and reached by all that mount it; memory is its own."""
    writer = Contents()
    writer.apply(Batch(0.0, 0, [Stored(HASHES[:20], None, 0, 0, medium, 0, owner="s")], 0))
    shared = {place: held for place, held in writer.held.items() if place.medium == "STORAGE"}
    other = find_reuse(shape_of(FULL), HASHES, TOKENS, Holdings.of(shared))
    own = find_reuse(shape_of(FULL), HASHES, TOKENS, Holdings.of(writer.held))
    assert blocks_of(own.storage) == 20
    assert blocks_of(other.storage) == (20 if medium == "STORAGE" else 0)
    (load,) = own.storage.loads
    assert (load.tier, load.chunks, load.tokens, load.bytes) == (tier, 20, 320, 20 * 200)


def test_several_storages_are_one_reach() -> None:
    held = {
        Place("STORAGE", 0, "a"): set(HASHES[:10]),
        Place("STORAGE", 0, "b"): set(HASHES[10:30]),
        Place("MOON", 0): set(HASHES),
    }
    assert blocks_of(find_reuse(shape_of(FULL), HASHES, TOKENS, Holdings.of(held)).storage) == 30


def test_a_cleared_device_cache_is_empty_and_the_tiers_stay() -> None:
    contents = Contents()
    contents.apply(Batch(0.0, 0, [Stored(HASHES, None, 0, 0, "GPU", 0)], 0))
    contents.apply(Batch(0.0, 0, [Stored(HASHES[:9], None, 0, 0, "CPU", 0)], 0))
    contents.apply(Batch(0.0, 0, [Cleared()], 0))
    found = find_reuse(shape_of(FULL), HASHES, TOKENS, Holdings.of(contents.held))
    assert (blocks_of(found.device), blocks_of(found.memory)) == (0, 9)


def test_window_on_the_device_and_prefix_in_storage() -> None:
    """The tiers continue where the device ends: a window that only the device has does not help them."""
    shape = shape_of(FULL, WINDOW)
    found = reuse(shape, {0: range(10), 1: range(50)}, storage={0: ALL})
    assert blocks_of(found.device) == 10 and blocks_of(found.storage) == 10
    assert [cut.groups for cut in found.storage.cuts] == [(1,)]
    found = reuse(shape, {0: range(10), 1: range(2, 10)}, storage={0: ALL, 1: [10, 11]})
    assert blocks_of(found.storage) == 12
    loads = {(load.tier, load.group): load.chunks for load in found.storage.loads}
    assert loads == {("storage", 0): 2, ("storage", 1): 2}


def test_only_what_a_resume_reads_is_moved_and_memory_comes_first() -> None:
    shape = shape_of(FULL, WINDOW)
    found = reuse(shape, memory={0: range(40), 1: range(40)}, storage={0: ALL, 1: ALL})
    assert (blocks_of(found.memory), blocks_of(found.storage)) == (40, 64)
    moved = {(load.tier, load.group): load.chunks for load in found.storage.loads}
    assert moved == {("memory", 0): 40, ("storage", 0): 24, ("storage", 1): 8}
    assert found.storage.bytes_from("storage") == 32 * 200


def test_a_cap_on_loads_counts_from_the_device() -> None:
    found = reuse(shape_of(FULL), {0: range(10)}, storage={0: ALL}, cap=100)
    assert found.storage.tokens == 10 * BLOCK + 96
    assert reuse(shape_of(FULL), {0: range(10)}, storage={0: ALL}, cap=15).storage.loads == ()


def test_nothing_is_loaded_of_an_engine_without_tiers() -> None:
    shape = ModelShape.make([FULL], BLOCK, BLOCK)
    found = reuse(shape, {0: range(3)}, memory={0: ALL}, storage={0: ALL})
    assert {blocks_of(r) for r in (found.device, found.memory, found.storage)} == {3}


def test_what_is_told_can_be_written_out() -> None:
    found = reuse(shape_of(FULL, WINDOW), {0: ALL, 1: range(4)}, storage={1: range(30)})
    told = json.loads(json.dumps(explain(found)))
    assert told["device"]["tokens"] == 64
    assert told["device"]["cuts"] == [
        {"groups": [1], "kind": "window", "before": 1024, "after": 64}
    ]
    assert told["storage"]["cuts"][0]["groups"] == [0]
    assert told["exact"] is True and told["doubts"] == []


def facts(*groups: GroupFacts, unit: int = 16, block: int = 16) -> EngineFacts:
    return EngineFacts("m", "sha256", b"", unit, block, groups)


def test_a_shape_from_what_an_engine_tells() -> None:
    shape = ModelShape.of(
        facts(GroupFacts(0, "full", 16, 2, 512), GroupFacts(2, "window", 16, 0, 512, 40, 3))
    )
    assert shape.tiered == {0} and shape.exact and shape.step == 16
    full, window = shape.groups
    assert (full.tokens_per_chunk, full.payload_bytes) == (32, 1024)
    assert (window.group, window.window_tokens, window.extra_tokens) == (2, 40, 3)


def test_states_with_several_hashes_a_block_are_found_inside_blocks() -> None:
    told = GroupFacts(0, "full", 32, 0, 1), GroupFacts(1, "state", 32, 0, 1)
    assert ModelShape.of(facts(*told, unit=8, block=32)).alignment_tokens == 8
    kept = GroupFacts(2, "window", 32, 0, 1, 100)
    assert ModelShape.of(facts(*told, kept, unit=8, block=32)).alignment_tokens == 32


@pytest.mark.parametrize(
    "groups",
    [
        (GroupFacts(0, "full", 32, 1, 1), GroupFacts(1, "state", 32, 1, 1)),  # hashes inside blocks
        (GroupFacts(0, "full", 32, 1, 1), GroupFacts(1, "local", 8, 1, 1, 64)),
        (GroupFacts(0, "full", 32, 1, 1), GroupFacts(1, "full", 8, 1, 1)),
        (GroupFacts(0, "full", 32, 2, 1), GroupFacts(1, "window", 32, 2, 1, 64)),
    ],
)
def test_doubts_are_named(groups) -> None:
    shape = ModelShape.of(facts(*groups, unit=8, block=32))
    found = find_reuse(shape, HASHES, TOKENS, Holdings({}, {}, {}))
    assert not found.exact and len(found.doubts) == 1 and len(found.doubts[0]) > 30


@pytest.mark.parametrize(
    "told",
    [
        facts(),
        facts(GroupFacts(0, "telepathy", 16, 1, 1)),
        facts(GroupFacts(0, "window", 16, 1, 1)),
        facts(GroupFacts(0, "full", 16, 1, 1, 5)),
        facts(GroupFacts(0, "full", 0, 1, 1)),
        facts(GroupFacts(0, "full", 16, -1, 1)),
        facts(GroupFacts(0, "full", 24, 1, 1)),
        facts(GroupFacts(0, "full", 32, 1, 1)),
        facts(GroupFacts(0, "full", 16, 1, 1), unit=0),
    ],
)
def test_facts_that_cannot_be_are_refused(told) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ModelShape.of(told)
