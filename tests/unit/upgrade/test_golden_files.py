"""Stored files of each format are read byte for byte; those of formats to come are misses that stay."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvstrata.chunks import record, segment
from kvstrata.chunks.key import relative_path
from kvstrata.chunks.keyring import Keyring
from kvstrata.errors import BadReason
from kvstrata.tiers.catalog import check_record, iter_namespaces
from kvstrata.tiers.place import find_place
from kvstrata.tiers.records import tenant_of
from kvstrata.tiers.spaces import TERMS_FILE, read_terms
from kvstrata.tiers.sweep import USAGE_FILE, read_usage
from kvstrata.tiers.tier import Bad, Loaded, Missing, Present, ReadOutcome, Stored
from kvstrata.wire import snapshot
from kvstrata.wire.batches import WireError
from lab import golden
from lab.fuzz import documented
from lab.fuzz.heads import repair

KEY_ID_AT = {3: record.CHECKSUMS_AT, 4: 80}
SEAL_KIND_AT = 34
LATER = 99


@pytest.fixture(params=golden.ROOTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(name: str, tmp_path: Path) -> Path:
    return golden.copy_of(name, tmp_path)


@pytest.fixture
def tier(name: str, root: Path) -> Any:
    made = golden.tier_of(name, root)
    made.prepare()
    return made


def read(tier: Any, chunk: golden.Chunk, first: int) -> tuple[ReadOutcome, bytes]:
    buffer = bytearray(len(chunk.payload))
    outcome = tier.read(chunk.key, memoryview(buffer), first)
    return outcome, bytes(buffer)


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_ino, path.read_bytes()) for path in root.rglob("*.kv")}


def path_of(tier: Any, chunk: golden.Chunk) -> Path:
    return Path(tier.directory / relative_path(chunk.key))


def test_every_chunk_is_read(tier: Any, root: Path) -> None:
    before = files(root)
    for chunk in golden.CHUNKS:
        for first in range(chunk.geometry.blocks_per_chunk):
            outcome, payload = read(tier, chunk, first)
            if first < chunk.first_block:
                assert outcome == Missing()
                continue
            low = first * chunk.geometry.block_bytes
            assert outcome == Loaded(len(payload) - low)
            assert payload == bytes(low) + chunk.payload[low:]
        with path_of(tier, chunk).open("rb") as file:
            assert tenant_of(file.fileno(), chunk.key) == chunk.tenant
        assert check_record(path_of(tier, chunk), keyring=Keyring([golden.MASTER]))
    assert set(tier.scan()) == {chunk.key for chunk in golden.CHUNKS}
    assert files(root) == before


def test_what_is_stored_is_not_written_again(tier: Any, root: Path) -> None:
    before = files(root)
    for chunk in golden.CHUNKS:
        outcome = tier.write(chunk.key, memoryview(chunk.payload), chunk.first_block)
        assert outcome == Present()
    assert files(root) == before


def test_plain_files_are_what_this_release_writes(tmp_path: Path) -> None:
    """A change here is a new format: it wants a new version, and golden files of its own."""
    golden.write("plain", tmp_path)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.kv")}
    kept = golden.STORED / "plain"
    for path in kept.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(kept)).read_bytes() == path.read_bytes(), path
    assert len(written) == len(golden.CHUNKS)


def test_plain_files_are_what_the_document_says() -> None:
    base = golden.STORED / "plain" / golden.namespace_of("plain").directory_name
    for together in [*((chunk,) for chunk in golden.RECORDS), *golden.SEGMENTS]:
        content = (base / relative_path(together[0].key)).read_bytes()
        found = documented.chunks_in(content)
        assert found is not None and [one.key for one in found] == [one.key for one in together]
        for chunk, one in zip(together, found, strict=True):
            size = chunk.geometry.block_bytes
            assert one.first_block == chunk.first_block
            for block in range(one.first_block, one.blocks):
                expected = chunk.payload[block * size : (block + 1) * size]
                assert one.block(content, block) == expected


def test_the_small_files(name: str, root: Path) -> None:
    (described,) = iter_namespaces(root)
    namespace = golden.namespace_of(name)
    assert described.path.name == namespace.directory_name
    assert described.covers == namespace.covers
    assert find_place(root, read_only=True) == (golden.PLACE, True)
    assert read_usage(root) == golden.USAGE
    assert read_terms(str(described.path)) == golden.TERMS


def test_an_engines_answer() -> None:
    kept = golden.STORED / golden.SNAPSHOT
    parts = [path.read_bytes() for path in sorted(kept.iterdir())]
    assert parts == golden.snapshot_parts()
    found = snapshot.decode(parts)
    assert found.header == golden.SNAPSHOT_HEADER
    assert list(found.held) == [place for place, _, _ in golden.SNAPSHOT_HELD]
    for place, hashes, again in golden.SNAPSHOT_HELD:
        assert [part.tolist() for part in found.held[place]] == [hashes.tolist(), again.tolist()]


# What is to come.


def change(path: Path, offset: int, value: bytes) -> None:
    """Change a header, with the checksum or tag that it then has; the file stays the same one."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    repair(content)
    with path.open("r+b") as file:
        file.write(content)


