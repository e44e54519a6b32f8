"""Whatever bytes an engine sends, its follower goes on, and says so."""

import random
from collections.abc import Iterator

import msgspec
import pytest

from kvstrata.events.connection import Feed
from kvstrata.events.follower import Follower, Limits
from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.replica import Address
from kvstrata.wire.snapshot import END, VERSION, Header, Question, encode
from tests.unit.events.fake_publisher import random_events

PLACES = (("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"),)
ODD_NUMBERS = (0, 1, 7, 2**31, 2**62, 2**63, 2**64 - 2, 2**64 - 1)


class Engine:
    """The other end of a follower, without sockets; it is free to lie."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.fleet = Fleet()
        replica = self.fleet.add(Address("a", PLACES))
        self.asked: list[bytes] = []
        self.now = 0.0
        feed: Feed = replica.ranks[0].feed
        self.follower = Follower(
            feed, self.fleet, self.asked.append, self.asked.clear, self.now, Limits()
        )
        self.follower.connected(self.now)
        self.sequence = 0

    def step(self) -> None:
        """Something happens."""
        self.now += self.dice.random() * self.dice.choice((0.01, 1.0))
        what = self.dice.randrange(8)
        if what < 4:
            odd = self.dice.random() < 0.05
            number = self.dice.choice(ODD_NUMBERS) if odd else self.sequence
            self.sequence += self.dice.random() < 0.9
            self.follower.published(self.frames([b"", number.to_bytes(8, "big"), self.payload()]))
        elif what == 4:
            self.follower.work(self.now)
        elif what == 5:
            self.follower.tick(self.now)
        else:
            number = self.dice.choice(
                [END, b"\xff" * 7 + b"\xfe", self.sequence.to_bytes(8, "big")]
            )
            payload = self.payload() if self.dice.random() < 0.5 else self.part()
            self.follower.answered(self.frames([b"", b"", number, payload]), self.now)

    def frames(self, honest: list[bytes]) -> list[bytes]:
        if self.dice.random() < 0.03:
            return [
                self.dice.randbytes(self.dice.randrange(10)) for _ in range(self.dice.randrange(6))
            ]
        return honest

    def payload(self) -> bytes:
        honest = msgspec.msgpack.encode([1.0, random_events(self.dice, 3), 0])
        return honest if self.dice.random() < 0.4 else self.damaged(honest)

    def part(self) -> bytes:
        header = Header(VERSION, b"e" * 16, self.sequence, 0.0, 0, (b"x" * 16,))
        honest = next(encode(header))
        return honest if self.dice.random() < 0.6 else self.damaged(honest)

    def damaged(self, honest: bytes) -> bytes:
        found = bytearray(honest)
        for _ in range(self.dice.randrange(1, 5)):
            found[self.dice.randrange(len(found))] = self.dice.randrange(256)
        return bytes(found[: self.dice.randrange(len(found) + 1)])

    def come_to_its_senses(self) -> None:
        """From now on it answers honestly: it holds nothing, and published nothing more."""
        for _ in range(200):
            self.now += 1.0
            if self.follower.busy:
                self.follower.work(self.now)
            self.follower.tick(self.now)
            if self.asked and self.asked[-1] in [one.value for one in Question]:
                for part in encode(Header(VERSION, b"h" * 16, 5, 0.0, 0)):
                    self.follower.answered([b"", b"", b"\xff" * 7 + b"\xfe", part], self.now)
            self.follower.answered([b"", b"", END, b""], self.now)


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.fleet.stop()


@pytest.mark.parametrize("seed", range(8))
def test_a_lying_engine_is_followed_to_its_return_to_honesty(
    engines: list[Engine], seed: int
) -> None:
    engine = Engine(random.Random(seed))
    engines.append(engine)
    for _ in range(2000):
        engine.step()
    assert engine.follower.status.counts.malformed > 50
    engine.come_to_its_senses()
    status = engine.follower.status
    assert status.trust is Trust.SYNCED, status
    assert status.epoch == b"h" * 16 and status.sequence == 5
    with engine.fleet.reading() as index:
        assert [
            place
            for place in index.counts(engine.fleet.replica("a").ranks[0].number)
            if not place.owner
        ] == []
