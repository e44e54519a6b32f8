"""Every policy against a plain model, and what each promises of its order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kvstrata.chunks.key import make_key
from kvstrata.options import EVICTION
from kvstrata.tiers.eviction import Boundary, EvictionPolicy, LeastRecentlyUsed, Placed, PrefixUse
from kvstrata.tiers.eviction_arc import AdaptiveReplacement
from kvstrata.tiers.eviction_boundary import SLACK, BoundaryKeeping
from kvstrata.tiers.eviction_choice import POLICIES

CHUNK = 16
FULL, WINDOW, STATE = 0, 1, 2
BYTES = 100


def full(*path: int) -> list[Placed]:
    """Chunks of a full group; `path` says which branch each step of the prompt takes."""
    return [
        Placed((i + 1) * CHUNK, make_key(bytes([*path[: i + 1], *[0xFF] * (15 - i)]), FULL)
               ) for i in range(len(path))
    ]  # fmt: skip


def tail_at(group: int, count: int, *path: int) -> tuple[Placed, ...]:
    return tuple(
        Placed(placed.end, make_key(placed.key[:-4], group)) for placed in full(*path)[-count:]
    )


def boundary(*path: int) -> Boundary:
    """A boundary with a window of two chunks and a state."""
    tail = (*tail_at(WINDOW, 2, *path), *tail_at(STATE, 1, *path))
    return Boundary(len(path) * CHUNK, len(path), tail)


def use(path: tuple[int, ...], resumed: int = 0, junctions: tuple[int, ...] = ()) -> PrefixUse:
    return PrefixUse(
        full(*path),
        boundary(*path[:resumed]) if resumed else None,
        [*(boundary(*path[:j]) for j in junctions), boundary(*path)],
    )


def keys_of(item: Boundary, path: tuple[int, ...]) -> set[bytes]:
    return {p.key for p in full(*path)[: item.chain]} | {p.key for p in item.tail}


def make(name: str) -> EvictionPolicy:
    return POLICIES[name](lambda key: BYTES)


class Cache:
    """A cache of a number of chunks, in front of a policy, as the memory tier is."""

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        self.policy, self.capacity = policy, capacity
        self.held: set[bytes] = set()
        self.evicted: list[bytes] = []

    def serve(self, item: PrefixUse) -> None:
        if not self.policy.late:
            self.policy.used(item)
        for key in item.order():
            if key in self.held:
                continue
            if len(self.held) >= self.capacity:
                self.evict()
            self.policy.offer(key)
            self.held.add(key)
        if self.policy.late:
            self.policy.used(item)

    def evict(self) -> bytes:
        key = next(self.policy.victims())
        self.policy.withdraw(key)
        self.policy.gone(key)
        self.held.remove(key)
        self.evicted.append(key)
        return key

    def evict_all(self) -> list[bytes]:
        return [self.evict() for _ in range(len(self.held))]


PATHS = st.lists(st.integers(0, 1), min_size=2, max_size=6).map(tuple)


class PolicyMachine(RuleBasedStateMachine):
    """Random offers, pins, evictions and uses; the model is the set of what may be evicted."""

    name = ""

    def __init__(self) -> None:
        super().__init__()
        self.policy = make(self.name)
        self.free: set[bytes] = set()
        self.pinned: set[bytes] = set()

    @rule(path=PATHS, group=st.sampled_from([FULL, WINDOW, STATE]))
    def offer(self, path: tuple[int, ...], group: int) -> None:
        key = make_key(full(*path)[-1].key[:-4], group)
        if key not in self.free | self.pinned:
            self.policy.offer(key)
            self.free.add(key)

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        if self.free:
            key = data.draw(st.sampled_from(sorted(self.free)))
            self.policy.withdraw(key)
            self.free.remove(key)
            self.pinned.add(key)

    @rule(data=st.data(), stays=st.booleans())
    def unpin(self, data: st.DataObject, stays: bool) -> None:
        if self.pinned:
            key = data.draw(st.sampled_from(sorted(self.pinned)))
            self.pinned.remove(key)
            if stays:
                self.policy.offer(key)
                self.free.add(key)
            else:
                self.policy.gone(key)

    @rule(path=PATHS, data=st.data())
    def used(self, path: tuple[int, ...], data: st.DataObject) -> None:
        resumed = data.draw(st.integers(0, len(path)))
        junctions = data.draw(st.sets(st.integers(resumed + 1, len(path) - 1))) if (
            resumed + 1 <= len(path) - 1) else set()  # fmt: skip
        self.policy.used(use(path, resumed, tuple(sorted(junctions))))

    @rule(count=st.integers(1, 8))
    def evict(self, count: int) -> None:
        seen: set[bytes] = set()
        for key in self.policy.victims():
            assert key in self.free, "only what may be evicted is a victim"
            assert key not in seen, "each victim comes once"
            seen.add(key)
            self.policy.withdraw(key)
            self.policy.gone(key)
            self.free.remove(key)
            if len(seen) == count:
                break
        assert len(seen) == count or not self.free, "while anything is held there is a victim"

    @rule()
    def look(self) -> None:
        """A caller that takes nothing sees one victim, again and again the same."""
        victims = list(self.policy.victims())
        assert len(victims) == min(1, len(self.free))
        assert victims == list(self.policy.victims())

    @invariant()
    def counts(self) -> None:
        assert len(self.policy) == len(self.free)


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_and_its_model(name: str) -> None:
    machine = type(name, (PolicyMachine,), {"name": name})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )


def test_the_option_names_every_policy() -> None:
    assert set(EVICTION) == set(POLICIES)


def test_a_use_orders_head_to_tail_over_all_groups() -> None:
    order = use((1, 2, 3)).order()
    assert [key[:3] + key[-1:] for key in order[:2]] == [b"\1\xff\xff\0", b"\1\2\xff\0"]
    assert len(order) == len(set(order)) == 3 + 2 + 1
    assert {key[-1] for key in order[-3:]} == {FULL, WINDOW, STATE}


def test_lru_drops_the_oldest_use_from_its_end() -> None:
    cache = Cache(LeastRecentlyUsed(), 100)
    old, new = use((1, 1, 1)), use((2, 2))
    cache.serve(old)
    cache.serve(new)
    assert cache.evict_all() == [*reversed(old.order()), *reversed(new.order())]


def test_arc_keeps_what_was_reused_through_a_scan() -> None:
    cache = Cache(AdaptiveReplacement(), 24)
    cache.serve(use((1, 1, 1)))
    cache.serve(use((1, 1, 1), resumed=3))
    for i in range(2, 12):
        cache.serve(use((i, i, i)))
    assert set(use((1, 1, 1)).order()) <= cache.held


def test_arc_remembers_no_more_than_twice_its_capacity() -> None:
    policy = AdaptiveReplacement()
    cache = Cache(policy, 10)
    for i in range(100):
        cache.serve(use((i, i % 3, i % 5)))
        assert policy.ghosts() <= 20


def test_a_boundary_goes_whole_before_the_next_one_is_touched() -> None:
    """Whatever the first victim of a boundary is, all that only it needed follows at once."""
    cache = Cache(make("boundary"), 1000)
    paths = [(i, 1, 1, 1) for i in range(6)]
    for path in paths:
        cache.serve(use(path))
    evicted = cache.evict_all()
    for i in range(6):
        part = evicted[i * 7 : i * 7 + 7]
        assert len({key[0] for key in part}) == 1, "one boundary at a time"
        chain = [key for key in part if key[-1] == FULL]
        assert chain == [p.key for p in reversed(full(*paths[part[0][0]]))], "from its end"
        assert {key[-1] for key in part[:3]} == {WINDOW, STATE}, "its windows first"


def test_what_prompts_share_outlives_each_of_them() -> None:
    cache = Cache(make("boundary"), 1000)
    shared = (9, 9)
    cache.serve(use((*shared, 1, 1)))
    for i in range(2, 6):
        cache.serve(
            use((*shared, i, i), resumed=0 if i == 2 else 2, junctions=(2,) if i == 2 else ())
        )
    evicted = cache.evict_all()
    common = keys_of(boundary(*shared), shared)
    assert set(evicted[-len(common) :]) == common


def test_ends_that_longer_ones_replaced_lose_their_tails_and_nothing_else() -> None:
    cache = Cache(make("boundary"), 400)
    ends = (4, 8, 12)
    for i in range(200):  # conversations whose next turn comes ten rounds after the last
        for turn, end in enumerate(ends):
            path = (i - 10 * turn, *[1] * end)
            if path[0] >= 0:
                cache.serve(use(path, resumed=ends[turn - 1] + 1 if turn else 0))
    lighter = 0
    for i in range(180, 190):  # those that have had two turns
        path = (i, *[1] * 8)
        assert keys_of(boundary(*path), path) <= cache.held, "they can go on"
        lighter += not {p.key for p in boundary(*path[:5]).tail} <= cache.held
    assert lighter >= 5, "and most gave up the end of their first turn"


def test_the_last_end_of_a_conversation_goes_and_the_one_before_takes_over() -> None:
    policy = BoundaryKeeping(lambda key: 1 if key[-1] == STATE else 10_000)

    def state_only(path: tuple[int, ...]) -> Boundary:
        return Boundary(len(path) * CHUNK, len(path), tail_at(STATE, 1, *path))

    cache = Cache(policy, 1000)
    long = (1,) * 12
    cache.serve(PrefixUse(full(*long[:8]), None, [state_only(long[:8])]))
    cache.serve(PrefixUse(full(*long), state_only(long[:8]), [state_only(long)]))
    # A state that takes next to nothing stands for eight chunks: it stays, and what follows goes.
    gone = {cache.evict() for _ in range(5)}
    assert gone == {p.key for p in full(*long)[8:]} | {p.key for p in state_only(long).tail}
    assert keys_of(state_only(long[:8]), long) == cache.held


def test_an_answer_moves_the_end_of_its_prompt_and_is_no_use_of_it() -> None:
    policy = BoundaryKeeping(lambda key: BYTES)
    cache = Cache(policy, 1000)
    prompt, whole = (1,) * 6, (1,) * 10
    cache.serve(use(prompt))
    answer = PrefixUse(full(*whole), boundary(*prompt), [boundary(*whole)], answered=True)
    policy.used(answer)
    cache.serve(use((2,) * 6))
    for placed in (*full(*whole), *boundary(*whole).tail):
        if placed.key not in cache.held:
            policy.offer(placed.key)
            cache.held.add(placed.key)
    assert {frozenset(m) for m in policy.marks()} == {
        frozenset(keys_of(boundary(*path), path)) for path in (prompt, whole, (2,) * 6)
    }
    # The prompt's end is a station now: it goes without the chain, which the answer's end needs.
    policy.withdraw(boundary(*prompt).tail[-1].key)
    policy.gone(boundary(*prompt).tail[-1].key)
    assert keys_of(boundary(*whole), whole) in list(policy.marks())


def test_a_reused_boundary_is_learned_to_outlive_floods() -> None:
    cache = Cache(make("boundary"), 60)
    hot = (1, 1, 1, 1)
    hits = []
    for i in range(2, 250):
        cache.serve(use((i, i, i, i)))
        if i % 12 == 0:
            there = keys_of(boundary(*hot), hot) <= cache.held
            hits.append(there)
            cache.serve(use(hot, resumed=4 if there else 0))
    assert all(hits[-10:]), "twelve prompts that come once do not fit beside it, and they give way"


def test_loose_chunks_are_dropped_oldest_first() -> None:
    cache = Cache(make("boundary"), 10)
    for placed in full(5, 5, 5, 5):
        cache.policy.offer(placed.key)
        cache.held.add(placed.key)
    assert cache.evict_all() == [p.key for p in full(5, 5, 5, 5)]


@pytest.mark.parametrize("arrives", [True, False])
def test_memory_is_bounded_by_what_is_held(arrives: bool) -> None:
    """Even where the chunks of most uses never come."""
    policy = BoundaryKeeping(lambda key: BYTES)
    cache = Cache(policy, 40)
    for i in range(3000):
        item = use((i % 251, i // 251, i % 7, i % 5), resumed=i % 3)
        if arrives or i % 50 == 0:
            cache.serve(item)
        else:
            policy.used(item)
        assert policy.footprint() <= 7 * (len(cache.held) + SLACK) + 20


class BoundaryMachine(RuleBasedStateMachine):
    """A cache under random traffic: no boundary is cut while it is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = BoundaryKeeping(lambda key: BYTES)
        self.cache = Cache(self.policy, 30)

    @rule(path=PATHS, salt=st.integers(0, 6), resume=st.booleans(), junction=st.booleans())
    def serve(self, path: tuple[int, ...], salt: int, resume: bool, junction: bool) -> None:
        path = (salt, *path)
        points = [
            n for n in range(1, len(path)) if keys_of(boundary(*path[:n]), path) <= self.cache.held
        ]
        resumed = points[-1] if resume and points else 0
        junctions = (len(path) - 1,) if junction and len(path) - 1 > resumed else ()
        self.cache.serve(use(path, resumed, junctions))

    @rule()
    def evict(self) -> None:
        if not self.cache.held:
            return
        before = set(self.cache.held)
        victim = self.cache.evict()
        self._whole(before, victim)

    def _whole(self, before: set[bytes], victim: bytes) -> None:
        """The victim is needed by no mark, and if it is of a chain, nothing behind it is needed."""
        for mark in self.policy.marks():
            assert victim not in mark, "no kept boundary loses a chunk"
        if victim[-1] == FULL:
            depth = victim.index(0xFF) if 0xFF in victim[:-4] else 16
            behind = [
                k for k in before if k[-1] == FULL and k[:depth] == victim[:depth] and k != victim
            ]
            assert not behind or not any(k in mark for k in behind for mark in self.policy.marks())


TestBoundaryMachine = BoundaryMachine.TestCase
TestBoundaryMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
