"""Batches of the slots, the memory tier and its policies do what as many single calls do."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.tiers.eviction_choice import POLICIES
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.slots import SlotAllocator

PAGE = 4096
GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 1, (PAGE,)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 2, (PAGE + 1,), window_tokens=32),
}
KEYS = [make_key(i.to_bytes(16, "big"), i % 3 // 2) for i in range(40)]


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.integers(1, 7), min_size=1, max_size=3),
    st.integers(42, 150),
    st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(1, 30)), max_size=40),
)
def test_a_run_of_slots_is_what_single_ones_are(sizes, pages, steps) -> None:
    run, single = (SlotAllocator(pages * PAGE, [s * PAGE for s in sizes]) for _ in range(2))
    taken: list[int] = []
    for allocate, choice, count in steps:
        if allocate:
            size = sorted(sizes)[choice % len(sizes)] * PAGE
            expected = [single.allocate(size) for _ in range(count)]
            got: list[int] = []
            while len(got) < count and (more := run.allocate_run(size, count - len(got))):
                got += more
            assert got == [offset for offset in expected if offset is not None]
            taken += got
        for _ in range(0 if allocate else min(count, len(taken))):
            offset = taken.pop(choice % len(taken))
            run.free(offset)
            single.free(offset)


class Pair:
    """Two tiers, one asked in batches, one chunk by chunk."""

    def __init__(self, policy: str) -> None:
        self.batch, self.single = (
            MemoryTier(memoryview(bytearray(32 * PAGE)), GEOMETRIES, POLICIES[policy])
            for _ in range(2)
        )

    def reserve(self, keys: list[bytes], stop: bool) -> None:
        new = [key for key in keys if self.single.entry(key) is None]
        got = self.batch.reserve_all(new, "device", stop=stop)
        for key, entry in zip(new, got, strict=False):
            assert self.single.reserve(key, "device") == entry

    def end(self, keys: list[bytes], pinned: bool) -> None:
        """Commit what is being written; then perhaps pin, touch and unpin what is readable."""
        for tier in (self.batch, self.single):
            writing = [k for k in keys if tier.entry(k) is not None and not tier.held(k)]
            if tier is self.batch:
                tier.commit_all([(key, 0) for key in writing])
            for key in writing if tier is self.single else ():
                tier.commit(key)
            held = [key for key in keys if tier.held(key)]
            if pinned and tier is self.batch:
                tier.pin(held)
                tier.unpin(held)
            elif pinned:
                for key in held:
                    tier.pin([key])
                for key in reversed(held):
                    tier.unpin([key])

    def agree(self) -> None:
        assert self.batch.take_evicted() == self.single.take_evicted()
        for key in KEYS:
            assert self.batch.entry(key) == self.single.entry(key)
        assert self.batch.held_all(KEYS) == [self.single.held(key) for key in KEYS]
        lacking = [key for key in KEYS if not self.single.readable(key)]
        assert self.batch.lacking(KEYS, {}) == lacking


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "end"]),
            st.lists(st.sampled_from(KEYS), unique=True, max_size=20),
            st.booleans(),
        ),
        max_size=25,
    ),
)
@example(  # a hole that is too small for the next chunk, behind a victim of its size
    "lru",
    [
        ("reserve", [KEYS[12]], False),
        ("reserve", [KEYS[13]], False),
        ("reserve", [KEYS[23], KEYS[29], KEYS[32]], False),
        ("end", [KEYS[i] for i in (32, 0, 23, 1, 2, 3, 4, 12, 29)], False),
        ("reserve", [KEYS[i] for i in (0, 35, 11, 17, 7, 8, 14, 4, 15)], False),
        ("reserve", [KEYS[i] for i in (6, 3, 0, 1, 9, 2, 4, 5, 7, 10)], False),
    ],
)
def test_a_batch_of_chunks_is_what_single_ones_are(policy, steps) -> None:
    pair = Pair(policy)
    for what, keys, flag in steps:
        if what == "reserve":
            pair.reserve(keys, flag)
        else:
            pair.end(keys, flag)
        pair.agree()