def check_misses_that_stay(tier: Any, root: Path, reason: BadReason) -> None:
    """Each stored chunk is a miss for this reason; its file stays until a write of the same chunk."""
    before = files(root)
    for chunk in golden.CHUNKS:
        outcome, payload = read(tier, chunk, chunk.first_block)
        assert isinstance(outcome, Bad) and outcome.reason is reason
        assert payload == bytes(len(payload))
    wanted = [
        (one.key, memoryview(bytearray(len(one.payload))), one.first_block) for one in golden.CHUNKS
    ]
    assert all(isinstance(outcome, Bad) for outcome in tier.read_many(wanted))
    assert files(root) == before
    chunk, *others = golden.SEGMENTS[0]
    for one in (chunk, golden.RECORDS[0]):
        written = tier.write(one.key, memoryview(one.payload), one.first_block)
        assert isinstance(written, Stored)
        assert isinstance(read(tier, one, one.first_block)[0], Loaded)
    after = files(root)
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {str(path_of(tier, one)) for one in (chunk, golden.RECORDS[0])}
    assert isinstance(read(tier, others[0], 0)[0], Bad)


def each_file(tier: Any) -> list[Path]:
    firsts = [*golden.RECORDS, *(together[0] for together in golden.SEGMENTS)]
    return [path_of(tier, chunk) for chunk in firsts]


def test_a_later_version_is_a_miss_that_stays(tier: Any, root: Path) -> None:
    for path in each_file(tier):
        change(path, 8, LATER.to_bytes(4, "little"))
    check_misses_that_stay(tier, root, BadReason.VERSION)


@pytest.mark.parametrize("name", ["authenticated", "encrypted"])
def test_another_kind_of_seal_is_a_miss_that_stays(tier: Any, root: Path) -> None:
    for path in each_file(tier):
        change(path, SEAL_KIND_AT, LATER.to_bytes(2, "little"))
    check_misses_that_stay(tier, root, BadReason.VERSION)


@pytest.mark.parametrize("name", ["authenticated", "encrypted"])
def test_another_key_is_a_miss_that_stays(tier: Any, root: Path) -> None:
    for path in each_file(tier):
        version = path.read_bytes()[8]
        assert version in (record.SEALED_RECORD_VERSION, segment.SEALED_SEGMENT_VERSION)
        change(path, KEY_ID_AT[version], b"\x07" * 8)
    check_misses_that_stay(tier, root, BadReason.SEALED)


def test_sealed_files_in_a_plain_engines_place_are_misses_that_stay(tmp_path: Path) -> None:
    """As after a key was taken away, if both wrote into one namespace, which they do not."""
    root = golden.copy_of("encrypted", tmp_path)
    sealed = golden.tier_of("encrypted", root).directory
    plain = golden.tier_of("plain", root)
    sealed.rename(plain.directory)
    (plain.directory / "namespace.json").unlink()
    plain.prepare()
    check_misses_that_stay(plain, root, BadReason.SEALED)


def test_unknown_facts_in_small_files_are_passed_over(name: str, root: Path) -> None:
    base = root / golden.namespace_of(name).directory_name
    for path in (root / USAGE_FILE, base / TERMS_FILE, base / "namespace.json"):
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "of_a_later_release": {"nested": [1]}}))
    assert read_usage(root) == golden.USAGE
    assert read_terms(str(base)) == golden.TERMS
    tier = golden.tier_of(name, root)
    tier.prepare()
    assert isinstance(read(tier, golden.RECORDS[0], 0)[0], Loaded)
    assert "of_a_later_release" in (base / "namespace.json").read_text(), "what is right stays"


@pytest.mark.parametrize("content", [b'{"used":"much"}', b"[1]", b"", b"\xff"])
def test_small_files_of_another_form_are_as_if_they_were_not(root: Path, content: bytes) -> None:
    (root / USAGE_FILE).write_bytes(content)
    assert read_usage(root) is None


def test_a_later_answer_of_an_engine_says_which_versions_meet() -> None:
    header = msgspec.structs.replace(golden.SNAPSHOT_HEADER, version=2)
    with pytest.raises(WireError, match=r"version 2 .* 1"):
        snapshot.decode(snapshot.encode(header))
    fields = msgspec.msgpack.decode(golden.snapshot_parts()[0])
    later = msgspec.msgpack.encode({**fields, "of_a_later_release": 1})
    assert snapshot.decode([later]).header == golden.SNAPSHOT_HEADER
