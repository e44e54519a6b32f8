"""The answer for all replicas at once equals the plain rule's for each of them."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.fleet.index import FleetIndex
from kvstrata.routing.decision import Reuse
from kvstrata.routing.fleet_reuse import ReuseQuery
from kvstrata.routing.reuse import find_reuse
from kvstrata.routing.shape import Holdings, ModelShape
from kvstrata.wire.snapshot import Place

MORE = int(os.environ.get("KVSTRATA_MORE_CASES", "1"))
"""Factor for a longer search than a change has to wait for."""
HASH = 4
NOTHING = np.empty(0, np.uint64)
KINDS = st.sampled_from(list(GroupKind))


@st.composite
def shapes(draw) -> ModelShape:
    groups = []
    per_chunk = draw(st.sampled_from([1, 1, 2, 4]))
    block = HASH * draw(st.sampled_from([1, 1, 2, 4]))
    for index, kind in enumerate(draw(st.lists(KINDS, min_size=1, max_size=5))):
        size = block if draw(st.integers(0, 3)) else HASH * draw(st.sampled_from([1, 2, 4]))
        windowed = kind in (GroupKind.WINDOW, GroupKind.LOCAL)
        window = 0
        if windowed:
            # One token beyond whole blocks is where a window needs no more blocks than without it.
            spread = draw(st.sampled_from([1, HASH, size]))
            window = draw(st.integers(1, 40)) * spread + draw(st.sampled_from([0, 0, 1]))
        extra = draw(st.sampled_from([0, 0, 5])) if kind is GroupKind.WINDOW else 0
        groups.append(GroupGeometry(index, kind, size, per_chunk, (10 + index,), window, extra))
    tiered = draw(st.sets(st.sampled_from(range(len(groups)))))
    if draw(st.booleans()):
        tiered = set(range(len(groups)))
    step = int(np.lcm.reduce([group.tokens_per_block for group in groups]))
    return ModelShape.make(groups, HASH, step, frozenset(tiered))


@st.composite
def holdings(draw, shape: ModelShape, hashes) -> dict[Place, set[int]]:
    """What one replica holds: mostly prefixes with holes, or nothing."""
    held: dict[Place, set[int]] = {}
    whole = draw(st.booleans())
    for group in shape.groups:
        for medium in ("GPU", "CPU", "STORAGE"):
            if not draw(st.integers(0, 3)):
                continue
            keep = len(hashes) if whole else draw(st.integers(0, len(hashes)))
            holes = draw(st.sets(st.integers(0, max(keep - 1, 0)), max_size=6))
            held[Place(medium, group.group)] = {
                int(h) for i, h in enumerate(hashes[:keep]) if i not in holes
            }
    return held


@st.composite
def cases(draw):
    shape = draw(shapes())
    tokens = draw(st.integers(0, 90 * HASH))
    missing = draw(st.sampled_from([0, 0, 1, 7]))
    count = max(tokens // HASH - missing, 0)
    hashes = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    replicas = [draw(holdings(shape, hashes)) for _ in range(draw(st.integers(1, 3)))]
    shared = draw(holdings(shape, hashes))
    mounted = [draw(st.booleans()) for _ in replicas]
    cap = draw(st.none() | st.integers(0, 60 * HASH))
    before = draw(st.sampled_from([0, 0, 0, 63, 70, 200]))
    return shape, tokens, hashes, replicas, shared, mounted, cap, before


def array(values) -> np.ndarray:
    return np.array(sorted(values), np.uint64)


def fleet(replicas, shared, mounted, before) -> tuple[FleetIndex, list[int]]:
    index = FleetIndex()
    for _ in range(before):
        index.add("other")
    numbers = [index.add("replica") for _ in replicas]
    for number, held, mounts in zip(numbers, replicas, mounted, strict=True):
        index.restore(number, {place: (array(values), NOTHING) for place, values in held.items()})
        if mounts:
            index.mount(number, "owner")
    filler = index.add("filler")
    for place, values in shared.items():
        if place.medium == "STORAGE":
            owned = Place("STORAGE", place.group, "owner")
            index.restore(filler, {owned: (array(values), NOTHING)})  # which owners keep
    return index, numbers


def reachable(held, shared, mounts) -> Holdings:
    found = {place: set(values) for place, values in held.items()}
    for place, values in shared.items():
        if mounts and place.medium == "STORAGE":
            found.setdefault(place, set()).update(values)
    return Holdings.of(found)


def without_loads(reuse: Reuse) -> Reuse:
    return Reuse(
        *(replace(reach, loads=()) for reach in (reuse.device, reuse.memory, reuse.storage))
    )


@settings(max_examples=600 * MORE, deadline=None)
@given(cases())
def test_all_at_once_is_each_alone(case) -> None:
    shape, tokens, hashes, replicas, shared, mounted, cap, before = case
    index, numbers = fleet(replicas, shared, mounted, before)
    answer = ReuseQuery(shape).ask(index, hashes, tokens, load_cap=cap)
    for number, held, mounts in zip(numbers, replicas, mounted, strict=True):
        plain = find_reuse(shape, hashes, tokens, reachable(held, shared, mounts), cap)
        fast = answer.of(number)
        brief = answer.brief(number)
        assert brief == without_loads(fast)
        # Where one object stands for all reaches, nothing is loaded, and nobody need ask what.
        assert brief.storage is not brief.device or brief == fast
        for mine, theirs in (
            (fast.device, plain.device),
            (fast.memory, plain.memory),
            (fast.storage, plain.storage),
        ):
            assert mine.tokens == theirs.tokens
            assert mine.memory_bytes == theirs.bytes_from("memory")
            assert mine.storage_bytes == theirs.bytes_from("storage")
            loads = {(load.tier, load.group, load.tokens, load.bytes) for load in mine.loads}
            assert loads == {(x.tier, x.group, x.tokens, x.bytes) for x in theirs.loads}
    nothing = find_reuse(shape, hashes, tokens, Holdings({}, {}, {}), cap)
    assert (answer.storage[:before] == nothing.storage.tokens).all()


def one_group(kind=GroupKind.FULL, window=0) -> ModelShape:
    return ModelShape.make([GroupGeometry(0, kind, 16, 1, (1,), window)], 16, 16, frozenset({0}))


@pytest.mark.parametrize("replicas", [1, 64, 65, 200])
def test_every_replica_is_cut_where_it_ends(replicas) -> None:
    hashes = np.random.default_rng(3).integers(0, 2**64, 400, np.uint64)
    index = FleetIndex()
    for number in range(replicas):
        index.restore(index.add("r"), {Place("GPU", 0): (hashes[: 2 * number], NOTHING)})
    answer = ReuseQuery(one_group()).ask(index, hashes, 400 * 16 + 1)
    assert answer.device[:replicas].tolist() == [2 * 16 * n for n in range(replicas)]
    assert not answer.device[replicas:].any()


def test_only_those_asked_about_are_answered_for() -> None:
    hashes = np.arange(10, dtype=np.uint64)
    index = FleetIndex()
    for _ in range(3):
        index.restore(index.add("r"), {Place("GPU", 0): (hashes, NOTHING)})
    index.remove(1)
    query = ReuseQuery(one_group())
    assert query.ask(index, hashes, 161).device[:3].tolist() == [160, 0, 160]
    among = np.array([0b011], np.uint64)
    assert query.ask(index, hashes, 161, among=among).device[:3].tolist() == [160, 0, 0]


def test_a_pure_window_is_found_by_its_end() -> None:
    """The whole window and nothing else: all of the prompt is reused."""
    hashes = np.arange(64, dtype=np.uint64)
    index = FleetIndex()
    index.restore(index.add("r"), {Place("GPU", 0): (hashes[56:], NOTHING)})
    query = ReuseQuery(one_group(GroupKind.WINDOW, 128))
    assert query.ask(index, hashes, 64 * 16 + 1).device[0] == 64 * 16
    assert query.ask(index, hashes, 64 * 16).device[0] == 0


def test_bytes_of_all_groups() -> None:
    hashes = np.arange(10, dtype=np.uint64)
    index = FleetIndex()
    index.restore(index.add("r"), {Place("CPU", 0): (hashes, NOTHING)})
    answer = ReuseQuery(one_group()).ask(index, hashes, 161)
    assert answer.loaded_bytes[0, :, 0].tolist() == [10, 0]
    assert answer.of(0).memory.tokens == 160
