"""Compiled chains of block hashes equal vLLM's, and give way where they would not."""

import hashlib
import pickle
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks import block_hashes
from kvstrata.chunks.block_hashes import BlockHasher, Media
from kvstrata.chunks.known_prefixes import KnownPrefixes

IDS = st.one_of(
    st.integers(0, 300),
    st.sampled_from([23, 24, 255, 256, 65_535, 65_536]),
    st.integers(0, 2**31 - 1),
)


@pytest.fixture(scope="module", autouse=True)
def compiled_chains() -> Iterator[None]:
    """Compiled code in use; other tests try what there is without it."""
    block_hashes._compiled.cache_clear()
    block_hashes.warm()
    assert block_hashes._compiled() is not None
    yield
    block_hashes._compiled.cache_clear()


def by_vllm(algorithm: str, block: int, tokens: list[int], extras: list) -> list[bytes]:
    """The chain as vLLM's own functions make it; `extras` by block, the last for all that follow."""
    from vllm.utils.hashing import get_hash_fn_by_name

    function = get_hash_fn_by_name(algorithm)
    parent = function("7")
    found = []
    for number, low in enumerate(range(0, len(tokens) - block + 1, block)):
        extra = extras[min(number, len(extras) - 1)]
        parent = function((parent, tuple(tokens[low : low + block]), extra))
        found.append(parent)
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["sha256", "sha256_cbor"]),
    st.sampled_from([1, 3, 4, 5, 16, 23, 24, 255, 256, 300]),
    st.lists(IDS, max_size=80),
    st.none() | st.tuples(st.text(max_size=300), st.text(max_size=30)),
    st.none() | st.text(min_size=1, max_size=30),
)
def test_compiled_chains_are_vllms(algorithm, block, tokens, lora, salt) -> None:
    tokens = tokens * (1 + 3 * block // 80)
    common = (("lora", *lora),) if lora else ()
    first = (*common, ("cache_salt", salt)) if salt else common
    expected = by_vllm(algorithm, block, tokens, [first or None, common or None])
    hasher = BlockHasher(algorithm, block, "7")
    assert hasher.hashes(tokens, lora=lora, salt=salt) == expected
    known = KnownPrefixes(hasher)
    for _ in range(2):
        assert known.hashes(tokens, lora=lora, salt=salt) == expected
        low = [int.from_bytes(one[-8:], "big") for one in expected]
        assert known.keys(tokens, lora=lora, salt=salt).tolist() == low


def test_a_long_prompt_with_an_image_is_as_without_compiled_code() -> None:
    tokens = np.random.default_rng(3).integers(0, 2**31, 16 * 3000 + 5, np.uint32)
    media = [Media("picture", 70, 400), Media("other", 9000, 10)]
    hasher = BlockHasher("sha256", 16)
    fast = hasher.hashes(tokens, media=media)
    block_hashes._compiled.cache_clear()
    plain = hasher.hashes(tokens, media=media)
    block_hashes.warm()
    assert fast == plain
    assert len(fast) == 3000


def test_another_kind_of_parent_goes_the_plain_way() -> None:
    hasher = BlockHasher("sha256", 16)
    hasher.none_hash = b"n" * 16
    fast = hasher.hashes(range(64))
    block_hashes._compiled.cache_clear()
    plain = hasher.hashes(range(64))
    block_hashes.warm()
    assert fast == plain


@pytest.mark.parametrize("lack", ["numba", "_hashlib", "symbol"])
def test_without_what_it_needs_hashes_are_made_the_plain_way(
    monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    block_hashes._compiled.cache_clear()
    monkeypatch.delitem(sys.modules, "kvstrata.chunks.hash_chain", raising=False)
    monkeypatch.delattr("kvstrata.chunks.hash_chain", raising=False)
    if lack == "symbol":
        import _hashlib
        import _struct

        monkeypatch.setattr(_hashlib, "__file__", _struct.__file__)  # a library without them
    else:
        monkeypatch.setitem(sys.modules, lack, None)
    block_hashes.warm()
    assert block_hashes._compiled() is None
    hasher = BlockHasher("sha256", 16)
    block = pickle.dumps((hasher.none_hash, tuple(range(16)), None), protocol=5)
    assert hasher.hashes(range(16)) == [hashlib.sha256(block).digest()]
    monkeypatch.undo()
    block_hashes._compiled.cache_clear()
    block_hashes.warm()


def test_compiled_code_that_gives_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kvstrata.chunks import hash_chain

    block_hashes._compiled.cache_clear()
    monkeypatch.setattr(hash_chain, "sha256_chain", lambda *_: b"x" * 128)
    block_hashes.warm()
    assert block_hashes._compiled() is None
    monkeypatch.undo()
    block_hashes._compiled.cache_clear()
    block_hashes.warm()
