"""The memory tier as a hub: places, pins and eviction, against a plain model."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import group_of, make_key
from kvstrata.tiers.eviction import EvictionPolicy
from kvstrata.tiers.eviction_choice import POLICIES
from kvstrata.tiers.lifecycle import TABLE, Event, State, advance
from kvstrata.tiers.memory import MemoryTier

SMALL = GroupGeometry(0, GroupKind.FULL, 16, 1, (4096,))
LARGE = GroupGeometry(1, GroupKind.WINDOW, 16, 1, (3 * 4096,), window_tokens=32)
GEOMETRIES = {0: SMALL, 1: LARGE}
KEYS = [make_key(i.to_bytes(16, "big"), i % 2) for i in range(24)]


def pattern(key: bytes) -> bytes:
    return bytes([key[15] + 1]) * GEOMETRIES[group_of(key)].payload_bytes


class Hub(RuleBasedStateMachine):
    """Random stores, reads, pins and evictions; the model is a dictionary of states."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = MemoryTier(memoryview(bytearray(24 * 4096)), GEOMETRIES)
        self.states: dict[bytes, State] = {}
        self.pins: dict[bytes, int] = {}

    def note_evicted(self) -> None:
        for key in self.tier.take_evicted():
            assert self.states.pop(key) is State.READY, "only ready chunks may be evicted"

    @rule(key=st.sampled_from(KEYS))
    def reserve(self, key: bytes) -> None:
        if key in self.states:
            return
        entry = self.tier.reserve(key, "device")
        self.note_evicted()
        if entry is not None:
            self.tier.view(key)[:] = pattern(key)
            self.states[key] = State.WRITING
        else:
            assert any(state is not State.READY for state in self.states.values())

    @rule(key=st.sampled_from(KEYS), event=st.sampled_from(["commit", "abort", "abandon"]))
    def end_write(self, key: bytes, event: str) -> None:
        if self.states.get(key) is not State.WRITING:
            return
        getattr(self.tier, event)(key)
        if event == "abort":
            del self.states[key]
        else:
            self.states[key] = State.READY if event == "commit" else State.EVICTING

    @rule(key=st.sampled_from(KEYS))
    def release(self, key: bytes) -> None:
        if self.states.get(key) is State.EVICTING:
            self.tier.release(key)
            del self.states[key]

    @rule(key=st.sampled_from(KEYS))
    def pin(self, key: bytes) -> None:
        if self.states.get(key) in (State.READY, State.PINNED):
            self.tier.pin([key])
            self.pins[key] = self.pins.get(key, 0) + 1
            self.states[key] = State.PINNED

    @rule(key=st.sampled_from(KEYS))
    def unpin(self, key: bytes) -> None:
        if self.pins.get(key):
            self.tier.unpin([key])
            self.pins[key] -= 1
            if not self.pins[key]:
                self.states[key] = State.READY

    @precondition(lambda self: self.states)
    @rule(key=st.sampled_from(KEYS))
    def remove(self, key: bytes) -> None:
        was_ready = self.states.get(key) is State.READY
        assert self.tier.remove(key) is was_ready
        self.note_evicted()

    @invariant()
    def states_agree(self) -> None:
        for key in KEYS:
            entry = self.tier.entry(key)
            assert (entry.state if entry else None) == self.states.get(key)
            readable = self.states.get(key) in (State.READY, State.PINNED)
            assert self.tier.readable(key) is readable

    @invariant()
    def bytes_are_intact(self) -> None:
        for key, state in self.states.items():
            if state is not State.EVICTING:
                assert self.tier.view(key) == pattern(key)

    @invariant()
    def in_use_tells_whether_waiting_helps(self) -> None:
        busy = any(state is not State.READY for state in self.states.values())
        assert bool(self.tier.in_use) is busy


