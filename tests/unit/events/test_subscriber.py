"""A subscriber of real sockets ends with what the engine holds, or says that and why it does not."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvstrata.errors import ConfigError
from kvstrata.events.connection import Feed
from kvstrata.events.follower import Limits, Status
from kvstrata.events.stream import Trust
from kvstrata.events.subscriber import Subscriber
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import Place
from tests.unit.events.fake_publisher import FakeEngine, Proxy, random_events

FAKE = Path(__file__).with_name("fake_publisher.py")
SECONDS = 20.0
QUICK = Limits(answer_seconds=0.3, connect_seconds=0.2, check_seconds=0.1, late_seconds=0.05)


class Books:
    """A sink that keeps each feed's content in the plain form."""

    def __init__(self) -> None:
        self.contents: dict[str, Contents] = {}
        self.resets: list[str] = []
        self.restored = 0
        self.applied: list[str] = []

    def of(self, name: str) -> Contents:
        return self.contents.setdefault(name, Contents())

    def apply(self, feed, batch, payload) -> None:
        self.applied.append(feed.name)
        self.of(feed.name).apply(batch)

    def reset(self, feed, reason) -> None:
        self.resets.append(reason)
        self.contents[feed.name] = Contents()

    def restore(self, feed, held) -> None:
        self.restored += 1
        fresh = self.contents[feed.name] = Contents()
        for place, (hashes, again) in held.held.items():
            values, counts = np.unique(np.concatenate((hashes, again)), return_counts=True)
            fresh.held[place] = dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.fixture
def at() -> Iterator[Callable[[str], str]]:
    """Short local addresses by name."""
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        yield lambda name: f"ipc://{directory}/{name}"


@pytest.fixture
def follow() -> Iterator[Callable[..., tuple[Subscriber, Books]]]:
    made = []

    def begin(*feeds: Feed, limits: Limits = QUICK) -> tuple[Subscriber, Books]:
        books = Books()
        subscriber = Subscriber(books, limits)
        for feed in feeds:
            subscriber.add(feed)
        made.append(subscriber)
        return subscriber, books

    yield begin
    for subscriber in made:
        subscriber.stop()


@pytest.fixture
def engine() -> Iterator[Callable[..., FakeEngine]]:
    made = []

    def begin(*arguments, **settings) -> FakeEngine:
        made.append(FakeEngine(*arguments, **settings))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def until(subscriber: Subscriber, done: Callable[[], bool]) -> None:
    """Poll until it is so."""
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, {n: subscriber.status(n) for n in subscriber.names}
        subscriber.poll(0.02)


def settled(subscriber: Subscriber, name: str, last: int) -> Status:
    """Poll until a feed is synced up to a batch."""

    def done() -> bool:
        status = subscriber.status(name)
        return status.trust is Trust.SYNCED and status.sequence >= last

    until(subscriber, done)
    return subscriber.status(name)


def stale(subscriber: Subscriber, name: str) -> Status:
    """Poll until a feed is stale."""
    until(subscriber, lambda: subscriber.status(name).trust is Trust.STALE)
    return subscriber.status(name)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_late_start(at, follow, engine, speaks: bool) -> None:
    dice = random.Random(1)
    publisher = engine(at("e"), at("r"), speaks=speaks)
    for _ in range(50):
        publisher.publish(random_events(dice, 20))
    publisher.settle()
    subscriber, books = follow(Feed("a", at("e"), at("r")))
    status = settled(subscriber, "a", 49)
    assert books.of("a").held == publisher.contents.held != {}
    assert books.restored == speaks
    assert status.epoch == (publisher.epoch if speaks else None)
    for _ in range(50):
        publisher.publish(random_events(dice, 20))
    status = settled(subscriber, "a", publisher.settle())
    assert books.of("a").held == publisher.contents.held
    assert status.counts.batches == (50 if speaks else 100) and status.lag(1e9) == 0


def test_a_ring_that_rolled_over(at, follow, engine) -> None:
    dice = random.Random(2)
    publisher = engine(at("e"), at("r"), ring=3)
    stock = engine(at("e2"), at("r2"), ring=3, speaks=False)
    for _ in range(20):
        events = random_events(dice, 20)
        publisher.publish(events)
        stock.publish(events)
    publisher.settle()
    stock.settle()
    subscriber, books = follow(Feed("a", at("e"), at("r")), Feed("b", at("e2"), at("r2")))
    settled(subscriber, "a", publisher.settle())
    assert books.of("a").held == publisher.contents.held
    assert "batches 0 to 16 are lost" in stale(subscriber, "b").reason


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("speaks", [True, False])
def test_a_network_that_drops_repeats_and_reorders(at, follow, engine, seed, speaks) -> None:
    dice = random.Random(seed)
    publisher = engine(at("e"), at("r"), ring=8 if speaks else 10_000, speaks=speaks)
    proxy = Proxy(at("e"), at("p"), seed)
    try:
        subscriber, books = follow(Feed("a", at("p"), at("r")))
        settled(subscriber, "a", -1)
        for _ in range(60):
            for _ in range(dice.randrange(1, 8)):
                publisher.publish(random_events(dice, 5))
            subscriber.poll(0.005)
        # Whatever is lost last is found without a further batch.
        status = settled(subscriber, "a", publisher.settle())
    finally:
        proxy.close()
    assert proxy.dropped and proxy.repeated and proxy.delayed
    assert books.of("a").held == publisher.contents.held
    assert status.counts.repeated and status.counts.replays and not status.counts.restarts


