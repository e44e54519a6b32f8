"""Tiers that misbehave: each wraps a well-behaved one. Faults wrap a tier, they never enter one."""

import enum
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence

from kvstrata.chunks.key import ChunkKey
from kvstrata.errors import CONTENT_REASONS, BadReason
from kvstrata.tiers.passing import PassingTier
from kvstrata.tiers.tier import Bad, Failed, Loaded, ReadOutcome, Tier, Transfer, WriteOutcome


class Operation(enum.StrEnum):
    """What is asked of a tier."""

    PROBE = "probe"
    READ = "read"
    WRITE = "write"
    REMOVE = "remove"


class _BeforeTier(PassingTier):
    """Does something before each operation but `scan`, once for each call."""

    def _before(self, operation: Operation, keys: Sequence[ChunkKey]) -> None:
        raise NotImplementedError

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`."""
        self._before(Operation.PROBE, keys)
        return self.inner.probe(keys)

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        self._before(Operation.READ, [key])
        return self.inner.read(key, into, first_block)

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        self._before(Operation.WRITE, [key])
        return self.inner.write(key, payload, first_block)

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """See `Tier.read_many`."""
        self._before(Operation.READ, [key for key, _, _ in wanted])
        return self.inner.read_many(wanted)

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`."""
        self._before(Operation.WRITE, [key for key, _, _ in given])
        return self.inner.write_many(given)

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`."""
        self._before(Operation.REMOVE, [key])
        return self.inner.remove(key)


class SlowTier(_BeforeTier):
    """Lets every operation wait before it begins.

    Args:
        inner: the tier that does the work.
        delay: seconds, or a function of the operation and its keys that returns seconds.
        sleep: waits for so many seconds; passed in so that a simulation can let virtual time go by.
    """

    def __init__(
        self,
        inner: Tier,
        delay: float | Callable[[Operation, Sequence[ChunkKey]], float],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._delay = delay
        self._sleep = sleep

    def _before(self, operation: Operation, keys: Sequence[ChunkKey]) -> None:
        delay = self._delay(operation, keys) if callable(self._delay) else self._delay
        if delay > 0:
            self._sleep(delay)


class HangingTier(_BeforeTier):
    """Hangs until it is released, as a dead network mount does.

    Args:
        inner: the tier that does the work once it is released.
        gate: operations hang while it is not set. Set it at the end of a test, or its threads never end.
        operations: those that hang.

    Attributes:
        entered: released once by each operation that begins to hang, so that a test can wait for it.
    """

    def __init__(
        self,
        inner: Tier,
        gate: threading.Event,
        operations: Collection[Operation] = tuple(Operation),
    ) -> None:
        super().__init__(inner)
        self.entered = threading.Semaphore(0)
        self._gate = gate
        self._operations = frozenset(operations)

    def _before(self, operation: Operation, keys: Sequence[ChunkKey]) -> None:
        if operation in self._operations and not self._gate.is_set():
            self.entered.release()
            self._gate.wait()


Plan = Callable[[Operation, ChunkKey], bool]
"""Decides whether an operation on a key fails."""


def failing_at_random(seed: int, share: float) -> Plan:
    """A plan under which that share of all operations fails, alike for equal seeds and call orders.

    Args:
        seed: of the choice.
        share: 0 (never) to 1 (always).
    """
    generator = random.Random(seed)
    lock = threading.Lock()

    def plan(_operation: Operation, _key: ChunkKey) -> bool:
        with lock:
            return generator.random() < share

    return plan


class FailingTier(PassingTier):
    """Fails as planned: reads with `Bad`, writes with `Failed`; keys of a failing probe are not seen.

    A failing operation does not reach the inner tier, and a failing read leaves the buffer alone.

    Args:
        inner: the tier that does the work otherwise.
        plan: whether an operation on a key fails.
        read_reason: how reads fail.
        write_reason: how writes fail.
    """

    def __init__(
        self,
        inner: Tier,
        plan: Plan,
        read_reason: BadReason = BadReason.IO,
        write_reason: str = "ENOSPC",
    ) -> None:
        super().__init__(inner)
        self._plan = plan
        self._read_reason = read_reason
        self._write_reason = write_reason

    def probe(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """See `Tier.probe`."""
        failing = [self._plan(Operation.PROBE, key) for key in keys]
        seen = self.inner.probe(keys)
        return [held and not fails for held, fails in zip(seen, failing, strict=True)]

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        return self.read_many([(key, into, first_block)])[0]

    def write(self, key: ChunkKey, payload: memoryview, first_block: int = 0) -> WriteOutcome:
        """See `Tier.write`."""
        return self.write_many([(key, payload, first_block)])[0]

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """See `Tier.read_many`: each chunk fails or not by itself."""
        failing = [self._plan(Operation.READ, key) for key, _, _ in wanted]
        passed = [one for one, fails in zip(wanted, failing, strict=True) if not fails]
        outcomes = iter(self.inner.read_many(passed))
        bad = Bad(self._read_reason, "this read was planned to fail")
        return [bad if fails else next(outcomes) for fails in failing]

    def write_many(self, given: Sequence[Transfer]) -> list[WriteOutcome]:
        """See `Tier.write_many`: each chunk fails or not by itself."""
        failing = [self._plan(Operation.WRITE, key) for key, _, _ in given]
        passed = [one for one, fails in zip(given, failing, strict=True) if not fails]
        outcomes = iter(self.inner.write_many(passed))
        failed = Failed(self._write_reason, "this write was planned to fail")
        return [failed if fails else next(outcomes) for fails in failing]

    def remove(self, key: ChunkKey) -> bool:
        """See `Tier.remove`."""
        return not self._plan(Operation.REMOVE, key) and self.inner.remove(key)


class CorruptingTier(PassingTier):
    """Finds damage in chosen chunks, as a tier over a bad medium does.

    A chosen chunk that is there is `Bad`, and the buffer then holds its bytes with the last one wrong, so
    that a caller who uses them anyway is found out. If the reason condemns the chunk itself, it is gone
    afterwards.

    Args:
        inner: the tier that does the work.
        chosen: whether a key's chunk is damaged.
        reason: what is found.
    """

    def __init__(
        self,
        inner: Tier,
        chosen: Callable[[ChunkKey], bool],
        reason: BadReason = BadReason.CHECKSUM,
    ) -> None:
        super().__init__(inner)
        self._chosen = chosen
        self._reason = reason

    def read(self, key: ChunkKey, into: memoryview, first_block: int = 0) -> ReadOutcome:
        """See `Tier.read`."""
        return self.read_many([(key, into, first_block)])[0]

    def read_many(self, wanted: Sequence[Transfer]) -> list[ReadOutcome]:
        """See `Tier.read_many`."""
        outcomes = self.inner.read_many(wanted)
        return [
            self._found(key, into, outcome) if self._chosen(key) else outcome
            for (key, into, _), outcome in zip(wanted, outcomes, strict=True)
        ]

    def _found(self, key: ChunkKey, into: memoryview, outcome: ReadOutcome) -> ReadOutcome:
        if not isinstance(outcome, Loaded):
            return outcome
        into[-1] ^= 0xFF
        if self._reason in CONTENT_REASONS:
            self.inner.remove(key)
        return Bad(self._reason, "this chunk was chosen to be damaged")
