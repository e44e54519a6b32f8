"""Pointer arrays against a plain loop over blocks, and the copier against the plain bytes."""

import contextlib
import ctypes
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.vllm_plugin import device_copier, host_copier
from kvstrata.vllm_plugin.copies import (
    Copies,
    GroupSlots,
    LayerPages,
    build_copies,
    coalesce,
    split,
    strided_runs,
)
from kvstrata.vllm_plugin.host_copier import HostCopier


@st.composite
def transfers(draw):
    per_chunk = draw(st.sampled_from([1, 2, 4]))
    ranks = draw(st.integers(1, 3))
    rank = draw(st.integers(0, ranks - 1))
    groups, ids, sizes, firsts, layers = [], [], [], [], []
    for _ in range(draw(st.integers(1, 3))):
        pages = draw(st.lists(st.integers(1, 5).map(lambda n: n * 8), min_size=1, max_size=3))
        own = sum(pages)
        first = draw(st.integers(0, 20))
        size = draw(st.integers(0, 9))
        skip = first % per_chunk
        chunks = -(-(size + skip) // per_chunk) if size else 0
        slot = per_chunk * own * ranks
        # Groups share neither slots nor blocks, as in an engine.
        offsets = draw(st.permutations(range(12)))[:chunks]
        base = len(groups) << 16
        groups.append(
            GroupSlots(
                np.array([base + o * slot for o in offsets], dtype=np.int64),
                per_chunk,
                own * ranks,
                tuple(own * r for r in range(ranks)),
            )
        )
        ids.extend(draw(st.permutations(range(1, 20)))[:size])
        sizes.append(size)
        firsts.append(first)
        layers.append(
            [
                LayerPages((len(layers) * 8 + i + 1) << 20, page + 8 * i, page, 20)
                for i, page in enumerate(pages)
            ]
        )
    return np.array(ids, dtype=np.int32), sizes, firsts, groups, layers, rank


def plainly(ids, sizes, firsts, groups, layers, arena, rank):
    found, start = set(), 0
    for size, first, group, pages in zip(sizes, firsts, groups, layers, strict=True):
        for i in range(size):
            place = first % group.blocks_per_chunk + i
            target = arena + int(group.offsets[place // group.blocks_per_chunk])
            target += place % group.blocks_per_chunk * group.block_bytes + group.rank_offsets[rank]
            for page in pages:
                device = page.base + int(ids[start + i]) * page.stride
                found.add((device, target, page.page_bytes))
                target += page.page_bytes
        start += size
    return found


@given(transfers())
def test_pointers_equal_the_plain_loop(case) -> None:
    ids, sizes, firsts, groups, layers, rank = case
    copies = build_copies(ids, sizes, firsts, groups, layers, 1 << 40, rank)
    rows = list(zip(*(values.tolist() for values in copies), strict=True))
    assert len(rows) == len(set(rows))
    assert set(rows) == plainly(ids, sizes, firsts, groups, layers, 1 << 40, rank)


def test_a_withheld_group_is_passed_over() -> None:
    empty = GroupSlots(np.empty(0, np.int64), 2, 64, (0,))
    full = GroupSlots(np.array([128], np.int64), 2, 64, (0,))
    pages = [LayerPages(1000, 64, 64, 9)]
    ids = np.array([1, 2, 3, 4, 5], dtype=np.int32)
    copies = build_copies(ids, [3, 2], [0, 0], [empty, full], [pages, pages], 0, 0)
    assert copies.device.tolist() == [1000 + 64 * 4, 1000 + 64 * 5]
    assert copies.arena.tolist() == [128, 192]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), unique=True, max_size=12))
def test_coalescing_copies_the_same_bytes(pairs) -> None:
    pairs = list({arena: (device, arena) for device, arena in pairs}.values())
    device = np.array([16 * d for d, _ in pairs], dtype=np.int64)
    arena = np.array([16 * a for _, a in pairs], dtype=np.int64)
    copies = Copies(device, arena, np.full(len(pairs), 16, dtype=np.int64))

    def moved(these: Copies) -> dict[int, int]:
        return {
            int(a) + i: int(d) + i for d, a, n in zip(*these, strict=True) for i in range(int(n))
        }

    assert moved(coalesce(copies)) == moved(copies)
    assert len(coalesce(copies).nbytes) <= len(copies.nbytes)


