"""What the router has sent to each replica and not yet seen answered: how long the next one waits.

An engine computes prompts one after the other, by and large: each step gives its tokens to the oldest first.
So the wait is what is left of the prompt at the head, and all of those behind it. A first token tells that
its prompt is done. A head that takes longer than foreseen is expected to take longer still, the more the
longer it lasts: so a replica that stands still is avoided more and more, without anyone calling it dead.
"""

from collections.abc import Iterator, Sequence

import msgspec

from kvstrata.routing.cost import Work

OVERDUE = 3.0
"""Times the foreseen seconds after which a first token is overdue, and again at each multiple of that."""
OVERDUE_SECONDS = 0.5
LOST = 600.0
"""Seconds after which an outcome is no longer expected."""


class Pending(msgspec.Struct, gc=False):
    """A request under way.

    Attributes:
        id: of the request.
        replica: where it is.
        at: when it was sent, seconds.
        work: what it was thought to make the replica do.
        loading: seconds of its load, until its bytes are there.
        reading: of those, seconds in which storage is read.
        tokens: of the prompt.
        device: of those, on the device.
        foreseen: seconds to the first token.
        sure: its tokens were counted.
        first_token: it was seen.
        ttft: seconds to it.
        reported: seconds after which it was last called overdue.
        probe: the tier that it tries, or "".
    """

    id: str
    replica: str
    at: float
    work: Work
    loading: float
    tokens: int
    device: int
    reading: float = 0.0
    foreseen: float = 0.0
    sure: bool = True
    first_token: bool = False
    ttft: float | None = None
    reported: float = 0.0
    probe: str = ""

    @property
    def pairs(self) -> float:
        """New tokens times what they look back at."""
        return self.work.left * (self.work.before + self.work.left / 2)


class _Queue:
    """One replica's prompts that are not computed yet, oldest first, and the sums over them."""

    __slots__ = ("head_since", "pairs", "prompts", "reads_until", "tokens")

    def __init__(self) -> None:
        self.prompts: dict[str, Pending] = {}
        self.tokens = 0
        self.pairs = 0.0
        self.head_since = 0.0
        self.reads_until = 0.0

    def head(self, now: float, rates: Sequence[float]) -> tuple[float, float]:
        """Seconds that the oldest prompt takes by itself, and for how long it was computed already."""
        head = next(iter(self.prompts.values()))
        first = rates[0] + rates[1] * head.work.left + rates[2] * head.pairs
        # A load computes nothing, and those behind it go ahead meanwhile.
        return first, max(now - max(self.head_since, head.at + head.loading), 0.0)


class Backlog:
    """Requests under way, by replica."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}
        self._queues: dict[str, _Queue] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: Pending) -> None:
        """It was sent. One with the same id is replaced."""
        self.remove(pending.id, pending.at)
        self._pending[pending.id] = pending
        queue = self._queues.setdefault(pending.replica, _Queue())
        if not queue.prompts:
            queue.head_since = pending.at
            queue.tokens, queue.pairs = 0, 0.0
        if pending.reading:
            # As if it were read at once: storage is free while the request waits for others, and a read that
            # begins late must not make it look busy until then.
            queue.reads_until = max(pending.at, queue.reads_until) + pending.reading
        queue.prompts[pending.id] = pending
        queue.tokens += pending.work.left
        queue.pairs += pending.pairs
        self._drop_lost(pending.at)

    def get(self, request: str) -> Pending | None:
        """What is known of a request under way."""
        return self._pending.get(request)

    def computed(self, request: str, now: float) -> None:
        """Its first token was seen, or its prompt will not be computed."""
        pending = self._pending.get(request)
        if pending is None:
            return
        pending.first_token = True
        queue = self._queues.get(pending.replica)
        if queue is None or request not in queue.prompts:
            return
        was_head = next(iter(queue.prompts)) == request
        del queue.prompts[request]
        queue.tokens -= pending.work.left
        queue.pairs -= pending.pairs
        if was_head:
            queue.head_since = now

    def remove(self, request: str, now: float) -> Pending | None:
        """Nothing more will come of it."""
        self.computed(request, now)
        return self._pending.pop(request, None)

    def forget(self, replica: str) -> None:
        """The replica was removed or restarted."""
        for request in [one.id for one in self._pending.values() if one.replica == replica]:
            del self._pending[request]
        self._queues.pop(replica, None)

    def unanswered(self, replica: str) -> int:
        """Requests whose first token was not seen."""
        queue = self._queues.get(replica)
        return len(queue.prompts) if queue else 0

    def wait(self, replica: str, now: float, rates: Sequence[float]) -> float:
        """Seconds until the prompts that are there are computed.

        Args:
            replica: its name.
            now: seconds.
            rates: as they are believed now, not when the prompts were sent: see `cost.LEARNED`.
        """
        return self.look(replica, now, rates)[0]

    def look(self, replica: str, now: float, rates: Sequence[float]) -> tuple[float, int, float]:
        """See `wait`; with it `unanswered`, and when the reads that were sent there end."""
        queue = self._queues.get(replica)
        if queue is None:
            return 0.0, 0, 0.0
        if not queue.prompts:
            return 0.0, 0, queue.reads_until
        first, progress = queue.head(now, rates)
        whole = rates[0] * len(queue.prompts) + rates[1] * queue.tokens + rates[2] * queue.pairs
        left = first - progress
        if left < 0:
            left = -left / 2
        behind = whole - first
        wait = left + behind if behind > 0 else left
        return wait, len(queue.prompts), queue.reads_until

    def under_way(self, replica: str, now: float, rates: Sequence[float]) -> float:
        """Seconds of the prompt that is being computed there, or that it took so far if that is more.

        What `wait` says of it is what is left, which is off by a share of this.
        """
        queue = self._queues.get(replica)
        if queue is None or not queue.prompts:
            return 0.0
        first, progress = queue.head(now, rates)
        return max(first, progress) if progress else 0.0

    def read_wait(self, replica: str, begin: float) -> float:
        """Seconds after `begin` for which the reads that were sent there keep its storage busy."""
        queue = self._queues.get(replica)
        return max(queue.reads_until - begin, 0.0) if queue else 0.0

    def overdue(self, now: float) -> list[Pending]:
        """Those whose first token is overdue by more than when they were last returned.

        Those behind one that is overdue are late because of it, and are not returned.
        """
        late = []
        for queue in self._queues.values():
            for pending in queue.prompts.values():
                limit = OVERDUE * max(pending.foreseen, pending.reported) + OVERDUE_SECONDS
                if now - pending.at > limit:
                    pending.reported = now - pending.at
                    late.append(pending)
                if pending.reported:
                    break
        return late

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._pending.values())

    def _drop_lost(self, now: float) -> None:
        while self._pending:
            oldest = next(iter(self._pending.values()))
            if now - oldest.at < LOST:
                return
            self.remove(oldest.id, now)
