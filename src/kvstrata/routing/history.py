"""Which prompts were sent where: what a replica will hold before its events arrive, or may hold without any.

Beginnings are compared at a grid of positions, `STEPS` in every doubling of the length: a hash covers all
before it, so one equal hash says that everything to its left is equal. A prompt of 8 192 hashes costs some
160 look-ups, whatever is remembered, and what is found where two prompts part falls short by at most one
grid step, a sixteenth. Where a remembered prompt ended is compared besides, exactly: that is where a
conversation goes on, and with junctions the only place where a model with windowed groups can: the second
prompt with a beginning that was sent to the same replica keeps its windows where the two part.

Bounded in prompts, oldest out first.
"""

from collections import Counter, OrderedDict, deque

import numpy as np

from kvstrata.routing.decision import Hashes

STEPS = 16
MOST_PROMPTS = 2048
MOST_HASHES = 1 << 17
"""Of one prompt; 2 million tokens at 16 a hash. What lies behind is not compared."""


def grid(length: int) -> list[int]:
    """Counts of hashes at which prefixes of up to `length` hashes are compared, ascending."""
    counts: list[int] = []
    count, step = 1, 1
    while count <= length:
        counts.append(count)
        if count >= 2 * STEPS * step:
            step *= 2
        count += step
    return counts


_GRID = np.array(grid(MOST_HASHES))


class Sent:
    """One prompt that was sent.

    Attributes:
        id: of its request.
        replica: where to.
        ends: counts of hashes where it leaves something to go on from, and the last hash of each: the whole
            prompt, and its junction if it has one.
        keys: its hashes at the grid.
        until: seconds until which it counts.
    """

    __slots__ = ("ends", "id", "keys", "replica", "until")

    def __init__(
        self, request: str, replica: str, prefix: Hashes, junction: int, until: float
    ) -> None:
        self.id = request
        self.replica = replica
        count = min(len(prefix), MOST_HASHES)
        counts = (junction, count) if 0 < junction < count else (count,)
        self.ends = [(one, int(prefix[one - 1])) for one in counts]
        self.keys = _at_grid(prefix)[1]
        self.until = until


class History:
    """Prompts that were sent and still count, the newest `prompts`.

    Args:
        prompts: at least 1.
    """

    def __init__(self, prompts: int = MOST_PROMPTS) -> None:
        assert prompts > 0
        self._most = prompts
        self._sent: OrderedDict[str, Sent] = OrderedDict()
        self._settled: deque[Sent] = deque()
        self._grid: dict[int, dict[str, Sent]] = {}
        self._ends: dict[int, dict[str, Sent]] = {}
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def keys(self) -> int:
        """Hashes kept, which is what memory goes by: some 200 for each prompt at most."""
        return len(self._grid) + len(self._ends)

    def add(self, request: str, replica: str, prefix: Hashes, now: float, until: float) -> None:
        """A prompt with at least one hash was sent; again after a retry: then the first does not count.

        Args:
            request: its id.
            replica: where to.
            prefix: its hashes.
            now: seconds.
            until: seconds until which it counts.
        """
        self.drop(request)
        junction = self.match(prefix, now).get(replica, 0)
        sent = Sent(request, replica, prefix, junction, until)
        self._sent[request] = sent
        for count, end in sent.ends:
            self._lengths[count] += 1
            self._ends.setdefault(end, {})[replica] = sent
        for key in sent.keys:
            self._grid.setdefault(key, {})[replica] = sent
        while len(self._sent) > self._most:
            self.drop(next(iter(self._sent)))
        self._clean(now)

    def settle(self, request: str, now: float, until: float) -> None:
        """It was computed: it counts until `until` only, by when events must have told."""
        sent = self._sent.get(request)
        if sent is not None and until < sent.until:
            sent.until = until
            self._settled.append(sent)
        self._clean(now)

    def drop(self, request: str) -> None:
        """It was not computed there, or counts no more."""
        sent = self._sent.pop(request, None)
        if sent is None:
            return
        for count, end in sent.ends:
            self._lengths[count] -= 1
            if not self._lengths[count]:
                del self._lengths[count]
            _remove(self._ends, end, sent)
        for key in sent.keys:
            _remove(self._grid, key, sent)

    def forget(self, replica: str) -> None:
        """The replica was removed or restarted."""
        for request in [one.id for one in self._sent.values() if one.replica == replica]:
            self.drop(request)

    def match(self, prefix: Hashes, now: float, *, every: int = 1) -> dict[str, int]:
        """How many hashes of a prompt's beginning were sent to which replicas.

        Args:
            prefix: of the prompt that is to be placed.
            now: seconds.
            every: besides prompts that this one continues in full, and junctions, count multiples of so
                many hashes; none where it is 0.

        Returns:
            By replica, above 0; replicas without anything are left out.
        """
        if not self._sent or not len(prefix):
            return {}
        found = self._continued(prefix, now)
        if not every:
            return found
        counts, keys = _at_grid(prefix)
        reached: set[str] = set()
        for count, key in zip(reversed(counts), reversed(keys), strict=True):
            holders = self._grid.get(key)
            # Whoever has more has less too: only another number of holders can bring someone new.
            if holders is None or len(holders) == len(reached):
                continue
            for replica, sent in holders.items():
                if replica not in reached and sent.until >= now:
                    reached.add(replica)
                    whole = count - count % every
                    if whole > found.get(replica, 0):
                        found[replica] = whole
        return found

    def _continued(self, prefix: Hashes, now: float) -> dict[str, int]:
        found: dict[str, int] = {}
        counts = [count for count in self._lengths if count <= len(prefix)]
        keys = prefix[np.array(counts, dtype=np.int64) - 1].tolist()
        for count, key in zip(counts, keys, strict=True):
            for replica, sent in self._ends.get(key, {}).items():
                # An equal hash says that the count is equal too, but for one in 2**64.
                if sent.until >= now and count > found.get(replica, 0):
                    found[replica] = count
        return found

    def _clean(self, now: float) -> None:
        """Drop what counts no more, as far as it stands in front; `match` looks at the rest itself."""
        while self._settled and self._settled[0].until < now:
            sent = self._settled.popleft()
            if self._sent.get(sent.id) is sent:
                self.drop(sent.id)
        while self._sent and (first := next(iter(self._sent.values()))).until < now:
            self.drop(first.id)


def _remove(table: dict[int, dict[str, Sent]], key: int, sent: Sent) -> None:
    holders = table.get(key)
    # A newer prompt with this beginning may have taken the place.
    if holders is not None and holders.get(sent.replica) is sent:
        del holders[sent.replica]
        if not holders:
            del table[key]


def _at_grid(prefix: Hashes) -> tuple[list[int], list[int]]:
    """Counts of hashes, and the hash that ends each."""
    length = min(len(prefix), MOST_HASHES)
    places = _GRID[: np.searchsorted(_GRID, length, side="right")]
    return places.tolist(), prefix[places - 1].tolist()
