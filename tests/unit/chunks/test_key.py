"""Keys, their file names, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.key import group_of, hash_of, make_key, parse_file_name, relative_path

hashes = st.sampled_from([16, 32]).flatmap(lambda n: st.binary(min_size=n, max_size=n))
groups = st.integers(0, 999_999_999)


@given(hashes, groups)
def test_a_key_is_hash_and_group(block_hash: bytes, group: int) -> None:
    key = make_key(block_hash, group)
    assert hash_of(key) == block_hash
    assert group_of(key) == group
    assert len(key) == len(block_hash) + 4


@given(hashes, groups)
def test_a_file_name_leads_back_to_its_key(block_hash: bytes, group: int) -> None:
    key = make_key(block_hash, group)
    outer, inner, name = relative_path(key).split("/")
    assert parse_file_name(name) == key
    assert bytes.fromhex(outer + inner) == block_hash[:2]


@given(st.text(alphabet="0123456789abcdefg.kvAF-tmp", max_size=80))
def test_a_parsed_name_is_the_name_of_its_key(name: str) -> None:
    key = parse_file_name(name)
    if key is not None:
        assert relative_path(key).rsplit("/", 1)[-1] == name


HASH = "ab" * 16


@pytest.mark.parametrize(
    "name",
    [
        "",
        "namespace.json",
        f".tmp-1-{'0' * 16}",
        f"{HASH}.g0",
        f"{HASH}.kv",
        f"{HASH}.g.kv",
        f"{HASH}.g-1.kv",
        f"{HASH}.g00.kv",
        f"{HASH}.g01.kv",
        f"{HASH}.g0.kv.bak",
        f"{HASH}.g0.kv\n",
        f".{HASH}.g0.kv",
        f"{HASH.upper()}.g0.kv",
        f"{HASH[:-1]}.g0.kv",
        f"{HASH}.g\N{FULLWIDTH DIGIT NINE}.kv",
        "abcd.g0.kv",
    ],
)
def test_other_names_are_no_chunks(name: str) -> None:
    assert parse_file_name(name) is None


def test_the_layout_is_the_documented_one() -> None:
    key = make_key(bytes.fromhex("0102" + "ff" * 14), 258)
    assert key.hex() == "0102" + "ff" * 14 + "00000102"
    assert relative_path(key) == f"01/02/0102{'ff' * 14}.g258.kv"
