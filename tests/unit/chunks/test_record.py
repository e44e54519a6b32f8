"""Records: whatever the bytes, a reader gets the chunk that was stored or a `RecordError`."""

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.checksum import digest
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.chunks.record import (
    MAX_BLOCKS,
    PAGE,
    ExpectedHeader,
    RecordHeader,
    check_identity,
    declared_header_bytes,
    decode,
    describe,
    encode,
    header_bytes,
)
from kvstrata.errors import BadReason, RecordError

NAMESPACE = bytes(range(16))
KEY = make_key(hashlib.sha256(b"a chunk").digest(), 3)
GEOMETRY = GroupGeometry(3, GroupKind.FULL, 16, 5, (100, 20))


def payload_of(geometry: GroupGeometry) -> memoryview:
    return memoryview(hashlib.shake_128(b"payload").digest(geometry.payload_bytes))


def record(geometry: GroupGeometry = GEOMETRY, first_block: int = 0) -> bytes:
    payload = payload_of(geometry)
    header = describe(NAMESPACE, KEY, geometry, payload, first_block)
    return encode(header) + bytes(payload[first_block * geometry.block_bytes :])


def read_record(
    data: bytes | bytearray,
    geometry: GroupGeometry = GEOMETRY,
) -> dict[int, bytes]:
    """All blocks of a record, each verified: a plain reader without shortcuts."""
    header = decode(data)
    check_identity(header, NAMESPACE, KEY, geometry)
    blocks = {}
    for block in range(header.first_block, header.blocks):
        start = header.block_offset(block)
        content = bytes(data[start : start + header.block_bytes])
        header.verify(block, content)
        blocks[block] = content
    return blocks


headers = st.builds(
    RecordHeader,
    namespace=st.binary(min_size=16, max_size=16),
    key=st.binary(max_size=64),
    blocks=st.integers(1, 600),
    first_block=st.just(0),
    tokens_per_block=st.integers(0, 2**32 - 1),
    block_bytes=st.integers(0, 2**64 - 1),
    checksums=st.just(()),
    tenant=st.binary(min_size=8, max_size=8),
).flatmap(
    lambda header: st.integers(0, header.blocks - 1).map(
        lambda first: replace(
            header,
            first_block=first,
            checksums=tuple(digest(struct.pack("<I", b)) for b in range(first, header.blocks)),
        )
    )
)


@given(headers)
def test_what_was_encoded_is_decoded(header: RecordHeader) -> None:
    data = encode(header)
    assert len(data) == header.header_bytes == declared_header_bytes(data)
    assert len(data) % PAGE == 0
    assert decode(data) == header
    assert decode(data + b"more") == header


@pytest.mark.parametrize(("blocks", "pages"), [(1, 1), (247, 1), (248, 2), (300, 2), (504, 3)])
def test_a_header_grows_by_pages(blocks: int, pages: int) -> None:
    assert header_bytes(blocks) == pages * PAGE


@pytest.mark.parametrize("first_block", [0, 1, 4])
def test_a_record_holds_its_blocks(first_block: int) -> None:
    size = GEOMETRY.block_bytes
    payload = payload_of(GEOMETRY)
    assert read_record(record(first_block=first_block)) == {
        block: payload[block * size : (block + 1) * size] for block in range(first_block, 5)
    }


@given(st.binary(max_size=9000))
def test_any_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(RecordError):
        decode(data)


@given(st.binary(max_size=300), st.integers(0, 3))
def test_bytes_that_begin_like_a_record_are_none(tail: bytes, pages: int) -> None:
    data = struct.pack("<8sII", b"KVSTRATA", 1, pages * PAGE) + tail
    with pytest.raises(RecordError):
        decode(data.ljust(pages * PAGE, b"\0"))


@given(st.data())
def test_a_changed_record_is_refused_or_unchanged_where_it_is_read(data: st.DataObject) -> None:
    first = data.draw(st.sampled_from([0, 2]))
    original = record(first_block=first)
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the changes hit the header's fields, which would be a rare target otherwise.
        end = data.draw(st.sampled_from([len(original), 240]))
        place = data.draw(st.integers(0, end - 1))
        changed[place] = data.draw(st.integers(0, 255))
    changed = changed[: data.draw(st.sampled_from([len(original), len(original) - 1, 4096, 143]))]
    try:
        blocks = read_record(changed)
    except RecordError:
        return
    assert blocks == read_record(original)


@given(st.integers(0, 8 * 4096 - 1))
def test_any_flipped_bit_of_a_header_is_found(bit: int) -> None:
    changed = bytearray(record())
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordError) as caught:
        decode(changed)
    if bit < 64:
        assert caught.value.reason is BadReason.FOREIGN
    elif bit < 96:
        assert caught.value.reason is BadReason.VERSION
    else:
        assert caught.value.reason in (BadReason.HEADER, BadReason.TRUNCATED)


