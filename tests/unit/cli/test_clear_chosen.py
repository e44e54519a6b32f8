"""`kvstrata clear` by model, tenant and prompt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.chunks.record import describe, encode
from kvstrata.chunks.tenants import tenant_mark, tenant_name
from kvstrata.cli.main import app
from kvstrata.cli.prompt_chunks import Hashing
from kvstrata.errors import ConfigError
from kvstrata.tiers.tier import Loaded, Missing, Stored
from tests.unit.cli.roots import GEOMETRIES, Root, set_age

BLOCK, CHUNK = 16, 64
TENANT, OTHER = "00112233445566aa", "ffffffffffffffff"


def facts(**changed: Any) -> dict[str, Any]:
    """What an engine says of its hashes and groups."""
    groups = [
        {
            "group": group,
            "kind": str(one.kind),
            "tokens_per_block": one.tokens_per_block,
            "blocks_per_chunk": one.blocks_per_chunk,
        }
        for group, one in GEOMETRIES.items()
    ]
    return {"hash_algorithm": "sha256", "hash_seed": "default", "groups": groups, **changed}


def keys_of(
    tokens: list[int], salt: str | None = None, size: int = BLOCK, seed: str | None = None
) -> list[ChunkKey]:
    """As an engine makes them, with hashes of `size` tokens."""
    hashes = BlockHasher("sha256", size, seed).hashes(tokens, salt=salt)[
        CHUNK // size - 1 :: CHUNK // size
    ]
    return [make_key(one, group) for one in hashes for group in GEOMETRIES]


def store(root: Root, keys: list[ChunkKey]) -> None:
    for key in keys:
        geometry = GEOMETRIES[int.from_bytes(key[-4:], "big")]
        payload = memoryview(bytearray(geometry.payload_bytes))
        assert isinstance(root.tier.write(key, payload), Stored)


def put_for(root: Root, number: int, tenant: str) -> ChunkKey:
    """A chunk of a tenant."""
    key = make_key(bytes([number]) * 32, 0)
    payload = memoryview(bytearray(GEOMETRIES[0].payload_bytes))
    header = describe(
        root.namespace.fingerprint, key, GEOMETRIES[0], payload, tenant=bytes.fromhex(tenant)
    )
    path = root.file(key)
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(header) + payload)
    return key


def run(*arguments: object, text: str | None = None) -> Any:
    return CliRunner().invoke(app, ["clear", *(str(one) for one in arguments)], input=text)


def cleared(*arguments: object) -> Any:
    result = run(*arguments, "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def write_ids(path: Path, tokens: list[int]) -> Path:
    path.write_text(json.dumps(tokens))
    return path


TOKENS = np.random.default_rng(1).integers(0, 50_000, 5 * CHUNK).tolist()


# --- by prompt -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 8, 1])
@pytest.mark.parametrize("salt", [None, "tenant-a"])
def test_a_prompts_chunks_go_and_no_others(tmp_path: Path, size: int, salt: str | None) -> None:
    root = Root(tmp_path / "root", **facts())
    own, longer = keys_of(TOKENS[: 3 * CHUNK], salt, size), keys_of(TOKENS, salt, size)
    others = keys_of(TOKENS[::-1], salt, size) + keys_of(TOKENS, "somebody else", size)
    store(root, longer + others)
    left = root.temporary(age=99999, beside=root.file(own[0]))
    ids = write_ids(tmp_path / "ids", TOKENS[: 3 * CHUNK + 5])
    arguments = [root.path, "--prompt-file", ids, *(["--salt", salt] if salt else [])]
    result = run(*arguments, "--yes", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["deleted"] == len(own) == 6
    assert "cannot be served without it" in result.stderr
    assert [root.readable(key) for key in longer] == [False] * 6 + [True] * 4
    assert all(root.readable(key) for key in others) and left.exists()


def test_an_engine_that_runs_misses_what_went_and_goes_on(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", **facts())
    keys = keys_of(TOKENS)
    store(root, keys)
    into = memoryview(bytearray(GEOMETRIES[0].payload_bytes))
    assert isinstance(root.tier.read(keys[0], into), Loaded)
    cleared(root.path, "--prompt-file", write_ids(tmp_path / "ids", TOKENS))
    assert isinstance(root.tier.read(keys[0], into), Missing)
    store(root, keys[:1])
    assert isinstance(root.tier.read(keys[0], into), Loaded)


def test_what_the_prompt_shares_a_file_with_stays(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", **facts())
    keys = [key for key in keys_of(TOKENS) if key[-1] == 0]
    size = GEOMETRIES[0].payload_bytes
    given = [(key, memoryview(bytearray(size)), 0) for key in keys]
    assert root.tier.write_many(given) == [Stored(size)] * 5
    cleared(root.path, "--prompt-file", write_ids(tmp_path / "ids", TOKENS[:CHUNK]))
    assert [root.readable(key) for key in keys] == [False] + [True] * 4


def test_by_prompt_and_age(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", **facts())
    keys = keys_of(TOKENS)
    store(root, keys)
    set_age(root.file(keys[2]), 7200)
    ids = write_ids(tmp_path / "ids", TOKENS)
    assert cleared(root.path, "--prompt-file", ids, "--older-than", "1h")["deleted"] == 1
    assert not root.readable(keys[2])


def test_a_prompt_from_standard_input_is_shown_alone(tmp_path: Path) -> None:
    root = Root(tmp_path, **facts())
    store(root, keys_of(TOKENS))
    result = run(tmp_path, "--prompt-file", "-", "--dry-run", text=json.dumps(TOKENS))
    assert result.exit_code == 0 and "10" in result.stdout
    assert all(root.readable(key) for key in keys_of(TOKENS))


def test_a_model_whose_groups_need_no_beginning_is_told_apart(tmp_path: Path) -> None:
    windows = [{**one, "kind": "state"} for one in facts()["groups"]]
    root = Root(tmp_path / "root", **facts(groups=windows))
    store(root, keys_of(TOKENS))
    ids = write_ids(tmp_path / "ids", TOKENS[:CHUNK])
    result = run(root.path, "--prompt-file", ids, "--yes")
    assert result.exit_code == 0
    assert "may still be served" in result.stderr


def test_a_namespace_with_a_random_seed_is_passed_over_unless_it_is_named(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", **facts())
    random = Root(tmp_path / "root", **facts(hash_algorithm="xxhash", hash_seed="random 77"))
    store(root, keys_of(TOKENS))
    ids = write_ids(tmp_path / "ids", TOKENS)
    named = run(random.path, "--prompt-file", ids, "--yes", "--namespace", random.directory.name)
    assert named.exit_code == 2 and "random seed" in named.stderr
    result = run(root.path, "--prompt-file", ids, "--yes")
    assert result.exit_code == 0 and random.directory.name in result.stderr
    assert not any(root.readable(key) for key in keys_of(TOKENS))


def test_a_seed_of_ones_own(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", **facts(hash_seed="=42"))
    keys = keys_of(TOKENS, seed="42")
    store(root, keys)
    ids = write_ids(tmp_path / "ids", TOKENS)
    assert cleared(root.path, "--prompt-file", ids)["deleted"] == len(keys)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"groups": None}, "does not say"),
        ({"groups": [{"group": 0}]}, "does not say"),
        ({"groups": [{**facts()["groups"][0], "tokens_per_block": 10**9}]}, "does not say"),
        ({"groups": []}, "does not say"),
        ({"hash_seed": "random 5"}, "random seed"),
        ({"hash_algorithm": "md5"}, "not known"),
    ],
)
def test_a_description_that_does_not_tell(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Hashing.of(facts(**changed))
    with pytest.raises(ConfigError, match="missing"):
        Hashing.of(None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--salt", "x"),
        ("--tokenizer", "x"),
        ("--tenant", TENANT, "--temporary"),
        ("--tenant", "nobody"),
        ("--prompt-file", "/dev/null"),
        ("--prompt-file", "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_done_deletes_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    root = Root(tmp_path, **facts())
    root.fill(2)
    result = run(tmp_path, *arguments, "--yes")
    assert result.exit_code == 2 and result.stderr.startswith("kvstrata: ")
    assert all(root.readable(key) for key in root.keys)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(0, 300),
    st.integers(0, 4),
)
@settings(max_examples=50)
def test_the_keys_are_those_of_engines(
    shapes: list[tuple[int, int]], length: int, finer: int
) -> None:
    """Whatever the blocks' sizes are, and the hashes' among what divides them all."""
    blocks = [2**power for power, _ in shapes]
    groups = [
        {"group": n, "kind": "full", "tokens_per_block": block, "blocks_per_chunk": shape[1]}
        for n, (block, shape) in enumerate(zip(blocks, shapes, strict=True))
    ]
    size = max(min(blocks) >> finer, 1)
    tokens = list(range(length))
    hashes = BlockHasher("sha256", size).hashes(tokens)
    expected = {
        make_key(hashes[end // size - 1], n)
        for n, (block, (_, count)) in enumerate(zip(blocks, shapes, strict=True))
        for end in range(block * count, length + 1, block * count)
    }
    found = list(Hashing.of(facts(groups=groups)).keys(tokens, None))
    assert expected <= set(found) and len(found) == len(set(found))


# --- by tenant and model -------------------------------------------------------------------


def test_one_tenants_chunks_go(tmp_path: Path) -> None:
    root, elsewhere = Root(tmp_path), Root(tmp_path, weights="xyz")
    theirs = [put_for(root, 1, TENANT), put_for(root, 2, TENANT)]
    others = [put_for(root, 3, OTHER)]
    far = put_for(elsewhere, 4, TENANT)
    root.fill(5)
    root.temporary(age=99999)
    assert cleared(tmp_path, "--tenant", TENANT.upper(), "--dry-run")["deleted"] == 3
    assert elsewhere.readable(far)
    assert cleared(tmp_path, "--tenant", TENANT)["deleted"] == 3
    assert not elsewhere.readable(far) and not any(root.readable(key) for key in theirs)
    assert all(root.readable(key) for key in others + root.keys)
    assert cleared(tmp_path, "--tenant", "none")["deleted"] == 5
    assert root.readable(others[0])


def test_a_tenants_name_finds_its_chunks_in_every_namespace(tmp_path: Path) -> None:
    roots = [Root(tmp_path), Root(tmp_path, weights="xyz")]
    name = tenant_name("a salt")
    theirs = [
        put_for(root, 1, tenant_mark(name, root.namespace.fingerprint).hex()) for root in roots
    ]
    other = put_for(roots[0], 2, tenant_mark(name, roots[1].namespace.fingerprint).hex())
    assert cleared(tmp_path, "--tenant", name.hex())["deleted"] == 2
    assert not any(root.readable(key) for root, key in zip(roots, theirs, strict=True))
    assert roots[0].readable(other)


def test_a_prompts_directory_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", **facts())
    store(root, keys_of(TOKENS[:CHUNK]))
    directory = root.file(keys_of(TOKENS)[0]).parent
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    ids = write_ids(tmp_path / "ids", TOKENS)
    assert cleared(root.path, "--prompt-file", ids)["deleted"] == 0
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_usage_tells_tenants_apart(tmp_path: Path) -> None:
    root = Root(tmp_path)
    put_for(root, 1, TENANT)
    put_for(root, 2, OTHER)
    root.fill(2)
    result = CliRunner().invoke(app, ["usage", str(tmp_path), "--json"])
    tenants = json.loads(result.stdout)["tenants"]
    assert {name: one["chunks"]["estimate"] for name, one in tenants.items()} == {
        TENANT: 1,
        OTHER: 1,
        "none": 2,
    }


def test_by_model(tmp_path: Path) -> None:
    small, large = Root(tmp_path, model="org/small"), Root(tmp_path, model="org/large")
    same = Root(tmp_path, model="org/small", weights="xyz")
    for root in (small, large, same):
        root.fill(2)
    assert cleared(tmp_path, "--model", "small")["deleted"] == 4
    assert all(large.readable(key) for key in large.keys)
    result = run(tmp_path, "--model", "org/other", "--yes")
    assert result.exit_code == 2 and "org/large" in result.stderr
    assert cleared(tmp_path, "--model", "elsewhere/large")["deleted"] == 2
