"""Sizes of chunks, and what a boundary needs, against a count token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind, ceil_div


@st.composite
def geometries(draw: st.DrawFn, kinds: tuple[GroupKind, ...]) -> GroupGeometry:
    kind = draw(st.sampled_from(kinds))
    windowed = kind in (GroupKind.WINDOW, GroupKind.LOCAL)
    return GroupGeometry(
        group=0,
        kind=kind,
        tokens_per_block=draw(st.integers(1, 8)),
        blocks_per_chunk=draw(st.integers(1, 4)),
        rank_block_bytes=tuple(draw(st.lists(st.integers(0, 9000), min_size=1, max_size=4))),
        window_tokens=draw(st.integers(1, 40)) if windowed else 0,
        extra_tokens=draw(st.integers(0, 3)) if kind is GroupKind.WINDOW else 0,
    )


@given(st.integers(0, 10**6), st.integers(1, 5000))
def test_division_rounds_up(value: int, by: int) -> None:
    result = ceil_div(value, by)
    assert (result - 1) * by < value <= result * by


@given(geometries(tuple(GroupKind)))
def test_sizes_add_up(geometry: GroupGeometry) -> None:
    assert geometry.tokens_per_chunk == geometry.tokens_per_block * geometry.blocks_per_chunk
    assert geometry.payload_bytes == sum(geometry.rank_block_bytes) * geometry.blocks_per_chunk
    assert geometry.slot_bytes % 4096 == 0
    assert 0 <= geometry.slot_bytes - geometry.payload_bytes < 4096
    ranks = len(geometry.rank_block_bytes)
    offsets = [geometry.rank_offset(rank) for rank in range(ranks)]
    ends = [start + size for start, size in zip(offsets, geometry.rank_block_bytes, strict=True)]
    assert [*offsets, geometry.block_bytes] == [0, *ends]


@given(geometries((GroupKind.WINDOW,)), st.integers(1, 200))
def test_the_window_at_a_boundary_lies_in_the_chunks_it_asks_for(
    geometry: GroupGeometry, boundary: int
) -> None:
    # The oracle counts tokens: the next token, at `boundary`, sees itself and those before it.
    size = geometry.window_tokens + geometry.extra_tokens
    seen = [token for token in range(boundary) if boundary - token < size]
    first = geometry.first_token(boundary)
    assert first == (seen[0] if seen else boundary)
    chunk = geometry.tokens_per_chunk
    needed = (boundary - 1) // chunk - first // chunk + 1 if seen else 0
    assert geometry.window_chunks(boundary) >= needed
    # Never more than what is needed: a window that is short of one token would never be found.
    if geometry.first_token(boundary) > 0:
        assert geometry.window_chunks(boundary) == max(needed, 1)


@given(geometries((GroupKind.LOCAL,)), st.integers(0, 200))
def test_local_attention_sees_its_own_attention_chunk(
    geometry: GroupGeometry, boundary: int
) -> None:
    first = geometry.first_token(boundary)
    assert first % geometry.window_tokens == 0
    assert first <= boundary < first + geometry.window_tokens
    covered = geometry.window_chunks(boundary) * geometry.tokens_per_chunk
    assert covered >= geometry.window_tokens


@given(geometries((GroupKind.STATE,)), st.integers(1, 200))
def test_a_state_is_one_chunk(geometry: GroupGeometry, boundary: int) -> None:
    assert geometry.window_chunks(boundary) == 1
    assert geometry.first_token(boundary) == boundary - 1


@given(geometries((GroupKind.FULL,)), st.integers(0, 200))
def test_full_attention_sees_everything(geometry: GroupGeometry, boundary: int) -> None:
    assert not geometry.windowed
    assert geometry.first_token(boundary) == 0


@pytest.mark.parametrize(
    ("window", "boundary", "chunks"),
    [(128, 1024, 1), (128, 1016, 2), (1024, 4096, 8), (1024, 4100, 9), (16, 130, 2), (1, 128, 1)],
)
def test_windows_of_known_models(window: int, boundary: int, chunks: int) -> None:
    geometry = GroupGeometry(0, GroupKind.WINDOW, 16, 8, (64,), window_tokens=window)
    assert geometry.window_chunks(boundary) == chunks


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokens_per_block": 0},
        {"blocks_per_chunk": 0},
        {"rank_block_bytes": ()},
        {"rank_block_bytes": (-1,)},
        {"kind": GroupKind.WINDOW},
        {"window_tokens": 5},
    ],
)
def test_impossible_geometries_are_our_own_bugs(arguments: dict[str, object]) -> None:
    plain: dict[str, object] = {
        "group": 0,
        "kind": GroupKind.FULL,
        "tokens_per_block": 16,
        "blocks_per_chunk": 1,
        "rank_block_bytes": (64,),
    }
    GroupGeometry(**plain)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        GroupGeometry(**{**plain, **arguments})  # type: ignore[arg-type]
