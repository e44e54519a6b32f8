"""Eviction by boundaries: what only a worthless boundary needs goes first, and goes whole.

A *mark* is a boundary that some request resumed at or left behind. Each chunk counts the marks that need
it: for a full group's chunk all marks at or behind it, for a windowed group's chunk those whose window it
lies in. When room is wanted, the mark of least worth is dropped: worth is the rate of uses that marks of
its history can expect (see `eviction_worth`), times the tokens that it saves, per byte that it alone needs.
The chunks that no mark needs any more are the next victims: its tail, then the prefix from its end. So

- a chunk is a victim only when no mark needs it: a tail never goes while a prefix is kept for its sake;
- a chunk that several prompts share stays as long as any of their marks does;
- a boundary that a longer one replaced loses its tail, which hardly anybody needs, and nothing else.

A dropped mark is remembered for a while, without its chunks, so that one that was dropped too early counts
in what is learned. Chunks that no use has named are *loose*: each is as a mark of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from kvstrata.chunks.key import ChunkKey
from kvstrata.tiers.eviction import (
    Boundary,
    EvictionPolicy,
    Placed,
    PrefixUse,
    oldest_first,
)
from kvstrata.tiers.eviction_ledger import ChunkLedger
from kvstrata.tiers.eviction_marks import Line, Mark, Memory, Queues
from kvstrata.tiers.eviction_worth import Standing, Worth

SLACK = 64
"""Marks, chunks and memories that are allowed beyond what the number of chunks held would allow."""

FALLBACKS_OVER = 64
"""Requests over which the share of those is measured whose boundary had been dropped."""


class BoundaryKeeping(EvictionPolicy):
    """See the module.

    Args:
        size_of: bytes that a chunk takes.
    """

    def __init__(self, size_of: Callable[[ChunkKey], int]) -> None:
        self._size_of = size_of
        self._ledger = ChunkLedger(size_of)
        self._marks: dict[ChunkKey, Mark] = {}
        self._queues = Queues()
        self._memories: dict[ChunkKey, Memory] = {}
        self._worth = Worth()
        self._tokens_per_byte = 1.0
        self._fallbacks = 0.0
        self._now = 0

    def offer(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.offer`."""
        self._ledger.offer((key,), self._now)

    def offer_all(self, keys: Iterable[ChunkKey]) -> None:
        """See `EvictionPolicy.offer_all`."""
        self._ledger.offer(keys, self._now)

    def withdraw(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.withdraw`."""
        self._ledger.withdraw((key,))

    def withdraw_all(self, keys: Iterable[ChunkKey]) -> None:
        """See `EvictionPolicy.withdraw_all`."""
        self._ledger.withdraw(keys)

    def gone(self, key: ChunkKey) -> None:
        """See `EvictionPolicy.gone`."""
        chunk = self._ledger.gone(key)
        for mark in chunk.owners:
            self._drop(mark)
        self._ledger.forget(chunk)

    def used(self, use: PrefixUse) -> None:
        """See `EvictionPolicy.used`."""
        if use.answered:
            self._answer(use)
            return
        self._now += 1
        recalled = self._recall_furthest(use)
        resumed, alone = None, False
        if use.resumed is not None:
            resumed, alone = self._resume(use, use.resumed, recalled)
        if resumed is not None or recalled:
            self._fallbacks += (bool(recalled) - self._fallbacks) / FALLBACKS_OVER
        base = resumed
        for boundary in use.kept[:-1]:
            base = self._keep(use, boundary, 1, 0, base, recalled)
        for boundary in use.kept[-1:]:
            generation = 0
            for memory in recalled.values():
                generation = memory.generation + 1 if memory.uses == 0 else 0
            if alone and not recalled and resumed is not None:
                generation = resumed.generation + 1
            continues = alone and base is resumed
            self._keep(use, boundary, 0, generation, base, recalled, continues=continues)
        self._bound(len(use.chain))

    def victims(self) -> Iterator[ChunkKey]:
        """See `EvictionPolicy.victims`."""
        while True:
            if self._ledger.useless:
                yield from oldest_first(self._ledger.useless)
                if self._ledger.useless:
                    return
            mark, worth = self._queues.least(self._worth, self._now, self._fallbacks)
            marks, loose = len(self._marks), self._ledger.loose
            went = False
            for key in oldest_first(loose):
                if worth < self._worth_of_loose(key):
                    break
                yield key
                if key in loose:
                    return
                went = True
                if self._ledger.useless or len(self._marks) != marks:
                    break
            if went:
                continue
            if mark is None:
                return
            self._drop(mark)

    def __len__(self) -> int:
        return self._ledger.free

    def footprint(self) -> int:
        """Chunks, marks and memories that are kept in mind, held or not."""
        return len(self._ledger.chunks) + len(self._marks) + len(self._memories)

    def marks(self) -> Iterator[set[ChunkKey]]:
        """For each boundary that is kept, every chunk that it needs. Walks everything."""
        for mark in self._marks.values():
            yield {chunk.key for chunk in (*mark.tail, *self._ledger.chain(mark.leaf))}

    # Uses.

    def _recall(self, key: ChunkKey) -> Memory | None:
        """Take the memory of a mark that was dropped; counts as used, since keeping it would have paid."""
        memory = self._memories.pop(key, None)
        if memory is not None:
            born = memory.used_at
            self._worth.ended(
                memory.standing, self._now - born, used=True, since=memory.since - born
            )
        return memory

    def _recall_furthest(self, use: PrefixUse) -> dict[ChunkKey, Memory]:
        """The dropped mark where the request would have resumed with room for everything, if there is one."""
        start = use.resumed.chain if use.resumed is not None else 0
        stop = use.kept[-1].chain if use.kept else start
        for placed in reversed(use.chain[start:stop]):
            if placed.key in self._marks:
                break
            memory = self._recall(placed.key)
            if memory is not None:
                return {placed.key: memory}
        return {}

    def _answer(self, use: PrefixUse) -> None:
        """The prompt's end moves on to the answer's, unless somebody came back to it meanwhile."""
        if use.resumed is None or not use.kept:
            return
        mark, end = self._marks.get(_name(use, use.resumed)), use.kept[-1]
        if mark is None or mark.uses or mark.after is not None or _name(use, end) in self._marks:
            return
        self._make(use, end, 0, mark.generation, mark.base, mark)
        self._bound(len(use.chain))

    def _resume(
        self, use: PrefixUse, boundary: Boundary, recalled: Mapping[ChunkKey, Memory]
    ) -> tuple[Mark | None, bool]:
        """The mark where the request resumed, and whether only its predecessor had been there."""
        key = _name(use, boundary)
        mark = self._marks.get(key)
        if mark is not None:
            self._use(mark, boundary, learn=not recalled)
            return mark, mark.uses == 1
        if recalled and not boundary.tail:
            return None, False  # where an evicted chain happens to break off is no place of its own
        memory = self._recall(key)
        if memory is None:
            return self._make(use, boundary, 1, 0), False
        mark = self._make(use, boundary, memory.uses + 1, memory.generation)
        return mark, mark.uses == 1

    def _keep(
        self,
        use: PrefixUse,
        boundary: Boundary,
        uses: int,
        generation: int,
        base: Mark | None,
        recalled: Mapping[ChunkKey, Memory],
        *,
        continues: bool = False,
    ) -> Mark:
        key = _name(use, boundary)
        mark = self._marks.get(key)
        if mark is not None:
            if mark.used_at < self._now:  # else it is where the request resumed
                self._use(mark, boundary)
            return mark
        memory = recalled.get(key) or self._recall(key)
        if memory is not None:
            uses, generation = memory.uses + 1, memory.generation
        before = base if continues else None
        return self._make(use, boundary, uses, generation, base, before)

    def _use(self, mark: Mark, boundary: Boundary, *, learn: bool = True) -> None:
        if learn:
            self._worth.ended(mark.standing, self._now - mark.used_at, used=True)
        if mark.after is not None:
            self._leave_line(mark)
            for chunk in self._ledger.chain(mark.leaf):
                self._ledger.need(chunk)
        mark.uses += 1
        mark.used_at = self._now
        self._extend(mark, boundary.tail)
        self._queues.put(mark)

    def _make(
        self,
        use: PrefixUse,
        boundary: Boundary,
        uses: int,
        generation: int,
        base: Mark | None = None,
        before: Mark | None = None,
    ) -> Mark:
        mark = Mark(_name(use, boundary), boundary.tokens, self._now, uses, generation)
        mark.leaf = before.leaf if before is not None else None
        start = 0
        if before is not None:  # the mark before hands its chain over
            start = use.resumed.chain if use.resumed is not None else 0
            mark.base = before.base
        else:
            mark.base = base
        mark.leaf = self._ledger.need_chain(mark.leaf, use.chain[start : boundary.chain])
        if before is not None:
            self._continue(before, mark)
        self._marks[mark.key] = mark
        self._extend(mark, boundary.tail)
        self._queues.put(mark)
        if mark.leaf is not None:
            self._tokens_per_byte = mark.tokens / mark.leaf.total
        return mark

    def _continue(self, station: Mark, mark: Mark) -> None:
        """`mark` has just taken the station's chain over."""
        if station.tail:
            station.after, mark.before = mark, station
            mark.line = station.line
            mark.line.last = mark
            self._queues.put(station)
            return
        mark.before = station.before
        if station.before is not None:
            station.before.after = mark
            mark.line = station.line
            mark.line.last = mark
        station.dropped, station.ticket = True, -1
        del self._marks[station.key]

    def _extend(self, mark: Mark, tail: Iterable[Placed]) -> None:
        """Let the mark need these chunks too."""
        for placed in tail:
            chunk = self._ledger.named(placed.key)
            if mark not in chunk.owners:
                self._ledger.need(chunk)
                chunk.owners += (mark,)
                mark.tail.append(chunk)
                mark.tail_bytes += self._size_of(placed.key)

    # Giving up.

    def _worth_of_loose(self, key: ChunkKey) -> float:
        rate = self._worth.of(Standing.FRESH, self._now - self._ledger.loose[key])
        return rate * self._tokens_per_byte

    def _drop(self, mark: Mark) -> None:
        """Give a mark up; what only it needed is useless from now on, its chain's end first."""
        del self._marks[mark.key]
        mark.dropped, mark.ticket = True, -1
        self._worth.ended(mark.standing, self._now - mark.used_at, used=False)
        self._memories[mark.key] = Memory(
            mark.standing, mark.used_at, self._now, mark.uses, mark.generation
        )
        for chunk in mark.tail:
            chunk.owners = tuple(owner for owner in chunk.owners if owner is not mark)
            self._ledger.release(chunk, self._now)
        if mark.after is not None:
            self._leave_line(mark)
        else:
            heir = mark.before
            stop = heir.leaf if heir is not None else None
            if heir is not None:
                self._inherit(heir, mark)
            for chunk in self._ledger.chain(mark.leaf):
                if chunk is stop:
                    break
                self._ledger.release(chunk, self._now)
        while len(self._memories) > 2 * len(self._marks) + SLACK:
            self._forget_one()
        self._queues.trim(len(self._marks))

    def _leave_line(self, station: Mark) -> None:
        """Take a station out of its line; the mark after it now saves what both saved."""
        after, before = station.after, station.before
        assert after is not None
        after.before = before
        if before is not None:
            before.after = after
        station.after = station.before = None
        station.line = Line(station)
        self._queues.put(after)

    def _inherit(self, heir: Mark, mark: Mark) -> None:
        """The last mark of a line goes; the station before it takes its place, and its chain."""
        self._worth.ended(heir.standing, self._now - heir.used_at, used=False)
        heir.after = mark.before = None
        heir.line.last = heir
        heir.uses, heir.generation, heir.used_at = mark.uses, mark.generation, mark.used_at
        self._queues.put(heir)

    def _forget_one(self) -> None:
        memory = self._memories.pop(next(iter(self._memories)))
        born = memory.used_at
        self._worth.ended(memory.standing, self._now - born, used=False, since=memory.since - born)

    def _bound(self, chunks: int) -> None:
        """Marks whose chunks never came, or went, must not pile up."""
        while len(self._marks) > self._ledger.held + SLACK or (
            len(self._ledger.chunks) > 2 * self._ledger.held + chunks + SLACK
        ):
            mark, _ = self._queues.least(self._worth, self._now, self._fallbacks)
            if mark is None:
                return
            self._drop(mark)


def _name(use: PrefixUse, boundary: Boundary) -> ChunkKey:
    """What tells boundaries apart: the last chunk of the chain, or of the tail where there is no chain."""
    if boundary.chain:
        return use.chain[boundary.chain - 1].key
    return max(boundary.tail).key
