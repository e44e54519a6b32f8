"""A fleet's index holds what its engines hold, and the fleet says of each how far that is true."""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.errors import ConfigError
from kvstrata.events.follower import Limits
from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.replica import Address
from kvstrata.wire.snapshot import EngineFacts, GroupFacts, Place
from tests.unit.events.fake_publisher import FakeEngine, random_events

QUICK = Limits(answer_seconds=0.3, connect_seconds=0.2, check_seconds=0.1, late_seconds=0.05)
SHARED = "names@place"
FACTS = EngineFacts(
    "m",
    "sha256",
    BlockHasher("sha256", 16).none_hash,
    16,
    16,
    (GroupFacts(0, "full", 16, 1, 1024), GroupFacts(1, "full", 16, 1, 1024)),
    SHARED,
)


@pytest.fixture
def at() -> Iterator[Callable[[str], str]]:
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        yield lambda name: f"ipc://{directory}/{name}"


@pytest.fixture
def engine(at) -> Iterator[Callable[..., FakeEngine]]:
    made = []

    def begin(name: str, **settings) -> FakeEngine:
        made.append(FakeEngine(at(name), at(f"{name}r"), **settings))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    made = Fleet(QUICK)
    yield made
    made.stop()


def until(fleet: Fleet, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, json.dumps(fleet.as_dict(), indent=1)
        fleet.poll(0.02)


def synced(fleet: Fleet, name: str, *lasts: int) -> None:
    def done() -> bool:
        statuses = [fleet.status(rank) for rank in fleet.replica(name).ranks]
        pairs = zip(statuses, lasts, strict=True)
        return all(one.trust is Trust.SYNCED and one.sequence >= last for one, last in pairs)

    until(fleet, done)


def expected(engine: FakeEngine, *shared: FakeEngine) -> dict[Place, int]:
    """Distinct blocks of an engine's own tiers, and of storage that the others announced too."""
    own = {
        Place(place.medium, place.group, place.owner): len(counts)
        for place, counts in engine.contents.held.items()
        if place.owner is None
    }
    names: dict[Place, set[int]] = {}
    for one in (engine, *shared):
        for place, counts in one.contents.held.items():
            if place.owner is not None:
                names.setdefault(place, set()).update(counts)
    return {**own, **{place: len(hashes) for place, hashes in names.items()}}


def counts(fleet: Fleet, name: str, rank: int = 0) -> dict[Place, int]:
    with fleet.reading() as index:
        return index.counts(fleet.replica(name).ranks[rank].number)


def stores_only(dice: random.Random, count: int) -> list:
    """What two engines announce of shared storage adds up, as long as neither removes."""
    return [event for event in random_events(dice, count) if event["type"] == "BlockStored"]


def test_replicas_come_and_go_and_share_storage(at, engine, fleet) -> None:
    dice = random.Random(1)
    one, other = engine("a", facts=FACTS), engine("b", facts=FACTS)
    for publisher in (one, other):
        for _ in range(20):
            publisher.publish(stores_only(dice, 20))
    fleet.add(Address("a", ((at("a"), at("ar")),), "http://127.0.0.1:1"))
    fleet.add(Address("b", ((at("b"), at("br")),)))
    synced(fleet, "a", one.settle())
    synced(fleet, "b", other.settle())
    assert counts(fleet, "a") == expected(one, other) != expected(one)
    assert counts(fleet, "b") == expected(other, one)
    assert fleet.trust("a") == (Trust.SYNCED, "") and fleet.settled
    assert fleet.replica("a").facts == FACTS and fleet.findings() == ()
    told = json.loads(json.dumps(fleet.as_dict()))
    assert [replica["name"] for replica in told["replicas"]] == ["a", "b"]
    assert told["replicas"][0]["ranks"][0]["facts"]["storage"] == SHARED
    with pytest.raises(ValueError, match="already"):
        fleet.add(Address("a", ((at("a"), None),)))

    fleet.remove("a")
    with pytest.raises(KeyError):
        fleet.trust("a")
    other.publish(stores_only(dice, 20))
    synced(fleet, "b", other.settle())
    assert counts(fleet, "b") == expected(other, one), "what a announced of storage is b's too"
    again = fleet.add(Address("a", ((at("a"), at("ar")),)))
    assert counts(fleet, "a") == {}
    synced(fleet, "a", one.settle())
    assert counts(fleet, "a") == expected(one, other) and again in fleet.replicas


def test_each_data_parallel_rank_has_its_own_blocks(at, engine, fleet) -> None:
    dice = random.Random(2)
    ranks = [engine("a"), engine("b")]
    for publisher in ranks:
        publisher.publish(stores_only(dice, 20))
    fleet.add(Address("a", ((at("a"), at("ar")), (at("b"), at("br")))))
    synced(fleet, "a", *(publisher.settle() for publisher in ranks))
    for number, publisher in enumerate(ranks):
        assert counts(fleet, "a", number)[Place("GPU", 0)] == len(
            publisher.contents.held[Place("GPU", 0)]
        )
    ranks[1].close()
    until(fleet, lambda: fleet.trust("a")[0] is Trust.STALE)
    assert fleet.status(fleet.replica("a").ranks[0]).trust is Trust.SYNCED
    ranks.pop()


def test_a_restarted_engine_is_asked_anew_who_it_is(at, engine, fleet) -> None:
    dice = random.Random(3)
    first = engine("a", facts=FACTS)
    first.publish(random_events(dice, 50))
    fleet.add(Address("a", ((at("a"), at("ar")),)))
    synced(fleet, "a", first.settle())
    first.close()
    until(fleet, lambda: fleet.trust("a")[0] is Trust.STALE)
    assert "was lost" in fleet.trust("a")[1]
    other = msgspec.structs.replace(FACTS, storage=None, model="n")
    second = engine("a", facts=other)
    second.publish([event for event in stores_only(dice, 50) if event["medium"] != "STORAGE"])
    until(fleet, lambda: fleet.replica("a").facts == other)
    synced(fleet, "a", second.settle())
    assert counts(fleet, "a") == expected(second)


def test_an_engine_with_another_seed_is_named(at, engine, fleet) -> None:
    odd = msgspec.structs.replace(FACTS, none_hash=bytes(32))
    engine("a", facts=FACTS)
    engine("b", facts=FACTS)
    engine("c", facts=odd)
    for name in "abc":
        fleet.add(Address(name, ((at(name), at(f"{name}r")),)))
    until(fleet, lambda: fleet.settled)
    assert [(one.code, one.replica) for one in fleet.findings()] == [("hash-seed", "c")]


def test_an_address_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="no address for its events"):
        Address("a", ())
    with pytest.raises(ConfigError, match="no address to connect to"):
        Address("a", (("localhost", None),))
