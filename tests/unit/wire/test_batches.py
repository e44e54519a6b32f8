"""Batches as vLLM itself encodes them are read whole; anything else costs only itself."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.distributed import kv_events as vllm

from kvstrata.wire import batches as wire

ENCODE = msgspec.msgpack.Encoder().encode
HASHES = st.lists(st.integers(0, 2**64 - 1) | st.binary(min_size=16, max_size=32), max_size=5)
NAMES = st.none() | st.sampled_from(["GPU", "CPU", "STORAGE", "x"])
KINDS = st.none() | st.sampled_from(["full_attention", "sliding_window", "mamba"])

stored = st.builds(
    vllm.BlockStored,
    block_hashes=HASHES,
    parent_block_hash=st.none() | st.integers(0, 2**64 - 1) | st.binary(min_size=32, max_size=32),
    token_ids=st.lists(st.integers(0, 2**31), max_size=70),
    block_size=st.integers(0, 512),
    lora_id=st.none() | st.integers(0, 9),
    medium=NAMES,
    lora_name=st.none() | st.text(max_size=5),
    extra_keys=st.none() | st.lists(st.none() | st.tuples(st.text(max_size=3)), max_size=3),
    group_idx=st.none() | st.integers(0, 9),
    kv_cache_spec_kind=KINDS,
    kv_cache_spec_sliding_window=st.none() | st.integers(1, 4096),
    locality=st.none() | st.just("LOCAL"),
    session_id=st.none() | st.text(max_size=3),
)
removed = st.builds(
    vllm.BlockRemoved,
    block_hashes=HASHES,
    medium=NAMES,
    group_idx=st.none() | st.integers(0, 9),
)
events = st.lists(stored | removed | st.just(vllm.AllBlocksCleared()), max_size=6)


def expected(event):
    """What a vLLM event says, in our terms."""
    if isinstance(event, vllm.AllBlocksCleared):
        return wire.Cleared()
    hashes = [wire.low_bits(value) for value in event.block_hashes]
    medium, group = event.medium or "GPU", event.group_idx or 0
    if isinstance(event, vllm.BlockRemoved):
        return wire.Removed(hashes, medium, group, event.locality)
    parent = event.parent_block_hash
    return wire.Stored(
        hashes,
        None if parent is None else wire.low_bits(parent),
        len(event.token_ids),
        event.block_size,
        medium,
        group,
        event.kv_cache_spec_kind,
        event.kv_cache_spec_sliding_window,
        event.lora_name,
        event.locality,
    )


@settings(max_examples=300, deadline=None)
@given(events, st.none() | st.integers(0, 7))
def test_a_batch_of_the_installed_vllm_is_read_whole(found, rank) -> None:
    payload = ENCODE(vllm.KVEventBatch(ts=12.5, events=found, data_parallel_rank=rank))
    batch = wire.decode(payload)
    assert (batch.time, batch.rank, batch.skipped) == (12.5, rank or 0, 0)
    assert list(batch.events) == [expected(event) for event in found]


@given(events)
def test_events_of_older_engines_are_arrays(found) -> None:
    rows = []
    for event in found:
        fields = msgspec.structs.asdict(event)
        rows.append([type(event).__name__, *fields.values()])
    batch = wire.decode(ENCODE([1.0, rows]))
    assert list(batch.events) == [expected(event) for event in found]
    assert batch.skipped == 0


@given(events, st.lists(st.integers(0, 5), max_size=3))
def test_what_cannot_be_read_costs_only_itself(found, places) -> None:
    entries = [msgspec.Raw(ENCODE(event)) for event in found]
    bad = [
        {"type": "BlockMoved", "block_hashes": [1]},
        {"type": "BlockStored"},
        {"type": "BlockRemoved", "block_hashes": ["no hash"]},
        {"type": "BlockStored", "block_hashes": [1], "token_ids": 7},
        {"type": "BlockStored", "block_hashes": [1], "block_size": -1},
        ["BlockRemoved"],
    ]
    for place in places:
        entries.insert(place, msgspec.Raw(ENCODE(bad[place])))
    batch = wire.decode(ENCODE([1.0, entries]))
    assert list(batch.events) == [expected(event) for event in found]
    assert batch.skipped == len(places)


@settings(max_examples=500)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers(0, 99), st.lists).map(ENCODE))
def test_no_payload_does_more_than_be_refused(payload: bytes) -> None:
    try:
        batch = wire.decode(payload)
    except wire.WireError:
        return
    assert batch.skipped >= 0


@settings(max_examples=200)
@given(events, st.data())
def test_a_damaged_batch_is_refused_or_read(found, data) -> None:
    payload = bytearray(ENCODE(vllm.KVEventBatch(ts=1.0, events=found)))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut])):
        with contextlib.suppress(wire.WireError):
            wire.decode(damaged)


def test_deep_nesting_and_huge_payloads_are_refused() -> None:
    with pytest.raises(wire.WireError):
        wire.decode(b"\x91" * 100_000)
    with pytest.raises(wire.WireError, match="at most"):
        wire.decode(bytes(wire.MAX_BYTES + 1))
    with pytest.raises(wire.WireError):
        wire.decode(b"\x92\xcb" + bytes(8) + b"\x91" + b"\x91" * 50_000 + b"\xc0")