ROW = 24
"""Bytes between the places of `block_lists`."""


@st.composite
def block_lists(draw):
    """Rows as an engine asks for them: stretches of blocks, up, down or anywhere."""
    places = 60
    stretches = st.tuples(st.integers(0, places), st.sampled_from([1, 1, -1, 2]), st.integers(1, 9))
    device, arena = [], []
    for side in (device, arena):
        for start, step, length in draw(st.lists(stretches, max_size=8)):
            side.extend(start + step * i for i in range(length))
        side[:] = [place for place in dict.fromkeys(side) if 0 <= place < places]
    count = min(len(device), len(arena))
    lengths = draw(st.sampled_from([(ROW,), (ROW, 8), (16,)]))
    nbytes = [lengths[i % 7 % len(lengths)] for i in range(count)]
    return Copies(*(np.array(values[:count], dtype=np.int64) for values in (device, arena, nbytes)))


def addressed(copies: Copies, device: np.ndarray, arena: np.ndarray) -> Copies:
    return Copies(
        copies.device * ROW + device.ctypes.data,
        copies.arena * ROW + arena.ctypes.data,
        copies.nbytes,
    )


def naively(copies: Copies, *, to_device: bool) -> None:
    for device, arena, nbytes in zip(*(values.tolist() for values in copies), strict=True):
        ctypes.memmove(*((device, arena) if to_device else (arena, device)), nbytes)


def memory() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(rng.integers(0, 256, 60 * ROW, dtype=np.uint8) for _ in range(2))


@settings(deadline=None)
@given(block_lists(), st.booleans())
def test_the_fast_copy_is_the_naive_copy(rows: Copies, to_device: bool) -> None:
    ours, theirs = memory(), memory()
    host_copier.copy(addressed(rows, *ours), to_device=to_device)
    naively(addressed(rows, *theirs), to_device=to_device)
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


@given(block_lists())
def test_runs_are_all_rows_in_order_each_once(rows: Copies) -> None:
    found = []
    runs = strided_runs(rows)
    for head, count, device_step, arena_step in zip(*(v.tolist() for v in runs), strict=True):
        for i in range(count):
            device = int(rows.device[head]) + i * device_step
            arena = int(rows.arena[head]) + i * arena_step
            found.append((device, arena, int(rows.nbytes[head])))
    assert found == list(zip(*(values.tolist() for values in rows), strict=True))


def test_pages_of_consecutive_blocks_are_one_run_a_layer() -> None:
    layers = [LayerPages(base << 20, 64, 64, 40) for base in (1, 2, 3)]
    up, down = np.arange(4, 14, dtype=np.int32), np.arange(33, 23, -1, dtype=np.int32)
    slots = GroupSlots(np.arange(20, dtype=np.int64) * 192, 1, 192, (0,))
    copies = build_copies(np.concatenate([up, down]), [20], [0], [slots], [layers], 1 << 40, 0)
    runs = strided_runs(coalesce(copies))
    assert runs.rows.tolist() == [10, 10] * 3
    assert runs.device_step.tolist() == [64, -64] * 3
    assert set(runs.arena_step.tolist()) == {192}
    # One layer, or all of them in one page: nothing but two copies, the second of which runs down.
    slots = GroupSlots(np.arange(20, dtype=np.int64) * 64, 1, 64, (0,))
    copies = build_copies(np.concatenate([up, down]), [20], [0], [slots], [layers[:1]], 0, 0)
    assert strided_runs(coalesce(copies)).rows.tolist() == [1, 10]


@given(block_lists(), st.integers(1, 400), st.integers(1, 5))
def test_pieces_are_the_rows_in_order_and_none_is_large(
    rows: Copies, piece_bytes: int, least: int
) -> None:
    pieces = split(rows, piece_bytes, least)
    for whole, *parts in zip(rows, *pieces, strict=True):
        assert np.concatenate(parts).tolist() == whole.tolist()
    if len(rows.nbytes):
        assert max(piece.total_bytes for piece in pieces) <= piece_bytes + ROW
        assert all(len(piece.nbytes) for piece in pieces)