@pytest.mark.parametrize("speaks", [True, False])
def test_a_restart_that_the_connection_does_not_show(at, follow, engine, speaks: bool) -> None:
    dice = random.Random(3)
    first = engine(at("e"), at("r"), speaks=speaks)
    proxy = Proxy(at("e"), at("p"), 0)
    proxy.faulty = False
    try:
        subscriber, books = follow(Feed("a", at("p"), at("r")))
        settled(subscriber, "a", -1)
        for _ in range(5):
            first.publish(random_events(dice, 20))
        settled(subscriber, "a", first.settle())
        assert books.of("a").held
        first.close()
        second = engine(at("e"), at("r"), speaks=speaks)
        until(subscriber, lambda: subscriber.status("a").counts.restarts > 0)
        second.publish(random_events(dice, 20))
        settled(subscriber, "a", second.settle())
        assert books.of("a").held == second.contents.held
    finally:
        proxy.close()


class Child:
    """A fake engine in a process of its own."""

    def __init__(self, **settings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.epoch = bytes.fromhex(json.loads(self.process.stdout.readline())["epoch"])

    def publish(self, batches) -> tuple[int, dict]:
        """Its last batch, and what it holds then."""
        self.process.stdin.write(json.dumps(batches) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["sequence"], {
            Place(medium, group, owner): dict(counts)
            for medium, group, owner, counts in answer["held"]
        }

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("speaks", [True, False])
def test_kill_and_restart_at_the_same_address(at, follow, speaks: bool) -> None:
    dice = random.Random(4)
    settings = {"events": at("e"), "replay": at("r"), "speaks": speaks}
    child = Child(**settings)
    try:
        subscriber, books = follow(Feed("a", at("e"), at("r")))
        last, held = child.publish([random_events(dice, 20) for _ in range(30)])
        settled(subscriber, "a", last)
        assert books.of("a").held == held
        child.kill()
        assert "was lost" in stale(subscriber, "a").reason
        child = Child(**settings)
        # As many batches as before: only their content and the epoch differ.
        last, held = child.publish([random_events(dice, 20) for _ in range(30)])
        until(subscriber, lambda: subscriber.status("a").counts.restarts > 0)
        status = settled(subscriber, "a", last)
        assert books.of("a").held == held
        assert status.epoch == (child.epoch if speaks else None)
    finally:
        child.kill()


def test_no_replay_endpoint_is_said(at, follow, engine) -> None:
    publisher = engine(at("e"))
    subscriber, books = follow(Feed("a", at("e")))
    assert "no replay endpoint" in stale(subscriber, "a").reason
    begun = time.monotonic()
    # Nothing says when the publisher has taken note of a subscription, and without replay it matters.
    until(subscriber, lambda: time.monotonic() > begun + 0.3)
    publisher.publish(random_events(random.Random(5), 20))
    settled(subscriber, "a", publisher.settle())  # nothing came before the first batch
    assert books.of("a").held == publisher.contents.held


@pytest.mark.parametrize("bound", [True, False])
def test_an_endpoint_that_never_answers_is_said(at, follow, engine, bound: bool) -> None:
    publisher = engine(at("e"), at("r") if bound else None, deaf=True)
    subscriber, books = follow(Feed("a", at("e"), at("r")))
    assert "no answer from" in stale(subscriber, "a").reason
    publisher.publish(random_events(random.Random(6), 20))
    publisher.settle()
    until(subscriber, lambda: subscriber.status("a").sequence == 0)
    assert books.of("a").held == publisher.contents.held


def test_nobody_there_is_said_and_whoever_comes_is_followed(at, follow, engine) -> None:
    subscriber, books = follow(Feed("a", at("e"), at("r")))
    assert "no connection to" in stale(subscriber, "a").reason
    publisher = engine(at("e"), at("r"))
    publisher.publish(random_events(random.Random(7), 20))
    settled(subscriber, "a", publisher.settle())
    assert books.of("a").held == publisher.contents.held


def test_addresses_that_cannot_be(follow) -> None:
    for address in ("localhost:5557", "tcp://*:5557", "http://h:1"):
        with pytest.raises(ConfigError, match="no address to connect to"):
            Feed("a", address)
    subscriber, _ = follow(Feed("a", "tcp://127.0.0.1"), Feed("b", "tcp://127.0.0.1:1"))
    assert "cannot connect" in stale(subscriber, "a").reason
    assert "no connection" in stale(subscriber, "b").reason


def test_a_flood_from_one_engine_leaves_the_others_their_turn(at, follow, engine) -> None:
    dice = random.Random(8)
    loud, quiet = engine(at("e"), at("r")), engine(at("e2"), at("r2"))
    small = Limits(slice_batches=4)
    subscriber, books = follow(
        Feed("loud", at("e"), at("r")), Feed("quiet", at("e2"), at("r2")), limits=small
    )
    settled(subscriber, "loud", -1)
    settled(subscriber, "quiet", -1)
    for _ in range(2000):
        loud.publish(random_events(dice, 5))
    loud.settle()
    until(subscriber, lambda: subscriber.status("loud").behind > 500)
    assert subscriber.status("loud").queued_bytes > 0
    assert subscriber.status("loud").lag(time.monotonic()) > 0
    for _ in range(20):
        quiet.publish(random_events(dice, 5))
    last = quiet.settle()
    settled(subscriber, "quiet", last)
    assert subscriber.status("loud").behind > 0, "the quiet one had to wait for the loud one's end"
    settled(subscriber, "loud", 1999)
    assert books.of("loud").held == loud.contents.held
    assert books.of("quiet").held == quiet.contents.held


def test_hostile_payloads_end_neither_the_subscriber_nor_its_neighbours(at, follow, engine) -> None:
    dice = random.Random(9)
    bad, good = engine(at("e"), at("r")), engine(at("e2"), at("r2"))
    subscriber, books = follow(Feed("bad", at("e"), at("r")), Feed("good", at("e2"), at("r2")))
    settled(subscriber, "bad", -1)
    settled(subscriber, "good", -1)
    honest = msgspec.msgpack.encode([1.0, random_events(dice, 8), 0])
    for number in range(400):
        damaged = bytearray(honest)
        for _ in range(dice.randrange(1, 6)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        hostile = [
            bytes(damaged),
            honest[: dice.randrange(len(honest))],
            dice.randbytes(dice.randrange(200)),
            b"\x91" * dice.randrange(5000),
            b"\xdd\xff\xff\xff\xff",
            b"",
        ]
        bad.publish_payload(hostile[number % len(hostile)])
        good.publish(random_events(dice, 3))
        subscriber.poll(0.0)
    bad.publish(random_events(dice, 8))
    assert settled(subscriber, "good", good.settle()).counts.malformed == 0
    assert books.of("good").held == good.contents.held
    # The engine's own content holds what could be read of it, and so does a snapshot of it.
    assert settled(subscriber, "bad", bad.settle()).counts.malformed > 100
    assert books.of("bad").held == bad.contents.held


def test_feeds_come_and_go_while_a_thread_follows(at, follow, engine) -> None:
    dice = random.Random(10)
    first, second = engine(at("e"), at("r")), engine(at("e2"), at("r2"))
    subscriber, books = follow(Feed("a", at("e"), at("r")))
    subscriber.start()
    first.publish(random_events(dice, 5))
    second.publish(random_events(dice, 5))
    deadline = time.monotonic() + SECONDS

    def wait(done: Callable[[], bool]) -> None:
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    wait(lambda: subscriber.status("a").sequence == 0)
    with pytest.raises(ValueError, match="followed already"):
        subscriber.add(Feed("a", at("e")))
    subscriber.add(Feed("b", at("e2"), at("r2")))
    wait(lambda: subscriber.status("b").trust is Trust.SYNCED)
    gone: list[bool] = []
    subscriber.remove("a", lambda: gone.append(True))
    wait(lambda: bool(gone))
    applied = len(books.applied)
    first.publish(random_events(dice, 5))
    first.settle()
    second.publish(random_events(dice, 5))
    wait(lambda: subscriber.status("b").sequence == 1)
    assert "a" not in books.applied[applied:] and subscriber.names == ("b",)
    assert books.of("b").held == second.contents.held


@pytest.mark.filterwarnings("ignore")
def test_a_thread_that_ended_makes_everything_stale(at, follow, engine) -> None:
    publisher = engine(at("e"), at("r"))
    subscriber, books = follow(Feed("a", at("e"), at("r")))

    def broken(*_) -> None:
        raise KeyError("a fault of ours")

    books.restore = broken
    subscriber.start()
    publisher.publish([])
    deadline = time.monotonic() + SECONDS
    while "no longer followed" not in subscriber.status("a").reason:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert subscriber.status("a").trust is Trust.STALE
