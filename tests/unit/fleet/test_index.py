"""The fleet index equals one of dictionaries and sets, whatever happens to it."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstrata.fleet.index import DEVICE, GROUPS, MEMORY, SHARED, STORAGE, FleetIndex
from kvstrata.wire.batches import Batch, Cleared, Removed, Stored
from kvstrata.wire.snapshot import Place
from tests.unit.fleet.plain_index import PlainIndex

HASHES = st.lists(st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1]), max_size=6)
MEDIA = st.sampled_from(["GPU", "GPU", "CPU", "STORAGE", "TAPE"])
OWNERS = st.none() | st.sampled_from(["a", "b"])
STORED = st.builds(
    Stored,
    HASHES,
    parent=st.none(),
    tokens=st.just(0),
    block_tokens=st.just(16),
    medium=MEDIA,
    group=st.integers(0, 2),
    owner=OWNERS,
)
REMOVED = st.builds(Removed, HASHES, MEDIA, st.integers(0, 2), owner=OWNERS)
EVENTS = st.lists(STORED | STORED | REMOVED | st.just(Cleared()), max_size=8)


def batch_of(*events) -> Batch:
    return Batch(0.0, 0, events, 0)


def contents(index: FleetIndex) -> dict[tuple[int, int], set[int]]:
    """Keys by (place, holder), read from the table's own memory."""
    table = index.table
    masks = table.rows[:, 4:].reshape(-1, table.words)
    keys = table.rows[:, :4].reshape(-1)
    found: dict[tuple[int, int], set[int]] = {}
    for entry in np.flatnonzero(masks.any(axis=1)).tolist():
        key, place = int(keys[entry]), int(table._tags[entry])
        for word, mask in enumerate(masks[entry].tolist()):
            for bit in range(mask.bit_length()):
                if mask >> bit & 1:
                    held = found.setdefault((place, 64 * word + bit), set())
                    assert key not in held
                    held.add(key)
    return found


def keys_of(index: FleetIndex, place: int, hashes) -> set[int]:
    """Block hashes as the table names them."""
    salt, stand_in = int(index.table.seeds[3 + place]), int(index.table.seeds[2])
    return {value ^ salt or stand_in for value in hashes}


class Equal(RuleBasedStateMachine):
    """The same done to both."""

    @initialize(others=st.sampled_from([0, 0, 62, 130]))
    def start(self, others) -> None:
        self.index, self.plain = FleetIndex(), PlainIndex()
        self.names: dict[int, str] = {}
        for _ in range(others):
            self.index.add("other")
        for _ in range(3):
            self.add()

    def some(self, data) -> int:
        return data.draw(st.sampled_from(sorted(self.names)))

    @rule()
    def add(self) -> None:
        replica = self.index.add(f"r{len(self.names)}")
        assert replica not in self.names
        self.names[replica] = "here"
        self.plain.add(replica)

    @rule(data=st.data())
    def remove(self, data) -> None:
        if len(self.names) > 1:
            replica = self.some(data)
            del self.names[replica]
            self.index.remove(replica)
            self.plain.remove(replica)

    @rule(data=st.data())
    def clear(self, data) -> None:
        replica = self.some(data)
        self.index.clear(replica)
        self.plain.clear(replica)

    @rule(data=st.data(), owner=st.sampled_from(["a", "b"]))
    def mount(self, data, owner) -> None:
        replica = self.some(data)
        self.index.mount(replica, owner)
        self.plain.mount(replica, owner)

    @rule(data=st.data(), events=EVENTS)
    def apply(self, data, events) -> None:
        replica = self.some(data)
        self.index.apply(replica, batch_of(*events))
        self.plain.apply(replica, batch_of(*events))

    @rule(
        data=st.data(),
        held=st.dictionaries(st.tuples(MEDIA, st.integers(0, 2), OWNERS), HASHES, max_size=4),
    )
    def restore(self, data, held) -> None:
        replica = self.some(data)
        content = {}
        for (medium, group, owner), values in held.items():
            once = np.array(sorted(set(values)), np.uint64)
            again = [v for i, v in enumerate(values) if v in values[:i]]
            if owner is None or medium == "STORAGE":
                content[Place(medium, group, owner)] = (once, np.array(again, np.uint64))
        self.index.restore(replica, content)
        self.plain.restore(replica, content)

    @invariant()
    def equal(self) -> None:
        expected: dict[tuple[int, int], set[int]] = {}
        tiers = {"GPU": DEVICE, "CPU": MEMORY, "STORAGE": STORAGE}
        for replica in self.names:
            reach = self.plain.reach(replica)
            assert self.index.counts(replica) == {p: len(held) for p, held in reach.items()}
            for place, held in reach.items():
                if place.owner is None:
                    where = tiers[place.medium] * GROUPS + place.group
                    expected[where, replica] = keys_of(self.index, where, held)
        for place, held in self.plain.shared.items():
            if held:
                where = SHARED * GROUPS + place.group
                owner = self.index._owners[place.owner]
                expected[where, owner] = keys_of(self.index, where, held)
        assert contents(self.index) == expected
        entries = {(place, key) for (place, _), keys in expected.items() for key in keys}
        assert self.index.table.live == len(entries)


Equal.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_equal = Equal.TestCase


def stored(hashes, medium="GPU", group=0, owner=None) -> Stored:
    return Stored(hashes, None, 0, 16, medium, group, owner=owner)


def test_memory_follows_what_lives() -> None:
    """Blocks that come and go for ever leave no trace in the table's size."""
    index = FleetIndex()
    replica = index.add("r")
    draw = np.random.default_rng(5)
    for _ in range(200):
        hashes = draw.integers(0, 2**64, 1000, np.uint64).tolist()
        index.apply(replica, batch_of(stored(hashes)))
        index.apply(replica, batch_of(Removed(hashes, "GPU", 0)))
    assert index.table.live == 0
    assert index.table.rows.nbytes < 200_000


def test_a_cleared_fleet_gives_its_memory_back() -> None:
    index = FleetIndex()
    replica = index.add("r")
    hashes = np.random.default_rng(5).integers(0, 2**64, 100_000, np.uint64)
    index.restore(replica, {Place("GPU", 0): (hashes, hashes[:0])})
    assert index.counts(replica) == {Place("GPU", 0): 100_000}
    index.clear(replica)
    assert index.table.nbytes < 2_000_000
    assert index.counts(replica) == {}


@pytest.mark.parametrize("group", [GROUPS, 2**24 - 1])
def test_what_cannot_be_used_is_counted(group) -> None:
    index = FleetIndex()
    replica = index.add("r")
    index.apply(replica, batch_of(stored([1], group=group), stored([1], "TAPE"), stored([2])))
    assert index.ignored == 2
    assert index.counts(replica) == {Place("GPU", 0): 1}


def test_owners_without_end_are_refused() -> None:
    index = FleetIndex()
    replica = index.add("r")
    events = [stored([1], "STORAGE", owner=str(number)) for number in range(1030)]
    index.apply(replica, batch_of(*events))
    assert index.ignored == 6
    index.remove(replica)
    assert index.table.live == 0


def test_what_an_operator_sees() -> None:
    index = FleetIndex()
    index.apply(index.add("r"), batch_of(stored([1, 2, 3], "STORAGE", owner="s")))
    assert repr(index) == "<FleetIndex: 1 replicas, 1 shared stores, 3 blocks, 0.0 MiB>"
