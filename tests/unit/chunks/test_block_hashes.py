"""Block hashes equal those of the installed vLLM, for every algorithm, token id and extra key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks.block_hashes import BlockHasher, Media
from kvstrata.chunks.known_prefixes import KnownPrefixes
from kvstrata.errors import ConfigError

ALGORITHMS = ["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"]
IDS = st.one_of(st.integers(0, 300), st.integers(0, 70_000), st.integers(0, 2**31 - 1))


def vllm_hashes(algorithm, block, seed, tokens, lora=None, salt=None) -> list[bytes]:
    """The chain as vLLM's own functions make it."""
    from vllm.utils.hashing import get_hash_fn_by_name

    function = get_hash_fn_by_name(algorithm)
    parent = function(seed)
    found = []
    for low in range(0, len(tokens) - block + 1, block):
        extra = [("lora", *lora)] if lora else []
        if salt and low == 0:
            extra.append(("cache_salt", salt))
        parent = function((parent, tuple(tokens[low : low + block]), tuple(extra) or None))
        found.append(parent)
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(ALGORITHMS),
    st.sampled_from([1, 2, 3, 4, 16, 24, 256]),
    st.lists(IDS, max_size=80),
    st.none() | st.tuples(st.text(max_size=300), st.text(max_size=30)),
    st.none() | st.text(max_size=30),
    st.text(alphabet="0123456789", min_size=1, max_size=5),
)
def test_hashes_are_vllms(algorithm, block, tokens, lora, salt, seed) -> None:
    tokens = tokens * (1 + 3 * block // 80)
    hasher = BlockHasher(algorithm, block, seed)
    expected = vllm_hashes(algorithm, block, seed, tokens, lora, salt)
    assert hasher.hashes(tokens, lora=lora, salt=salt) == expected
    known = KnownPrefixes(hasher)
    for _ in range(2):
        assert known.hashes(tokens, lora=lora, salt=salt) == expected


def test_blocks_longer_than_a_pickles_frame() -> None:
    tokens = np.arange(70_000, 70_000 + 40_000)
    found = BlockHasher("sha256", 20_000, "0").hashes(tokens)
    assert found == vllm_hashes("sha256", 20_000, "0", tokens.tolist())


@pytest.mark.parametrize(
    ("algorithm", "none_hash", "block"),
    [("sha256", "066b1e89", "fe8fa5dd"), ("sha256_cbor", "9bd96a48", "dc918a88")],
)
def test_without_a_seed_the_hashes_are_those_of_any_engine_without_one(
    algorithm, none_hash, block
) -> None:
    hasher = BlockHasher(algorithm, 16)
    assert hasher.none_hash.hex().startswith(none_hash)
    assert hasher.hashes(range(16))[0].hex().startswith(block)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_known_prefixes_change_nothing_but_the_time(data) -> None:
    """Prompts that share beginnings of any length, with a memory that is far too small."""
    hasher = BlockHasher("sha256", 4)
    capacity = data.draw(st.integers(1, 6))
    known = KnownPrefixes(hasher, capacity=capacity)
    base = np.random.default_rng(1).integers(0, 50_000, 4 * 64 * 5, dtype=np.uint32)
    for _ in range(data.draw(st.integers(1, 8))):
        prompt = base.copy()
        cut = data.draw(st.integers(0, len(base)))
        prompt[cut:] = data.draw(st.integers(0, 3))
        prompt = prompt[: data.draw(st.integers(0, len(base)))]
        salt = data.draw(st.sampled_from([None, "a", "b"]))
        hashes = hasher.hashes(prompt, salt=salt)
        keys = known.keys(prompt, salt=salt)
        assert keys.tolist() == [int.from_bytes(value[-8:], "big") for value in hashes]
        assert known.hashes(prompt, salt=salt) == hashes
        assert len(known) <= capacity


def test_hashes_go_on_from_a_parent() -> None:
    hasher = BlockHasher("sha256", 16)
    tokens = list(range(160))
    whole = hasher.hashes(tokens)
    assert whole[:4] + hasher.hashes(tokens[64:], parent=whole[3]) == whole


@pytest.mark.parametrize("tokens", [[-1] * 16, [2**31] * 16, [[1, 2]], [0.5] * 16, ["a"] * 16])
def test_what_is_no_token_id_is_refused(tokens) -> None:
    with pytest.raises(ValueError, match="token ids must"):
        BlockHasher("sha256", 16).hashes(tokens)


def test_what_cannot_be_computed_is_said() -> None:
    with pytest.raises(ConfigError, match="not known; known: sha256"):
        BlockHasher("md5", 16)
    with pytest.raises(ConfigError, match="PYTHONHASHSEED"):
        BlockHasher("xxhash", 16)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_images_enter_the_blocks_that_hold_them(data) -> None:
    """Against vLLM's own request and hasher."""
    from types import SimpleNamespace

    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.request import Request

    algorithm = data.draw(st.sampled_from(["sha256", "sha256_cbor"]))
    block = data.draw(st.sampled_from([4, 16]))
    tokens = data.draw(st.lists(IDS, min_size=1, max_size=60)) * data.draw(st.sampled_from([1, 9]))
    media, place = [], 0
    for number in range(data.draw(st.integers(0, 4))):
        place += data.draw(st.integers(0, 20))
        length = data.draw(st.integers(1, 40))
        if place + length <= len(tokens):
            media.append(Media(f"image {number}", place, length))
        place += length
    salt = data.draw(st.none() | st.just("salt"))
    function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(function)
    features = [
        SimpleNamespace(
            identifier=item.identifier,
            mm_position=SimpleNamespace(offset=item.offset, length=item.length),
        )
        for item in media
    ]
    request = Request(
        "r",
        tokens,
        SamplingParams(),
        None,
        mm_features=features,
        cache_salt=salt,
        block_hasher=kv_cache_utils.get_request_block_hasher(block, function),
    )
    hasher = BlockHasher(algorithm, block)
    assert hasher.hashes(tokens, salt=salt, media=media) == list(request.block_hashes)
    known = KnownPrefixes(hasher)
    for _ in range(2):
        assert known.hashes(tokens, salt=salt, media=media) == list(request.block_hashes)
