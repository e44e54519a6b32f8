"""One index for a whole fleet: which replicas hold which blocks, in which tier.

Replicas are bits, so that one walk over a prompt's hashes answers for all of them. A block of one group in
one tier is one entry of one `Table`. The device's blocks are counted, since engines hold some twice and say
so each time; tiers hold a chunk once. Storage that names its owner is held by the owner, for every replica
that mounts it; without one it is the publisher's own.

An event that names a tier or a group which nothing here can use is counted in `ignored`, never taken for
something else. Pure, and for one thread at a time.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kvstrata.fleet.table import Numbers, Table, Words
from kvstrata.wire.batches import Batch, Cleared
from kvstrata.wire.snapshot import Place

GROUPS = 48
"""KV cache groups that are told apart; vLLM has as many as a model has kinds of layers."""
DEVICE, MEMORY, STORAGE, SHARED = range(4)
"""Tiers, as the table tells them apart; SHARED is storage with an owner."""
_TIERS = {"GPU": DEVICE, "CPU": MEMORY, "STORAGE": STORAGE}
_MEDIA = ("GPU", "CPU", "STORAGE", "STORAGE")
_SLICE = 1 << 16
"""Hashes put into the table at once: it makes room for that many before it looks which are new."""
_MOST_OWNERS = 1 << 10


class FleetIndex:
    """Blocks of all replicas, by place.

    Attributes:
        table: the entries; place `tier * GROUPS + group`, holder a replica, or of SHARED an owner.
        ignored: events that name an unknown tier, too high a group, or one owner too many.
        alive: uint64[words], the replicas that there are, as bits.
        mounts: uint64[owners, words], for each owner the replicas that read what it holds, as bits.
        totals: int64[places, holders], how many distinct blocks each holds.
        sums: int64[places], the same over all holders.
    """

    def __init__(self) -> None:
        self.table = Table(4 * GROUPS)
        self.ignored = 0
        self.alive: Words = np.zeros(1, np.uint64)
        self.mounts: Words = np.zeros((64, 1), np.uint64)
        self.totals: Numbers = np.zeros((4 * GROUPS, 64), np.int64)
        self.sums: Numbers = np.zeros(4 * GROUPS, np.int64)
        self._names: dict[int, str] = {}
        self._owners: dict[str, int] = {}
        # Blocks that a device holds more than once, and how often more; few, and short-lived.
        self._again: dict[int, dict[int, dict[int, int]]] = {}

    def __repr__(self) -> str:
        return (
            f"<FleetIndex: {len(self._names)} replicas, {len(self._owners)} shared stores, "
            f"{self.table.live} blocks, {self.table.nbytes / 2**20:.1f} MiB>"
        )

    @property
    def capacity(self) -> int:
        """Every replica's number is below it."""
        return 64 * self.table.words

    def add(self, name: str) -> int:
        """A replica, by a name for people; returns the number that stands for it from now on."""
        replica = _free(self._names)
        self._make_room(replica)
        self._names[replica] = name
        self._again[replica] = {}
        self.alive[replica // 64] |= _bit(replica)
        return replica

    def remove(self, replica: int) -> None:
        """The replica is gone for good; its number may stand for another one later."""
        self.clear(replica)
        self.alive[replica // 64] &= ~_bit(replica)
        del self._names[replica], self._again[replica]

    def clear(self, replica: int) -> None:
        """Forget all that the replica itself holds and what it mounts: its engine restarted.

        What an owner holds is forgotten when the last replica that mounts it goes.
        """
        assert replica in self._names
        self._forget(replica, (DEVICE, MEMORY, STORAGE))
        self.mounts[:, replica // 64] &= ~_bit(replica)
        for name, owner in list(self._owners.items()):
            if not self.mounts[owner].any():
                self._forget(owner, (SHARED,))
                del self._owners[name]

    def mount(self, replica: int, owner: str) -> None:
        """The replica reads what `owner` (see `wire.batches.Stored`) holds, from now on."""
        assert replica in self._names
        self._owner(replica, owner)

    def apply(self, replica: int, batch: Batch) -> None:
        """Follow one batch of a replica's events."""
        assert replica in self._names
        for run in batch.runs():
            if isinstance(run, Cleared):
                self._forget(replica, (DEVICE,))
            elif run.stored:
                self._store(replica, (run.medium, run.group, run.owner), run.hashes)
            else:
                self._take(replica, (run.medium, run.group, run.owner), run.hashes)

    def restore(self, replica: int, held: Mapping[Place, tuple[Words, Words]]) -> None:
        """Replace what the replica itself holds; what owners hold is added to.

        Args:
            replica: its number.
            held: for each place the hashes (uint64[n]) and those that are there again (uint64[m]); see
                `wire.snapshot.Snapshot`.
        """
        assert replica in self._names
        self._forget(replica, (DEVICE, MEMORY, STORAGE))
        for place, (hashes, again) in held.items():
            where = place.medium, place.group, place.owner
            self._store(replica, where, np.ascontiguousarray(hashes, np.uint64))
            if place.medium == "GPU" and len(again):
                self._store(replica, where, np.ascontiguousarray(again, np.uint64))

    def counts(self, replica: int) -> dict[Place, int]:
        """Distinct blocks by place, those of mounted owners included; no place without any."""
        assert replica in self._names
        found = {}
        for place in np.flatnonzero(self.totals[: SHARED * GROUPS, replica]).tolist():
            tier, group = divmod(place, GROUPS)
            found[Place(_MEDIA[tier], group)] = int(self.totals[place, replica])
        for name, owner in self._owners.items():
            if self.mounts[owner, replica // 64] & _bit(replica):
                totals = self.totals[SHARED * GROUPS :, owner]
                for group in np.flatnonzero(totals).tolist():
                    found[Place("STORAGE", group, name)] = int(totals[group])
        return found

    def _store(self, replica: int, where: tuple[str, int, str | None], hashes: Words) -> None:
        found = self._locate(replica, where)
        if found is None:
            return
        place, holder = found
        for low in range(0, len(hashes), _SLICE):
            fresh, again = self.table.put(place, holder, hashes[low : low + _SLICE])
            self.totals[place, holder] += fresh
            self.sums[place] += fresh
            if len(again) and place < GROUPS:
                extra = self._again[replica].setdefault(place, {})
                for value in again.tolist():
                    extra[value] = extra.get(value, 0) + 1

    def _take(self, replica: int, where: tuple[str, int, str | None], hashes: Words) -> None:
        found = self._locate(replica, where)
        if found is None:
            return
        place, holder = found
        extra = self._again[replica].get(place) if place < GROUPS else None
        if extra:
            last = [value for value in hashes.tolist() if not _uncount(extra, value)]
            hashes = np.fromiter(last, np.uint64, len(last))
        gone = self.table.take(place, holder, hashes)
        self.totals[place, holder] -= gone
        self.sums[place] -= gone

    def _locate(self, replica: int, where: tuple[str, int, str | None]) -> tuple[int, int] | None:
        medium, group, owner = where
        tier = _TIERS.get(medium)
        if tier is None or not 0 <= group < GROUPS:
            self.ignored += 1
            return None
        if tier != STORAGE or owner is None:
            return tier * GROUPS + group, replica
        holder = self._owner(replica, owner)
        return None if holder is None else (SHARED * GROUPS + group, holder)

    def _owner(self, replica: int, name: str) -> int | None:
        """The number of an owner, which the replica mounts."""
        owner = self._owners.get(name)
        if owner is None:
            if len(self._owners) >= _MOST_OWNERS:
                self.ignored += 1
                return None
            owner = _free(self._owners.values())
            self._make_room(owner)
            self._owners[name] = owner
        self.mounts[owner, replica // 64] |= _bit(replica)
        return owner

    def _forget(self, holder: int, tiers: Sequence[int]) -> None:
        chosen = np.zeros(256, np.bool_)
        for tier in tiers:
            chosen[tier * GROUPS : (tier + 1) * GROUPS] = True
        if DEVICE in tiers:
            self._again[holder] = {}
        places = chosen[: len(self.totals)]
        if self.totals[places, holder].any():
            self.table.take_all(chosen, holder)
            self.sums -= np.where(places, self.totals[:, holder], 0)
            self.totals[places, holder] = 0

    def _make_room(self, holder: int) -> None:
        words = self.table.words
        if holder < 64 * words:
            return
        while holder >= 64 * words:
            words *= 2
        more = words - self.table.words
        self.table.widen(words)
        self.alive = np.pad(self.alive, (0, more))
        self.mounts = np.pad(self.mounts, ((0, 64 * more), (0, more)))
        self.totals = np.pad(self.totals, ((0, 0), (0, 64 * more)))


def _bit(holder: int) -> np.uint64:
    return np.uint64(1 << holder % 64)


def _free(taken: Iterable[int]) -> int:
    numbers = set(taken)
    return next(i for i in range(len(numbers) + 1) if i not in numbers)


def _uncount(extra: dict[int, int], value: int) -> bool:
    """Take one of a block's further copies; whether there was one."""
    count = extra.get(value)
    if count is None:
        return False
    if count == 1:
        del extra[value]
    else:
        extra[value] = count - 1
    return True
