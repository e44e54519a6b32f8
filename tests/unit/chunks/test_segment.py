"""Tables of segments: they come back as they were, and no other bytes pass for one."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.chunks.record import PAGE, RecordHeader, describe
from kvstrata.chunks.record import decode as decode_record
from kvstrata.chunks.segment import decode, encode, is_segment, lay_out, table_bytes
from kvstrata.errors import BadReason, RecordError

NAMESPACE = bytes(range(16))
GEOMETRY = GroupGeometry(1, GroupKind.WINDOW, 16, 4, (100, 33), window_tokens=32)


def header_of(name: str, first_block: int = 0, length: int = 32) -> RecordHeader:
    key = make_key(hashlib.sha256(name.encode()).digest()[:length], 1)
    payload = memoryview(hashlib.shake_128(key).digest(GEOMETRY.payload_bytes))
    tenant = hashlib.shake_128(name.encode()).digest(8) if name else bytes(8)
    return describe(NAMESPACE, key, GEOMETRY, payload, first_block, tenant)


some = st.lists(
    st.tuples(st.text(max_size=3), st.integers(0, 3), st.sampled_from([16, 32])),
    min_size=1,
    max_size=60,
    unique_by=lambda one: one[0],
).map(lambda chosen: [header_of(*one) for one in chosen])


@given(headers=some, behind=st.binary(max_size=50))
def test_a_table_comes_back(headers: list[RecordHeader], behind: bytes) -> None:
    offsets = lay_out(headers)
    data = encode(headers, offsets)
    assert is_segment(data) and len(data) % PAGE == 0
    assert len(data) == table_bytes(len(headers), sum(len(h.checksums) for h in headers))
    table = decode(data + behind)
    assert [table.header(one.key) for one in headers] == headers
    assert [table.entries[one.key].offset for one in headers] == offsets
    for one in headers:
        table.check(NAMESPACE, one.key, GEOMETRY)
        assert bytes(table.checksums(one.key, 3)) == one.checksums[3 - one.first_block]


@given(headers=some)
def test_chunks_stand_one_behind_the_other_on_their_own_pages(headers: list[RecordHeader]) -> None:
    offsets = lay_out(headers)
    assert offsets[0] == len(encode(headers, offsets))
    for one, offset, following in zip(headers, offsets, offsets[1:], strict=False):
        assert offset % PAGE == 0
        assert 0 <= following - (offset + one.payload_bytes) < PAGE


@given(headers=some, data=st.data())
def test_any_change_is_found(headers: list[RecordHeader], data: st.DataObject) -> None:
    content = bytearray(encode(headers, lay_out(headers)))
    at = data.draw(st.integers(12, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError) as caught:
        decode(content)
    assert caught.value.reason in (BadReason.HEADER, BadReason.TRUNCATED)


@given(headers=some, data=st.data())
def test_less_than_a_table_is_short(headers: list[RecordHeader], data: st.DataObject) -> None:
    content = encode(headers, lay_out(headers))
    with pytest.raises(RecordError) as caught:
        decode(content[: data.draw(st.integers(0, len(content) - 1))])
    assert caught.value.reason is BadReason.TRUNCATED


@given(noise=st.binary(max_size=9000))
def test_noise_is_no_table(noise: bytes) -> None:
    beginning = encode([header_of("a")], [PAGE])[:12]
    with pytest.raises(RecordError):
        decode(beginning + noise)


def test_a_reader_of_records_leaves_it_alone() -> None:
    data = encode([header_of("a")], [PAGE])
    with pytest.raises(RecordError) as caught:
        decode_record(data)
    assert caught.value.reason is BadReason.VERSION
    assert not is_segment(b"") and not is_segment(b"KVSTRATA\x01\0\0\0")


@pytest.mark.parametrize(
    ("namespace", "key", "geometry", "reason"),
    [
        (bytes(16), header_of("a").key, GEOMETRY, BadReason.NAMESPACE),
        (NAMESPACE, header_of("b").key, GEOMETRY, BadReason.KEY),
        (NAMESPACE, header_of("a").key, replace(GEOMETRY, blocks_per_chunk=5), BadReason.GEOMETRY),
        (NAMESPACE, header_of("a").key, replace(GEOMETRY, tokens_per_block=8), BadReason.GEOMETRY),
        (
            NAMESPACE,
            header_of("a").key,
            replace(GEOMETRY, rank_block_bytes=(9,)),
            BadReason.GEOMETRY,
        ),
    ],
)
def test_another_chunk_than_wanted_is_named(
    namespace: bytes, key: bytes, geometry: GroupGeometry, reason: BadReason
) -> None:
    table = decode(encode([header_of("a")], [PAGE]))
    with pytest.raises(RecordError) as caught:
        table.check(namespace, key, geometry)
    assert caught.value.reason is reason
