"""Slots never overlap, lie in the arena, and come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.errors import ArenaError
from kvstrata.tiers.slots import SlotAllocator

PAGE = 4096


@given(
    st.lists(st.integers(1, 6).map(lambda n: n * PAGE), min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=200),
)
def test_slots_are_disjoint_and_reusable(sizes, steps) -> None:
    arena = 64 * PAGE
    allocator = SlotAllocator(arena, sizes)
    taken: dict[int, int] = {}
    for take, number in steps:
        if take:
            size = sizes[number % len(sizes)]
            offset = allocator.allocate(size)
            if offset is None:
                continue
            assert offset % PAGE == 0 and offset >= 0 and offset + size <= arena
            assert all(offset >= o + s or o >= offset + size for o, s in taken.items())
            taken[offset] = size
        elif taken:
            offset = sorted(taken)[number % len(taken)]
            allocator.free(offset)
            del taken[offset]
    for offset in taken:
        allocator.free(offset)
    for size in sizes:  # nothing leaked: the whole arena can serve any one class again
        got = [allocator.allocate(size) for _ in range(allocator.capacity(size))]
        assert None not in got and allocator.allocate(size) is None
        for offset in got:
            allocator.free(offset)


def test_an_arena_that_is_too_small_says_what_it_needs() -> None:
    with pytest.raises(ArenaError, match="at least that much"):
        SlotAllocator(3 * PAGE, [PAGE, 2 * PAGE])


def test_a_slot_goes_where_it_fits_exactly() -> None:
    allocator = SlotAllocator(16 * PAGE, [2 * PAGE, 3 * PAGE])
    small = [allocator.allocate(2 * PAGE) for _ in range(3)]
    large = [allocator.allocate(3 * PAGE) for _ in range(3)]
    assert small == [0, 2 * PAGE, 4 * PAGE], "small ones from the start"
    assert large == [13 * PAGE, 10 * PAGE, 7 * PAGE], "large ones from the end"
    allocator.free(10 * PAGE)
    allocator.free(2 * PAGE)
    assert allocator.allocate(3 * PAGE) == 10 * PAGE
    assert allocator.allocate(2 * PAGE) == 2 * PAGE
    assert not allocator.available(2 * PAGE), "one page is left between the two sizes"


def test_what_stands_in_the_way_of_a_place() -> None:
    allocator = SlotAllocator(16 * PAGE, [2 * PAGE, 3 * PAGE])
    for _ in range(8):
        allocator.allocate(2 * PAGE)
    allocator.free(4 * PAGE)
    assert allocator.range_start(4 * PAGE) == allocator.range_start(6 * PAGE) == 4 * PAGE
    assert allocator.range_start(8 * PAGE) is None
    assert list(allocator.following(4 * PAGE, 3 * PAGE)) == [6 * PAGE]
    assert list(allocator.following(4 * PAGE, 6 * PAGE)) == [6 * PAGE, 8 * PAGE]
    assert list(allocator.following(14 * PAGE, 9 * PAGE)) == [14 * PAGE], "the arena ends there"
