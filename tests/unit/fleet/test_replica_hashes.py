"""An engine that hashes otherwise, or with other blocks, is found by its own events."""

import random

import msgspec
import pytest

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.fleet.findings import compare
from kvstrata.fleet.hashing import Recipe, find_recipe
from kvstrata.fleet.replica import Address, Rank
from kvstrata.wire.batches import decode, low_bits
from kvstrata.wire.samples import first_block
from kvstrata.wire.snapshot import EngineFacts, GroupFacts

SEED_42 = BlockHasher("sha256", 16, "42").none_hash


def payload(hasher: BlockHasher, block: int, group: int = 0, as_row: bool = False, **more) -> bytes:
    """A batch with a prompt's blocks of one group, as vLLM publishes it."""
    tokens = [random.randrange(50_000) for _ in range(4 * block)]
    factor = block // hasher.block_tokens
    hashes = [low_bits(value) for value in hasher.hashes(tokens)[factor - 1 :: factor]]
    event = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": tokens,
        "block_size": block,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": group,
        "kv_cache_spec_kind": "full_attention",
        **more,
    }
    row = ["BlockStored", *(event[name] for name in list(event)[1:8])]
    return msgspec.msgpack.encode([1.0, [{"type": "AllBlocksCleared"}, row if as_row else event]])


@pytest.mark.parametrize("as_row", [False, True])
@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor", "xxhash_cbor"])
@pytest.mark.parametrize(("hash_tokens", "block"), [(16, 16), (16, 48), (128, 256)])
def test_a_sample_gives_away_how_an_engine_hashes(algorithm, hash_tokens, block, as_row) -> None:
    seed = "7" if algorithm == "xxhash_cbor" else None
    hasher = BlockHasher(algorithm, hash_tokens, seed)
    sample = first_block(payload(hasher, block, as_row=as_row))
    assert sample is not None and len(sample.tokens) == block
    recipe = Recipe(algorithm, hasher.none_hash, hash_tokens)
    assert recipe.makes(sample)
    assert not Recipe(algorithm, SEED_42, hash_tokens).makes(sample)
    found = find_recipe(sample, [Recipe(algorithm, hasher.none_hash, 1)] if seed else [])
    assert found is not None and found.makes(sample)
    assert (found.algorithm, found.none_hash) == (algorithm, hasher.none_hash)


@pytest.mark.parametrize(
    "more",
    [
        {"parent_block_hash": 5},
        {"lora_name": "adapter"},
        {"extra_keys": [["salt"], None, None, None]},
        {"medium": "CPU"},
        {"block_size": 0},
        {"block_hashes": [1]},  # a window's end: nothing says which block it is
        {"token_ids": [-1, "x"]},
    ],
)
def test_what_cannot_be_computed_is_no_sample(more) -> None:
    assert first_block(payload(BlockHasher("sha256", 16), 16, **more)) is None


def test_hostile_bytes_are_no_sample() -> None:
    dice = random.Random(1)
    honest = payload(BlockHasher("sha256", 16), 16)
    for _ in range(2000):
        damaged = bytearray(honest)
        for _ in range(dice.randrange(1, 8)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        first_block(bytes(damaged[: dice.randrange(len(damaged))]))
        sample = first_block(bytes(damaged))
        if sample is not None:
            find_recipe(sample, [])


def rank(told: EngineFacts | None = None) -> Rank:
    made = Rank(Address("a", (("tcp://127.0.0.1:1", None),)).feeds()[0], 0)
    made.told = told
    return made


def look(one: Rank, *payloads: bytes, known=()) -> list[str]:
    for data in payloads:
        one.look(decode(data), data, known)
    return [finding.code for finding in one.findings()]


def facts(**changes) -> EngineFacts:
    settings = {
        "model": "m",
        "hash_algorithm": "sha256",
        "none_hash": BlockHasher("sha256", 16).none_hash,
        "hash_tokens": 16,
        "alignment_tokens": 16,
        "groups": (GroupFacts(0, "full", 16, 1, 1024),),
    }
    return EngineFacts(**{**settings, **changes})


def test_an_engine_that_does_what_it_tells_has_no_findings() -> None:
    hasher = BlockHasher("sha256", 16)
    assert look(rank(facts()), *(payload(hasher, 16) for _ in range(5))) == []


def test_an_engine_that_hashes_otherwise_than_it_tells_is_found() -> None:
    one = rank(facts())
    assert look(one, payload(BlockHasher("sha256", 16, "42"), 16)) == ["hash-unlike"]
    assert one.sampled == one.unlike == 1


def test_a_stock_engine_with_a_seed_is_found_and_with_a_known_one_understood() -> None:
    batch = payload(BlockHasher("sha256", 16, "42"), 16)
    assert look(rank(), batch) == ["hash-unlike"]
    one = rank()
    assert look(one, batch, known=[Recipe("sha256", SEED_42, 16)]) == []
    assert one.facts is not None and one.facts.none_hash == SEED_42


def test_a_stock_engines_groups_are_learned() -> None:
    hasher = BlockHasher("sha256_cbor", 128)
    one = rank()
    assert one.facts is None
    window = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 1024}
    assert look(one, payload(hasher, 128), payload(hasher, 256, 1, **window)) == []
    assert one.facts is not None
    assert one.facts.groups == (
        GroupFacts(0, "full", 128, 0, 0),
        GroupFacts(1, "window", 256, 0, 0, 1024),
    )
    assert (one.facts.hash_tokens, one.facts.alignment_tokens) == (128, 256)
    assert one.facts.hash_algorithm == "sha256_cbor"
    odd = {"kv_cache_spec_kind": "something_new"}
    assert look(one, payload(hasher, 128, 2, **odd)) == ["groups-unknown"]
    assert one.facts is None and "something_new" in one.ignorance


def test_replicas_that_differ_from_most_are_named_with_the_remedy() -> None:
    fleet = {"a": facts(), "b": facts(), "c": facts(hash_tokens=32), "d": facts(none_hash=SEED_42)}
    found = list(compare(fleet))
    assert [(one.code, one.replica) for one in found] == [("block-size", "c"), ("hash-seed", "d")]
    assert "--block-size" in found[0].text and "PYTHONHASHSEED" in found[1].text
    groups = (GroupFacts(0, "full", 32, 1, 1024),)
    assert [one.code for one in compare({**fleet, "c": facts(groups=groups)})] == [
        "hash-seed",
        "groups",
    ]
    assert list(compare({"a": facts(), "b": facts(model="other", hash_tokens=32)})) == []
    unknown = facts(model="", hash_algorithm="", none_hash=b"", hash_tokens=7, groups=())
    assert list(compare({"a": facts(), "b": unknown})) == []