TestHub = Hub.TestCase
TestHub.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_the_least_recently_used_chunk_goes_first() -> None:
    tier = MemoryTier(memoryview(bytearray(4 * 4096)), {0: SMALL})
    keys = [make_key(bytes([i]) * 16, 0) for i in range(6)]
    for key in keys[:4]:
        tier.write(key, memoryview(bytes(4096)))
    tier.touch([keys[0]])
    tier.write(keys[4], memoryview(bytes(4096)))
    assert tier.take_evicted() == [keys[1]]


def test_a_prefix_is_dropped_from_its_end() -> None:
    tier = MemoryTier(memoryview(bytearray(4 * 4096)), {0: SMALL})
    keys = [make_key(bytes([i]) * 16, 0) for i in range(6)]
    for key in keys[:4]:
        tier.write(key, memoryview(bytes(4096)))
    tier.pin(keys[:4])
    tier.unpin(keys[:4])
    tier.write(keys[4], memoryview(bytes(4096)))
    tier.write(keys[5], memoryview(bytes(4096)))
    assert tier.take_evicted() == [keys[3], keys[2]]


def test_memory_flows_between_groups_of_different_sizes() -> None:
    tier = MemoryTier(memoryview(bytearray(24 * 4096)), GEOMETRIES)
    small = [make_key(i.to_bytes(16, "big"), 0) for i in range(24)]
    large = [make_key(i.to_bytes(16, "big"), 1) for i in range(6)]
    for key in small:
        tier.write(key, memoryview(bytes(4096)))
    for key in large:
        tier.write(key, memoryview(bytes(3 * 4096)))
    assert all(tier.held(key) for key in large[-4:])


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_only_the_table_is_legal(state: State, event: Event) -> None:
    if (state, event) in TABLE:
        assert advance(state, event) is TABLE[(state, event)]
    else:
        with pytest.raises(AssertionError, match=state.value):
            advance(state, event)


def test_every_state_can_be_left_and_reached() -> None:
    reached = [State.ABSENT]
    for state in reached:
        reached += [
            target
            for (origin, _), target in TABLE.items()
            if origin is state and target not in reached
        ]
    assert set(reached) == set(State)


def test_a_hole_that_is_too_small_is_widened_at_the_cost_of_few() -> None:
    """Large chunks find places between small ones whatever order these are evicted in."""
    tier = MemoryTier(memoryview(bytearray(60 * 4096)), GEOMETRIES)
    small = [make_key(i.to_bytes(16, "big"), 0) for i in range(60)]
    for key in small:
        tier.write(key, memoryview(bytes(4096)))
    tier.touch([*small[::7], *small[::5], *small[::3], *small[::2]])
    for i in range(4):
        tier.write(make_key(i.to_bytes(16, "big"), 1), memoryview(bytes(3 * 4096)))
    lost = len(tier.take_evicted())
    assert 12 <= lost <= 4 * (4 * 3 + 3), "places for four, and at most the holes tried for each"


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_forgets_what_was_abandoned(name: str) -> None:
    """After a reset nothing of it counts as held: it may come again as if for the first time."""
    gone: list[bytes] = []

    def make(size_of: Callable[[bytes], int]) -> EvictionPolicy:
        policy = POLICIES[name](size_of)
        inner = policy.gone
        policy.gone = lambda key: (gone.append(key), inner(key))[1]  # type: ignore[method-assign]
        return policy

    tier = MemoryTier(memoryview(bytearray(4 * 4096)), {0: SMALL}, make)
    keys = [make_key(bytes([i]) * 16, 0) for i in range(2)]
    tier.write(keys[0], memoryview(bytes(4096)))
    tier.pin([keys[0]])
    tier.reserve(keys[1], "device")
    for key in keys:
        tier.abandon(key)
        tier.release(key)
    assert gone == [keys[0]], "the other one was never offered"
    for key in keys:
        tier.write(key, memoryview(bytes(4096)))
    assert tier.probe(keys) == [True, True]
