"""The document of the format on disk is true: its example, and a reader that is written from it."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import xxhash

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.record import MAX_BLOCKS, RECORD_VERSION, SEALED_RECORD_VERSION
from kvstrata.chunks.segment import MAX_CHUNKS, SEALED_SEGMENT_VERSION, SEGMENT_VERSION
from kvstrata.errors import CONTENT_REASONS, BadReason
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.recency import TOUCH_SECONDS
from kvstrata.tiers.tier import Stored

DOCUMENT = (Path(__file__).parents[3] / "docs" / "on-disk-format.md").read_text()
NAMESPACE = Namespace("org/tiny-model", {"dtype": "float32", "weights": "abc"})
HASH = "7c1d00112233445566778899aabbccdd"
KEY = make_key(bytes.fromhex(HASH), 1)
GEOMETRY = GroupGeometry(1, GroupKind.FULL, 16, 3, (8,))


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def example() -> bytes:
    """The bytes of the hex dump."""
    (dump,) = blocks_of("hex")
    data = bytearray(4112)
    for line in dump.splitlines():
        offset, row = int(line[:8], 16), bytes.fromhex(line[10:57])
        data[offset : offset + 16] = row
    return bytes(data)


def read_as_documented(data: bytes, fingerprint: bytes, key: bytes) -> dict[int, bytes]:
    """A reader that knows nothing but the document: no code of the package."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    def checksum(part: bytes) -> bytes:
        return xxhash.xxh3_128_intdigest(part, seed=0).to_bytes(16, "big")

    assert len(data) >= 144
    assert data[:8] == b"KVSTRATA"
    assert number(8, 4) == 1
    length = number(12, 4)
    assert length % 4096 == 0 and length <= len(data)
    assert checksum(data[:64] + bytes(16) + data[80:length]) == data[64:80]
    key_length, function = number(32, 2), number(34, 2)
    whole, first, size = number(36, 4), number(40, 4), number(48, 8)
    assert key_length <= 64 and function == 1 and first < whole
    assert length == -(-(144 + 16 * (whole - first)) // 4096) * 4096
    assert data[16:32] == fingerprint
    assert data[80 : 80 + key_length] == key
    blocks = {}
    for block in range(first, whole):
        start = length + size * (block - first)
        blocks[block] = data[start : start + size]
        place = 144 + 16 * (block - first)
        assert checksum(blocks[block]) == data[place : place + 16]
    return blocks


def test_the_example_is_what_the_tier_writes(tmp_path: Path) -> None:
    tier = FilesystemTier(tmp_path, NAMESPACE, {1: GEOMETRY})
    tier.prepare()
    assert tier.write(KEY, memoryview(b"--------BLOCK-1.BLOCK-2."), 1) == Stored(16)
    (named,) = blocks_of("path")
    assert named == f"{NAMESPACE.directory_name}/{relative_path(KEY)}\n"
    assert (tmp_path / named.strip()).read_bytes() == example()
    (described,) = blocks_of("json")
    assert (tier.directory / "namespace.json").read_text() == described


def test_a_reader_written_from_the_document_reads_the_example() -> None:
    (described,) = blocks_of("json")
    document = json.loads(described)
    canonical = json.dumps(document["covers"], sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode("ascii")).digest()[:16]
    assert fingerprint.hex() == document["fingerprint"]
    key = bytes.fromhex(HASH) + (1).to_bytes(4, "big")
    assert read_as_documented(example(), fingerprint, key) == {1: b"BLOCK-1.", 2: b"BLOCK-2."}


@pytest.mark.parametrize(("blocks", "first"), [(8, 0), (300, 0), (300, 200), (1, 0)])
def test_that_reader_reads_what_the_tier_writes(tmp_path: Path, blocks: int, first: int) -> None:
    geometry = GroupGeometry(1, GroupKind.FULL, 16, blocks, (30, 7))
    tier = FilesystemTier(tmp_path, NAMESPACE, {1: geometry})
    tier.prepare()
    payload = hashlib.shake_128(b"payload").digest(geometry.payload_bytes)
    tier.write(KEY, memoryview(payload), first)
    data = (tier.directory / relative_path(KEY)).read_bytes()
    assert read_as_documented(data, NAMESPACE.fingerprint, KEY) == {
        block: payload[block * 37 : (block + 1) * 37] for block in range(first, blocks)
    }


def read_segment_as_documented(data: bytes, fingerprint: bytes, key: bytes) -> dict[int, bytes]:
    """The same for a segment."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    def checksum(part: bytes) -> bytes:
        return xxhash.xxh3_128_intdigest(part, seed=0).to_bytes(16, "big")

    assert data[:8] == b"KVSTRATA" and number(8, 4) == 2
    length, whole, chunks, size = number(12, 4), number(36, 4), number(40, 4), number(48, 8)
    assert length % 4096 == 0 and number(34, 2) == 1
    assert checksum(data[:64] + bytes(16) + data[80:length]) == data[64:80]
    assert data[16:32] == fingerprint
    found, at = {}, 80 + 80 * chunks
    for entry in range(80, 80 + 80 * chunks, 80):
        first, offset = number(entry + 4, 4), number(entry + 8, 8)
        mine = data[entry + 16 : entry + 16 + number(entry, 2)] == key
        assert offset % 4096 == 0
        for block in range(first, whole):
            start = offset + size * (block - first)
            if mine:
                found[block] = data[start : start + size]
                assert checksum(found[block]) == data[at : at + 16]
            at += 16
    assert length == -(-at // 4096) * 4096
    return found


@pytest.mark.parametrize(("blocks", "first"), [(1, 0), (8, 3), (300, 0)])
def test_a_reader_written_from_the_document_reads_segments(
    tmp_path: Path, blocks: int, first: int
) -> None:
    geometry = GroupGeometry(1, GroupKind.FULL, 16, blocks, (30, 7))
    tier = FilesystemTier(tmp_path, NAMESPACE, {1: geometry})
    tier.prepare()
    keys = [make_key(hashlib.sha256(b"%d" % one).digest(), 1) for one in range(5)]
    payloads = {key: hashlib.shake_128(key).digest(geometry.payload_bytes) for key in keys}
    tier.write_many([(key, memoryview(payloads[key]), first) for key in keys])
    for key in keys:
        data = (tier.directory / relative_path(key)).read_bytes()
        assert read_segment_as_documented(data, NAMESPACE.fingerprint, key) == {
            block: payloads[key][block * 37 : (block + 1) * 37] for block in range(first, blocks)
        }


def test_numbers_and_reasons_are_the_codes_own() -> None:
    assert f"record version: {RECORD_VERSION}" in DOCUMENT
    assert f"record version: {SEGMENT_VERSION}" in DOCUMENT
    assert f"| version | {SEALED_RECORD_VERSION} | {SEALED_SEGMENT_VERSION} |" in DOCUMENT
    assert f"at most {MAX_CHUNKS} |" in DOCUMENT
    assert f"{MAX_BLOCKS:,}".replace(",", " ") in DOCUMENT
    assert TOUCH_SECONDS == 3600 and "more than an hour old" in DOCUMENT
    italic = set(re.findall(r"(?<!\*)\*([a-z]+)\*(?!\*)", DOCUMENT))
    from_the_system = {BadReason.PERMISSION, BadReason.IO, BadReason.SET_ASIDE}
    assert italic == {reason.value for reason in set(BadReason) - from_the_system}
    assert {reason.value for reason in CONTENT_REASONS} == italic - {
        "version",
        "namespace",
        "sealed",
    }
