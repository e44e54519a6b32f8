"""What every request asks of a replica: its facts, made once for what was seen, and its least trust."""

import pytest

from kvstrata.events.follower import Status
from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.replica import LOOKED_AT, Address, Rank
from kvstrata.wire.batches import Batch, Stored

NOBODY = ("tcp://127.0.0.1:1", None)


def stored(group: int) -> Batch:
    event = Stored([1], None, 16, 16, "GPU", group, "full_attention")
    return Batch(0.0, 1, [event], 0)


def test_facts_are_made_anew_only_for_what_was_seen_since() -> None:
    rank = Rank(Address("a", (NOBODY,)).feeds()[0], 0)
    assert rank.facts is None
    rank.look(stored(0), b"", ())
    first = rank.facts
    assert first is not None and len(first.groups) == 1
    assert rank.facts is first
    rank.look(stored(1), b"", ())
    second = rank.facts
    assert second is not None and len(second.groups) == 2
    for _ in range(LOOKED_AT):
        rank.look(stored(2), b"", ())
    assert rank.facts is not None and len(rank.facts.groups) == 3
    rank.restarted()
    assert rank.facts is None
    rank.told = first
    assert rank.facts is first


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([(Trust.SYNCED, None)], (Trust.SYNCED, 0.0)),
        ([(Trust.SYNCED, 7.0), (Trust.STALE, 9.0)], (Trust.STALE, 3.0)),
        ([(Trust.STALE, 9.5), (Trust.SYNCED, 8.0)], (Trust.STALE, 2.0)),
        ([(Trust.CATCHING_UP, 4.0), (Trust.SYNCED, None)], (Trust.CATCHING_UP, 6.0)),
        ([(Trust.SYNCED, 4.0), (Trust.CATCHING_UP, None)], (Trust.CATCHING_UP, 6.0)),
    ],
)
def test_a_replica_stands_as_its_worst_rank(
    monkeypatch: pytest.MonkeyPatch,
    states: list[tuple[Trust, float | None]],
    expected: tuple[Trust, float],
) -> None:
    fleet = Fleet()
    replica = fleet.add(Address("a", tuple(NOBODY for _ in states)))
    known = {
        rank.feed.name: Status(trust, level_at=level)
        for rank, (trust, level) in zip(replica.ranks, states, strict=True)
    }
    monkeypatch.setattr(fleet, "status", lambda rank: known[rank.feed.name])
    assert fleet.standing(replica, 10.0) == expected
    assert fleet.trust("a")[0] is expected[0]


def test_who_is_not_followed_any_more_is_not_trusted() -> None:
    fleet = Fleet()
    replica = fleet.add(Address("a", (NOBODY,)))
    fleet.remove("a")
    assert fleet.standing(replica, 10.0)[0] is Trust.STALE
