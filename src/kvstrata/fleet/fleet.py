"""The fleet: replicas that are followed, the index of what they hold, and how far it can be believed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from kvstrata.clock import Clock, MonotonicClock
from kvstrata.events.connection import Feed
from kvstrata.events.follower import Limits, Status
from kvstrata.events.stream import Trust
from kvstrata.events.subscriber import Subscriber
from kvstrata.fleet.findings import Finding, compare
from kvstrata.fleet.hashing import Recipe
from kvstrata.fleet.index import FleetIndex
from kvstrata.fleet.replica import Address, Rank, Replica
from kvstrata.wire.batches import Batch, Cleared, Event, Removed, Stored, decode
from kvstrata.wire.snapshot import EngineFacts, Snapshot

_WARMING: tuple[Event, ...] = (
    Stored([1, 2], None, 0, 0, "GPU", 0),
    Removed([1], "GPU", 0),
    Cleared(),
)
_ORDER = (Trust.STALE, Trust.CATCHING_UP, Trust.SYNCED)


def warm() -> None:
    """Compile what takes events in, or load it: seconds, the first time, that no engine waits for."""
    index = FleetIndex()
    replica = index.add("warm")
    index.apply(replica, decode(msgspec.msgpack.encode([0.0, [{"type": "AllBlocksCleared"}]])))
    index.apply(replica, Batch(0.0, 0, list(_WARMING), 0))
    index.remove(replica)


class Fleet:
    """Follows replicas and keeps one index of them.

    Replicas come and go at any time and from any thread. The index is for one thread at a time: whoever
    reads it does so within `reading`.

    Args:
        limits: see `Limits`.
        clock: ours.
    """

    def __init__(self, limits: Limits | None = None, clock: Clock | None = None) -> None:
        self.index = FleetIndex()
        self._clock = clock or MonotonicClock()
        self._lock = threading.Lock()
        self._replicas: dict[str, Replica] = {}
        self._ranks: dict[str, Rank] = {}
        self._subscriber = Subscriber(self, limits, self._clock)

    def start(self) -> None:
        """Follow in a thread of its own, until `stop`."""
        warm()
        self._subscriber.start()

    def poll(self, seconds: float) -> None:
        """Without `start`: wait at most so long for events, and take in some."""
        self._subscriber.poll(seconds)

    def stop(self) -> None:
        """Follow nobody any more."""
        self._subscriber.stop()

    @contextmanager
    def reading(self) -> Iterator[FleetIndex]:
        """The index, which stays as it is meanwhile: be quick."""
        with self._lock:
            yield self.index

    def add(self, address: Address) -> Replica:
        """Follow one more replica.

        Raises:
            ValueError: there is one of that name, or one whose rank has that name.
        """
        feeds = address.feeds()
        with self._lock:
            taken = [feed.name for feed in feeds if feed.name in self._ranks]
            if taken:
                raise ValueError(f"there is a replica {taken[0]} already")
            ranks = tuple(Rank(feed, self.index.add(feed.name)) for feed in feeds)
            replica = Replica(address, ranks)
            self._ranks = {**self._ranks, **{rank.feed.name: rank for rank in ranks}}
            self._replicas = {**self._replicas, address.name: replica}
        for feed in feeds:
            self._subscriber.add(feed)
        return replica

    def remove(self, name: str) -> None:
        """Follow a replica no longer, and forget what it holds.

        Raises:
            KeyError: there is none of that name.
        """
        with self._lock:
            replica = self._replicas[name]
            gone = {rank.feed.name for rank in replica.ranks}
            self._replicas = {key: one for key, one in self._replicas.items() if key != name}
            self._ranks = {key: one for key, one in self._ranks.items() if key not in gone}
            for rank in replica.ranks:
                self.index.remove(rank.number)
        for feed in gone:
            self._subscriber.remove(feed)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All, in the order in which they came."""
        return tuple(self._replicas.values())

    def replica(self, name: str) -> Replica:
        """One of them.

        Raises:
            KeyError: there is none of that name.
        """
        return self._replicas[name]

    def status(self, rank: Rank) -> Status:
        """How it stands with the events of a rank."""
        try:
            return self._subscriber.status(rank.feed.name)
        except KeyError:
            return Status(Trust.STALE, "it is not followed any more")

    def trust(self, name: str) -> tuple[Trust, str]:
        """The least trust of a replica's ranks, and why; see `Trust`.

        Raises:
            KeyError: there is none of that name.
        """
        found = [self.status(rank) for rank in self._replicas[name].ranks]
        worst = min(found, key=lambda status: _ORDER.index(status.trust))
        return worst.trust, worst.reason

    def standing(self, replica: Replica, now: float) -> tuple[Trust, float]:
        """The least trust of a replica's ranks, and the longest time since one was heard of.

        Args:
            replica: that is followed, or was until now.
            now: by the fleet's clock, seconds.
        """
        first = self.status(replica.ranks[0])
        trust, lag = first.trust, first.lag(now)
        for rank in replica.ranks[1:]:
            status = self.status(rank)
            lag = max(lag, status.lag(now))
            if _ORDER.index(status.trust) < _ORDER.index(trust):
                trust = status.trust
        return trust, lag

    @property
    def settled(self) -> bool:
        """Whether nothing is being caught up with."""
        return all(
            self.status(rank).trust is not Trust.CATCHING_UP and not self.status(rank).behind
            for rank in self._ranks.values()
        )

    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with the replicas, each by itself and side by side."""
        alone = [one for rank in self._ranks.values() for one in rank.findings()]
        facts = {name: rank.facts for name, rank in self._ranks.items()}
        known: dict[str, EngineFacts] = {name: one for name, one in facts.items() if one}
        return (*alone, *compare(known))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON."""
        now = self._clock.now()
        return {
            "replicas": [self._describe(replica, now) for replica in self.replicas],
            "findings": [
                {"code": one.code, "replica": one.replica, "text": one.text}
                for one in self.findings()
            ],
        }

    # What the subscriber tells; from its thread.

    def apply(self, feed: Feed, batch: Batch, payload: bytes) -> None:
        """See `Sink.apply`."""
        with self._lock:
            rank = self._followed(feed)
            if rank is None:
                return
            self.index.apply(rank.number, batch)
        rank.look(batch, payload, self._recipes())

    def reset(self, feed: Feed, reason: str) -> None:
        """See `Sink.reset`."""
        del reason
        with self._lock:
            rank = self._followed(feed)
            if rank is not None:
                self.index.clear(rank.number)
                rank.restarted()

    def restore(self, feed: Feed, held: Snapshot) -> None:
        """See `Sink.restore`."""
        with self._lock:
            rank = self._followed(feed)
            if rank is None:
                return
            self.index.restore(rank.number, held.held)
            rank.told = held.header.facts
            if rank.told is not None and rank.told.storage:
                self.index.mount(rank.number, rank.told.storage)

    def _followed(self, feed: Feed) -> Rank | None:
        """The feed's rank; None when it was removed just now, even if another has its name already."""
        rank = self._ranks.get(feed.name)
        return rank if rank is not None and rank.feed is feed else None

    def _recipes(self) -> Iterator[Recipe]:
        """Of replicas that told theirs, or showed it."""
        seen = set()
        for rank in self._ranks.values():
            recipe = Recipe.of(rank.told) if rank.told else rank.recipe
            if recipe is not None and recipe not in seen:
                seen.add(recipe)
                yield recipe

    def _describe(self, replica: Replica, now: float) -> dict[str, Any]:
        trust, reason = self.trust(replica.name)
        return {
            "name": replica.name,
            "url": replica.address.url,
            "trust": trust.value,
            "reason": reason,
            "model": replica.facts.model if replica.facts else "",
            "ranks": [self._describe_rank(rank, now) for rank in replica.ranks],
        }

    def _describe_rank(self, rank: Rank, now: float) -> dict[str, Any]:
        status, counts = self.status(rank), self.status(rank).counts
        with self._lock:
            held = self.index.counts(rank.number) if self._ranks.get(rank.feed.name) is rank else {}
        facts = rank.facts
        return {
            "name": rank.feed.name,
            "events": rank.feed.events,
            "replay": rank.feed.replay,
            "trust": status.trust.value,
            "reason": status.reason,
            "epoch": status.epoch.hex() if status.epoch else None,
            "sequence": status.sequence,
            "behind": status.behind,
            "lag_seconds": round(status.lag(now), 3),
            "blocks": [
                {"tier": p.medium, "group": p.group, "owner": p.owner, "blocks": n}
                for p, n in sorted(held.items(), key=lambda item: (item[0].medium, item[0].group))
            ],
            "counts": {name: getattr(counts, name) for name in counts.__slots__},
            "hashes": {"sampled": rank.sampled, "unlike": rank.unlike},
            "facts": _plain(facts) if facts else None,
            "told": rank.told is not None,
        }


def _plain(facts: EngineFacts) -> dict[str, Any]:
    return {
        "model": facts.model,
        "hash_algorithm": facts.hash_algorithm,
        "none_hash": facts.none_hash.hex(),
        "hash_tokens": facts.hash_tokens,
        "alignment_tokens": facts.alignment_tokens,
        "storage": facts.storage,
        "device_blocks": facts.device_blocks,
        "release": facts.release,
        "groups": [
            {name: getattr(group, name) for name in group.__struct_fields__}
            for group in facts.groups
        ],
    }
