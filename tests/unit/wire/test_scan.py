"""The fast reader of batches says what the slower one says, or nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.distributed import kv_events as vllm

from kvstrata.wire import batches as wire
from kvstrata.wire.scan import scan_batch
from tests.unit.wire.test_batches import ENCODE, events

PLAIN = vllm.BlockStored(
    block_hashes=[2**64 - 1, 0, 5],
    parent_block_hash=7,
    token_ids=[1, 300, 70_000] * 16,
    block_size=16,
    lora_id=None,
    medium="GPU",
    lora_name="adapter",
    extra_keys=[("salt", 1.5, {"a": b"b"}, None, True)],
    group_idx=2,
    kv_cache_spec_kind="sliding_window",
    kv_cache_spec_sliding_window=512,
)
WHOLE = ENCODE(
    vllm.KVEventBatch(
        ts=12.5,
        events=[
            PLAIN,
            vllm.BlockRemoved(block_hashes=[2**64 - 1], medium=None, group_idx=2),
            vllm.AllBlocksCleared(),
        ],
        data_parallel_rank=3,
    )
)


def same(payload: bytes) -> bool:
    """Whether the fast reader answers; if so, the slow one must say the same."""
    if scan_batch(payload) is None:
        return False
    fast, slow = wire.decode(payload), wire.decode_any(payload)
    assert (fast.time, fast.rank, fast.skipped) == (slow.time, slow.rank, slow.skipped)
    assert list(fast.events) == list(slow.events)
    assert fast.blocks == slow.blocks
    assert runs_of(fast) == runs_of(slow)
    return True


def runs_of(batch: wire.Batch) -> list:
    return [
        run
        if isinstance(run, wire.Cleared)
        else (run.stored, run.hashes.tolist(), run.medium, run.group, run.owner)
        for run in batch.runs()
    ]


def test_what_engines_publish_is_plain() -> None:
    assert same(WHOLE)
    stored, removed, _ = wire.decode(WHOLE).events
    assert stored == wire.Stored(
        [2**64 - 1, 0, 5], 7, 48, 16, "GPU", 2, "sliding_window", 512, "adapter"
    )
    assert removed == wire.Removed([2**64 - 1], "GPU", 2)


@settings(max_examples=300, deadline=None)
@given(events, st.none() | st.integers(0, 7))
def test_equal_on_any_batch(found, rank) -> None:
    same(ENCODE(vllm.KVEventBatch(ts=12.5, events=found, data_parallel_rank=rank)))


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_equal_on_damaged_batches(data) -> None:
    payload = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(payload), data.draw(st.integers(0, len(payload)))]))
    same(bytes(payload[:cut]))


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_no_part_of_a_batch_is_a_batch(cut) -> None:
    assert scan_batch(WHOLE[:cut]) is None


@pytest.mark.parametrize(
    "event",
    [
        {"type": "BlockStored"},
        {"type": "BlockStored", "block_hashes": [-1]},
        {"type": "BlockStored", "block_hashes": [b"x" * 32]},
        {"type": "BlockStored", "block_hashes": [1], "block_size": 1 << 24},
        {"type": "BlockStored", "block_hashes": [1], "token_ids": 5},
        {"type": "BlockStored", "block_hashes": [1], "medium": 5},
        {"type": "BlockStored", "block_hashes": [1], "medium": "größer"},
        {"type": "BlockMoved", "block_hashes": [1]},
        {"type": 5, "block_hashes": [1]},
        {"block_hashes": [1]},
        {5: 6},
        ["BlockStored", [1]],
    ],
)
def test_what_is_not_plain_is_left_to_the_other(event) -> None:
    payload = ENCODE([1.0, [event]])
    assert scan_batch(payload) is None
    assert wire.decode(payload) == wire.decode_any(payload)


def test_hostile_sizes_cost_nothing() -> None:
    huge = b"\xdd\xff\xff\xff\xff"
    for payload in (
        b"\x92\xcb" + bytes(8) + huge,
        b"\x92\xcb" + bytes(8) + b"\x91\xdf\xff\xff\xff\xff" + b"\xa4type\xa1x" * 50,
        b"\x92\xcb" + bytes(8) + b"\x91\x82\xacblock_hashes" + huge + bytes(100),
        b"\x92\xcb" + bytes(8) + b"\x91\x82\xa9token_ids" + (huge * 50),
    ):
        assert scan_batch(payload) is None


def test_runs_of_mixed_events_keep_the_order_at_each_place() -> None:
    stored = [
        wire.Stored([n], None, 0, 16, "GPU", n % 2)
        if n % 5
        else wire.Removed([n - 1], "GPU", n % 2)
        for n in range(1, 30)
    ]
    held: dict[int, set[int]] = {0: set(), 1: set()}
    expected: dict[int, set[int]] = {0: set(), 1: set()}
    for event in stored:
        change = set.update if isinstance(event, wire.Stored) else set.difference_update
        change(expected[event.group], event.hashes)
    for run in wire.Batch(0.0, 0, stored, 0).runs():
        assert isinstance(run, wire.Run)
        change = set.update if run.stored else set.difference_update
        change(held[run.group], run.hashes.tolist())
    assert held == expected