@given(st.integers(0, 8 * 600 - 1))
def test_any_flipped_bit_of_the_payload_is_found_in_its_block_alone(bit: int) -> None:
    changed = bytearray(record())
    changed[PAGE + bit // 8] ^= 1 << bit % 8
    header = decode(changed)
    for block in range(5):
        content = changed[header.block_offset(block) :][: header.block_bytes]
        if block == bit // 8 // GEOMETRY.block_bytes:
            with pytest.raises(RecordError, match="checksum"):
                header.verify(block, content)
        else:
            header.verify(block, content)


@given(
    st.integers(0, 5),
    st.sampled_from([b"a chunk", b"another"]),
    st.sampled_from([GEOMETRY, replace(GEOMETRY, tokens_per_block=32)]),
    st.none() | st.integers(0, 8 * PAGE - 1),
    st.booleans(),
    st.binary(min_size=8, max_size=8),
)
def test_what_is_as_expected_is_what_decoding_accepts(
    first_block: int,
    label: bytes,
    geometry: GroupGeometry,
    bit: int | None,
    resealed: bool,
    tenant: bytes,
) -> None:
    payload = payload_of(GEOMETRY)
    written = describe(NAMESPACE, KEY, GEOMETRY, payload, min(first_block, 4), tenant)
    if first_block == 5:  # no such header is ever written; a valid checksum makes it no better
        written = replace(written, first_block=5, checksums=())
    data = bytearray(encode(written))
    if bit is not None:
        data[bit // 8] ^= 1 << bit % 8
        if resealed:
            data[64:80] = bytes(16)
            data[64:80] = digest(data)
    before = bytes(data)
    key = make_key(hashlib.sha256(label).digest(), 3)
    try:
        header = decode(data)
        check_identity(header, NAMESPACE, key, geometry)
        accepted: int | None = header.first_block
    except RecordError:
        accepted = None
    found = ExpectedHeader(NAMESPACE, geometry).first_block(data, key)
    assert data == before
    # Bytes that mean nothing may differ: such a header is decoded, and then as good as any.
    assert found == accepted or (found is None and bit is not None and resealed)


FIELDS = {
    "namespace": (16, "16s"),
    "key_length": (32, "<H"),
    "checksum": (34, "<H"),
    "blocks": (36, "<I"),
    "first_block": (40, "<I"),
}


def forged(field: str, value: int) -> bytes:
    """A record with one field changed under a valid checksum."""
    data = bytearray(record())
    offset, form = FIELDS[field]
    struct.pack_into(form, data, offset, value)
    data[64:80] = bytes(16)
    data[64:80] = digest(data[:PAGE])
    return bytes(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key_length", 65),
        ("checksum", 2),
        ("blocks", 0),
        ("blocks", 248),
        ("blocks", MAX_BLOCKS + 1),
        ("first_block", 5),
        ("first_block", 2**32 - 1),
    ],
)
def test_fields_that_contradict_each_other(field: str, value: int) -> None:
    with pytest.raises(RecordError) as caught:
        decode(forged(field, value))
    assert caught.value.reason is BadReason.HEADER


@pytest.mark.parametrize("length", [0, 100, PAGE - 1, PAGE + 1, 1 << 30, 2**32 - PAGE])
def test_an_impossible_header_length_is_refused_before_it_is_read(length: int) -> None:
    data = bytearray(record())
    struct.pack_into("<I", data, 12, length)
    with pytest.raises(RecordError) as caught:
        declared_header_bytes(data)
    assert caught.value.reason is BadReason.HEADER


@pytest.mark.parametrize("length", [0, 1, 143, 144, PAGE - 1])
def test_a_short_header_is_truncated(length: int) -> None:
    with pytest.raises(RecordError) as caught:
        decode(record()[:length])
    assert caught.value.reason is BadReason.TRUNCATED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"namespace": bytes(16)}, BadReason.NAMESPACE),
        ({"key": make_key(bytes(32), 3)}, BadReason.KEY),
        ({"key": make_key(hashlib.sha256(b"a chunk").digest(), 4)}, BadReason.KEY),
        ({"key": KEY[:-1]}, BadReason.KEY),
        ({"blocks": 6}, BadReason.GEOMETRY),
        ({"block_bytes": 121}, BadReason.GEOMETRY),
        ({"tokens_per_block": 17}, BadReason.GEOMETRY),
    ],
)
def test_a_valid_record_of_something_else(changes: dict[str, object], reason: BadReason) -> None:
    header = describe(NAMESPACE, KEY, GEOMETRY, payload_of(GEOMETRY))
    check_identity(header, NAMESPACE, KEY, GEOMETRY)
    with pytest.raises(RecordError) as caught:
        check_identity(replace(header, **changes), NAMESPACE, KEY, GEOMETRY)  # type: ignore[arg-type]
    assert caught.value.reason is reason