class _Event:
    def __init__(self, enable_timing: bool) -> None:
        self.recorded = False

    def record(self, stream: object) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.recorded

    def elapsed_time(self, ended: "_Event") -> float:
        return 2.0


def swap_blocks_batch(source, target, nbytes, *, is_src_access_order_any: bool) -> None:
    """What vLLM's batched copy does, on addresses of host memory."""
    for to, origin, length in zip(*(v.tolist() for v in (target, source, nbytes)), strict=True):
        ctypes.memmove(to, origin, length)


@pytest.mark.parametrize("to_device", [True, False])
def test_the_device_copier_gives_vllm_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, to_device: bool
) -> None:
    batches = []

    def swap(source, target, nbytes, **options: bool) -> None:
        batches.append(len(nbytes))
        assert options == {"is_src_access_order_any": to_device}
        swap_blocks_batch(source, target, nbytes, **options)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    platform = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda one: contextlib.nullcontext(),
        is_xpu=lambda: False,
    )
    monkeypatch.setattr(device_copier, "current_platform", platform)
    monkeypatch.setattr(device_copier, "ops", SimpleNamespace(swap_blocks_batch=swap))
    monkeypatch.setattr(device_copier.torch, "Event", _Event)
    monkeypatch.setattr(device_copier.torch.Tensor, "pin_memory", lambda tensor: tensor)
    rows = Copies(
        np.array([3, 4, 5, 9], dtype=np.int64),
        np.array([20, 21, 22, 1], dtype=np.int64),
        np.full(4, ROW, dtype=np.int64),
    )
    ours, theirs = memory(), memory()
    copier = device_copier.DeviceCopier()
    copier.submit(7, addressed(rows, *ours), to_device=to_device)
    naively(addressed(rows, *theirs), to_device=to_device)
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    assert batches == [2]  # three rows that continue each other are one
    assert [(done.job, done.nbytes) for done in copier.finished()] == [(7, 4 * ROW)]
    copier.close()


def test_the_copier_moves_bytes_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    device = rng.integers(0, 255, 64 * 100, dtype=np.uint8)
    arena = np.zeros(64 * 100, dtype=np.uint8)
    order = rng.permutation(100)
    copies = Copies(
        device.ctypes.data + 64 * order,
        arena.ctypes.data + 64 * np.arange(100),
        np.full(100, 64, dtype=np.int64),
    )
    monkeypatch.setattr(host_copier, "PIECE_BYTES", 1000)
    copier = HostCopier()
    copier.submit(1, copies, to_device=False)
    copier.wait({1, 77})
    assert (arena.reshape(100, 64) == device.reshape(100, 64)[order]).all()
    before = device.copy()
    ctypes.memset(device.ctypes.data, 0, device.nbytes)
    copier.submit(2, copies, to_device=True)
    copier.wait({2})
    assert (device == before).all()
    assert [(done.job, done.nbytes) for done in copier.finished()] == [(1, 6400), (2, 6400)]
    copier.close()


def test_an_empty_transfer_still_ends() -> None:
    copier = HostCopier()
    empty = np.empty(0, dtype=np.int64)
    copier.submit(5, Copies(empty, empty, empty), to_device=True)
    copier.wait({5})
    assert [done.job for done in copier.finished()] == [5]
    copier.close()


def test_only_an_engine_that_spins_waits_for_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, go, waited = [100.0], threading.Event(), []
    monkeypatch.setattr(host_copier, "copy", lambda piece, to_device: go.wait())
    monkeypatch.setattr(host_copier, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    copier = HostCopier()
    empty = np.empty(0, dtype=np.int64)
    copier.submit(1, Copies(empty, empty, empty), to_device=False)
    copier.submit(2, Copies(empty, empty, empty), to_device=True)
    monkeypatch.setattr(copier._loads[2].done, "wait", waited.append)
    for passed in (0.010, 0.001, 0.010):
        clock[0] += passed
        assert copier.finished() == []
    assert waited == [host_copier.LOAD_WAIT_SECONDS]
    monkeypatch.undo()
    go.set()
    copier.wait({1, 2})
    copier.close()
