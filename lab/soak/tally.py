"""What a soak has found so far: answers, faults, counters, levels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.soak.watch import Held

EXAMPLES = 20
OVERSHOOT = 0.1
"""Share of its bound by which a root may exceed it, while its engines write as fast as they can."""
TIERS = ("device", "memory", "filesystem", "computed")


@dataclass(frozen=True, slots=True)
class Leaks:
    """What is left at the end.

    Attributes:
        processes: engines that did not end.
        shared_memory: files in the engines' `shm_dir`.
        temporary: files that were being written when the last engine had stopped.
        temporary_left: those that the product's own clearing leaves of them.
    """

    processes: int
    shared_memory: int
    temporary: int
    temporary_left: int


@dataclass(slots=True)
class Tally:
    """Everything that is reported.

    Attributes:
        rounds: that were done.
        requests: whose answers were compared.
        wrong: of these, with other tokens than the oracle's.
        wrong_examples: the first of them.
        interrupted: requests that a planned SIGKILL ended; they are asked again.
        hangs: times that an engine did not answer, start or end in time; what it said.
        crashes: times that an engine died unplanned, or did not start; what it said.
        tracebacks: what an engine logged of an error that nobody foresaw.
        planned: faults of the plan, by kind.
        done: faults that took place, by kind.
        not_done: why others did not, by kind and error.
        met: calls that failed, were late, short or changed, by kind of rule.
        calm: seconds of each batch that was served while no window was on and nothing struck.
        stormy: seconds of the other batches.
        counters: of all engines together, from the last time that each told them.
        checks: what each engine held whenever leaks were looked for: `round`, `engine`, `descriptors`,
            `threads`, `resident` and `level`.
        plain: resident bytes of the engine without offload at the same times: what is vLLM's own.
        leaks: descriptors or threads that were too many at a check.
        most: the most that any engine held, by name.
        taken_back: whether storage was used again after the last fault.
        left: at the end.
        bound: bytes that the root may hold, 0 for no bound.
        stored: the most bytes of chunks that it was seen to hold.
    """

    rounds: int = 0
    requests: int = 0
    wrong: int = 0
    wrong_examples: list[dict[str, Any]] = field(default_factory=list)
    interrupted: int = 0
    hangs: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    planned: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    not_done: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    calm: list[float] = field(default_factory=list)
    stormy: list[float] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    checks: list[dict[str, Any]] = field(default_factory=list)
    plain: list[int] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    most: dict[str, int] = field(default_factory=dict)
    taken_back: bool = False
    left: Leaks | None = None
    bound: int = 0
    stored: int = 0

    def judge(
        self,
        round_number: int,
        engine: int,
        expected: Sequence[Sequence[int]],
        answers: Sequence[Mapping[str, Any]],
    ) -> None:
        """Compare the answers to a batch with the oracle's.

        Args:
            round_number: of the batch.
            engine: that answered.
            expected: token ids, one sequence a request.
            answers: what the engine gave, see `Child.ask`; one a request.
        """
        for place, (right, answer) in enumerate(zip(expected, answers, strict=True)):
            self.requests += 1
            if list(right) == answer["tokens"]:
                continue
            self.wrong += 1
            if len(self.wrong_examples) < EXAMPLES:
                found = {"round": round_number, "engine": engine, "place": place}
                self.wrong_examples.append({**found, "expected": list(right), **answer})

    def add_counters(self, told: Mapping[str, float]) -> None:
        """Add what an engine told last before it ended; gauges say nothing then, and are left out."""
        gauges = (
            "info",
            "endpoints",
            "finding",
            "chunks",
            "arena_bytes",
            "queue_depth",
            "set_aside",
        )
        for name, value in told.items():
            if not name.startswith((*gauges, "stuck_threads")) and value:
                self.counters[name] += round(value)

    def saw(self, held: Held) -> None:
        """Keep the most that was held."""
        for name in ("descriptors", "threads", "resident"):
            self.most[name] = max(self.most.get(name, 0), getattr(held, name))

    def saw_stored(self, nbytes: int) -> None:
        """Keep the most that the root held."""
        self.stored = max(self.stored, nbytes)

    def faults(self) -> list[str]:
        """Why the soak failed; empty if it did not."""
        found = [f"{self.wrong} wrong answers"] if self.wrong else []
        found += [f"hang: {text}" for text in self.hangs]
        found += [f"crash: {text}" for text in self.crashes]
        found += [f"leak: {text}" for text in self.leaks]
        found += [f"unforeseen: {text}" for text in self.tracebacks]
        if self.left is None:
            return [*found, "it did not come to its end"]
        if not self.taken_back:
            found.append("storage was not used again after the last fault")
        if self.left.processes or self.left.shared_memory or self.left.temporary_left:
            found.append(f"left behind: {self.left}")
        if self.bound and self.stored > (1 + OVERSHOOT) * self.bound:
            found.append(f"the root held {self.stored} bytes, its bound is {self.bound}")
        if self.bound and not self.counters["evicted_bytes{tier=filesystem}"]:
            found.append("nothing was evicted: the bound was not tried")
        missing = [tier for tier in TIERS if not self.counters[f"tokens{{tier={tier}}}"]]
        if missing:
            found.append(f"no tokens came from: {', '.join(missing)}")
        return found
