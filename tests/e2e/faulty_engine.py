"""A real engine whose storage can be made to fail while it serves, and a plain one that knows the answers."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.faulty_io.control import FaultyIO
from lab.models import prompt_ids
from tests.e2e.engine import Engine, Nursery

TOKENS = 400
BLOCK = 128
WHOLE = TOKENS // BLOCK * BLOCK
"""Tokens of a prompt that can be loaded: whole blocks."""
KNOWN = 5
"""Prompts that lie in storage before any fault."""
DEADLINE = 1
"""Seconds that a request waits for storage (`read_deadline`)."""
PATIENCE = 60.0
"""Seconds after which a request counts as hung; deadlines, a slow machine and recomputing are far below."""
OPTIONS = {"memory": "96MiB", "read_deadline": DEADLINE, "fsync": True, "io_threads": 2}
"""Flushed writes, so that flushing can fail."""

Metrics = dict[str, float]


class Plain:
    """Answers of an engine without any of our options; each prompt is asked once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._answers: dict[int, list[int]] = {}

    def tokens(self, seed: int) -> list[int]:
        """The right answer to the prompt of that seed."""
        with self._lock:
            if seed not in self._answers:
                self._answers[seed] = self._engine.ask(prompt_ids(TOKENS, seed=seed))[0]["tokens"]
            return self._answers[seed]


class FaultyEngine:
    """One engine on a directory that fails when it is told to.

    Args:
        start: starts an engine with the environment of `faults`.
        faults: rules of the directory.
        plain: knows the answers.
        seeds: gives numbers of prompts that nobody has asked yet.
    """

    def __init__(
        self, start: Callable[[], Engine], faults: FaultyIO, plain: Plain, seeds: Iterator[int]
    ) -> None:
        self.engine = start()
        self.faults = faults
        self.root = faults.directory / "kv"
        self._start = start
        self._plain = plain
        self._seeds = seeds

    @contextmanager
    def another(self) -> Iterator["FaultyEngine"]:
        """A second engine on the same directory, with the same rules."""
        other = FaultyEngine(self._start, self.faults, self._plain, self._seeds)
        with other.engine:
            yield other

    def ask(self, seed: int) -> int:
        """Ask for a prompt that is neither on the device nor in memory; the answer must be right and in time.

        Returns:
            Tokens that came from storage.
        """
        self.engine.do("reset_device")
        self.engine.do("forget_memory")
        answer = self.engine.ask(prompt_ids(TOKENS, seed=seed))[0]
        assert answer["tokens"] == self._plain.tokens(seed), f"wrong answer to prompt {seed}"
        assert answer["seconds"] < PATIENCE, f"prompt {seed} hung"
        return int(answer["cached"])

    def known(self) -> list[int]:
        """Ask for all prompts that lie in storage; tokens of each that came from there."""
        return [self.ask(seed) for seed in range(KNOWN)]

    def fresh(self) -> int:
        """Ask for a prompt that is new, so that its chunks are to be stored; its seed."""
        seed = self.unused()
        assert self.ask(seed) == 0
        return seed

    def unused(self) -> int:
        """Seed of a prompt that nobody has asked."""
        return next(self._seeds)

    def settle(self) -> None:
        """Wait until nothing is being stored any more."""
        assert self.engine.do("idle")

    def metrics(self) -> Metrics:
        """The engine's metrics."""
        return self.engine.do("metrics")

    def lines(self, text: str) -> int:
        """Lines of the engine's log that hold a text."""
        return sum(
            text in line for line in self.engine.log.read_text(errors="replace").splitlines()
        )

    def recover(self) -> None:
        """With no fault any more: soon everything is stored and comes from storage again."""
        self.until(lambda: self.known() == [WHOLE] * KNOWN, "the known prompts came back")
        self.until(self._stores, "a new prompt was stored")
        self.settle()
        found = self.metrics()
        for operation in ("read", "write"):
            assert found[f"set_aside{{operation={operation},tier=filesystem}}"] == 0

    def until(self, done: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Wait for something; what storage is set aside for ends with a test now and then."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.05)

    def descriptors(self) -> int:
        """Open descriptors of the engine below the directory."""
        found = 0
        for fd in Path(f"/proc/{self.engine.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += str(fd.readlink()).startswith(str(self.faults.directory))
        return found

    def temporary(self) -> list[Path]:
        """Temporary files in the directory."""
        return list(self.root.rglob(".tmp-*"))

    def _stores(self) -> bool:
        seed = self.fresh()
        self.settle()
        return self.ask(seed) == WHOLE


def grown(before: Metrics, after: Metrics) -> Metrics:
    """What counters and gauges rose by, without those that did not."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value > before.get(name, 0)
    }


@contextmanager
def nursery_of(faults: FaultyIO, place: Path) -> Iterator[Nursery]:
    """Forks engines that obey `faults`."""
    kept = {name: os.environ.get(name) for name in faults.environment()}
    os.environ.update(faults.environment())
    try:
        nursery = Nursery(place)
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield nursery
    finally:
        nursery.close()


@contextmanager
def faulty_engine(place: Path) -> Iterator[FaultyEngine]:
    """An engine with a few prompts in storage, and one beside it that answers without any of this.

    Args:
        place: an empty directory.

    Raises:
        FaultyIOError: there is no C compiler.
    """
    directory = place / "storage"
    directory.mkdir()
    options = {**OPTIONS, "path": str(directory / "kv")}
    numbers = itertools.count()
    with FaultyIO(directory) as faults, nursery_of(faults, place) as nursery:

        def start() -> Engine:
            log = place / f"engine{next(numbers)}.log"
            return Engine("llama", log, options, nursery=nursery)

        with Engine("llama", place / "plain.log", {}, nursery=nursery) as plain:
            made = FaultyEngine(start, faults, Plain(plain), itertools.count(KNOWN))
            with made.engine:
                assert made.known() == [0] * KNOWN
                made.settle()
                assert made.known() == [WHOLE] * KNOWN
                yield made
                faults.clear()
                faults.jump(0)
