"""Pointer arrays against a plain loop over blocks, and the copier against the plain bytes."""

import ctypes

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.vllm_plugin.copies import Copies, GroupSlots, LayerPages, build_copies, coalesce
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


def test_the_copier_moves_bytes_both_ways() -> None:
    rng = np.random.default_rng(1)
    device = rng.integers(0, 255, 64 * 100, dtype=np.uint8)
    arena = np.zeros(64 * 100, dtype=np.uint8)
    order = rng.permutation(100)
    copies = Copies(
        device.ctypes.data + 64 * order,
        arena.ctypes.data + 64 * np.arange(100),
        np.full(100, 64, dtype=np.int64),
    )
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
