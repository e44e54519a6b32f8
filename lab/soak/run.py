"""A soak: the plan done with real engines."""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.soak import files, watch
from lab.soak.calls import FaultyCalls
from lab.soak.engines import Engine, EngineError, EngineHangError, Nursery, obeys_permissions
from lab.soak.faults import KILL, RESET_DEVICE, RESTART, Faults, kinds
from lab.soak.oracle import Oracle
from lab.soak.place import Place
from lab.soak.plan import ENGINES, Prompt, Round, Segment, Strike, Window, rounds
from lab.soak.tally import Leaks, Tally

MODEL = "gemma3-1to1"
"""A hybrid: a windowed group beside a full one. In float32, so that its answers are repeatable."""
SETTINGS = {
    "block_size": 32,
    "max_model_len": 1536,
    "max_num_seqs": 4,
    "kv_cache_memory_bytes": 14 << 20,
}
MEMORY = "12MiB"
READ_DEADLINE = 1.0
"""Seconds. Short, so that hung reads do not take up the soak's time."""
HANG = 90.0
"""Seconds in which a batch must be answered, whatever is wrong."""
SETTLE = 60.0
"""Seconds within which what was left of a fault must be gone."""
TAKEN_BACK = 150.0
"""Seconds after the last fault within which storage must be used again; twice its longest pause."""
NEVER_SEEN = 1_000_000
"""Seeds of prompts that are in no plan."""

Say = Callable[[str], None]


class Soak:
    """Engines on one directory, an oracle and the faults.

    Attributes:
        tally: what was found so far.

    Args:
        place: of the engines' files.
        logs: directory for what they print.
        say: is told of progress.
        control: see `kinds`.
        calm: see `kinds`.
        bound: bytes that the directory may hold; 0 for no bound.
        engines: on that directory, at least two.
    """

    def __init__(
        self,
        place: Place,
        logs: Path,
        say: Say,
        *,
        control: bool = False,
        calm: bool = False,
        bound: int = 0,
        engines: int = ENGINES,
    ) -> None:
        self.tally = Tally(bound=bound)
        self._place = place
        self._say = say
        self.kinds = kinds(place, control=control, calm=calm)
        self._logs = logs
        self._calls = [FaultyCalls(place.root) for _ in range(engines)]
        self._faults = Faults(place, self._calls, self.tally)
        self._engines: list[Engine] = []
        self._told: list[dict[str, float]] = [{} for _ in range(engines)]
        self._level: list[watch.Held | None] = [None] * engines
        self._fresh = NEVER_SEEN

    def run(self, seed: int, goes_on: Callable[[int], bool]) -> None:
        """Do the plan of a seed.

        Args:
            seed: of the plan.
            goes_on: asked with the number of rounds that are done.

        Raises:
            EngineError: the oracle failed, or an engine does not start any more.
        """
        with contextlib.ExitStack() as stack:
            for layer in self._calls:
                stack.callback(layer.close)
            stack.callback(self._faults.end_all)
            self._start_all(stack)
            if self.tally.bound:
                stack.enter_context(watch.watching(self._place.root, self.tally.saw_stored))
            for one in rounds(seed, self.kinds, len(self._calls)):
                if not goes_on(one.number):
                    break
                self._round(one)
                self.tally.rounds += 1
            self._finish()

    # Engines.

    def _start_all(self, stack: contextlib.ExitStack) -> None:
        bound = obeys_permissions()
        self._nurseries = [
            Nursery(self._logs / f"engine{n}", calls.environment(), bound=bound)
            for n, calls in enumerate(self._calls)
        ]
        for nursery in self._nurseries:
            stack.callback(nursery.close)
        # It is given no directory, so no fault can reach it.
        oracle = Engine(self._nurseries[0], {"model": MODEL, "extra": None, "engine": SETTINGS})
        stack.callback(oracle.kill)
        self.oracle = Oracle(oracle)
        self._engines = [self._new_engine(n) for n in range(len(self._calls))]
        stack.callback(self._kill_all)

    def _kill_all(self) -> None:
        for engine in self._engines:
            engine.kill()

    def _new_engine(self, number: int) -> Engine:
        extra = {
            "path": str(self._place.root),
            "memory": MEMORY,
            "shm_dir": str(self._place.shm),
            "read_deadline": READ_DEADLINE,
            "fsync": number == 1,  # of each, one engine
            "capacity": self.tally.bound or None,
        }
        settings = {"model": MODEL, "extra": extra, "engine": SETTINGS}
        return Engine(self._nurseries[number], settings)

    def _replace(self, number: int) -> None:
        """Start an engine in the place of one that is gone."""
        self.tally.add_counters(self._told[number])
        self._told[number] = {}
        self._engines[number].kill()
        self._engines[number] = self._new_engine(number)

    # Rounds.

    def _round(self, one: Round) -> None:
        for window in one.ends:
            self._faults.end(window)
        self.oracle.learn(itertools.chain.from_iterable(one.prompts))
        calm = not self._faults.any and not one.begins and not one.strikes
        for strike in one.strikes:
            if strike.kind == RESET_DEVICE:
                self.tally.planned[RESET_DEVICE] += 1
                reset = self._command(strike.engine, "reset_device")
                self.tally.done[RESET_DEVICE] += reset is True  # not while blocks are being stored
        begun = time.monotonic()
        waiting = [n for n in range(len(self._engines)) if self._ask(n, one.prompts[n])]
        killed = self._strike(begun, one)
        for number in waiting:
            if number in killed:
                self.tally.interrupted += len(one.prompts[number])
                continue
            seconds = self._collect(one, number)
            if seconds is not None:
                (self.tally.calm if calm else self.tally.stormy).append(seconds)
        self._after(one, killed)
        for number, engine in enumerate(self._engines):
            held = watch.held(engine.pid)
            if held is not None:
                self.tally.saw(held)
            self._told[number] = self._command(number, "metrics") or self._told[number]
        if one.check:
            self._check(one.number)

    def _ask(self, number: int, prompts: Sequence[Prompt]) -> bool:
        try:
            self._engines[number].ask(
                [self.oracle.tokens(prompt) for prompt in prompts], [p.max_tokens for p in prompts]
            )
        except EngineError as error:
            self._failed(number, error)
            return False
        return True

    def _strike(self, begun: float, one: Round) -> set[int]:
        """Begin the round's windows and do its strikes, each at its time; the engines that were killed."""
        killed = set()
        happenings: list[Window | Strike] = sorted(
            (*one.begins, *one.strikes), key=lambda happening: happening.after
        )
        for happening in happenings:
            time.sleep(max(0.0, begun + happening.after - time.monotonic()))
            if isinstance(happening, Window):
                self._faults.begin(happening)
            elif happening.kind == KILL:
                self.tally.planned[KILL] += 1
                self.tally.done[KILL] += 1
                self._engines[happening.engine].kill()
                killed.add(happening.engine)
            elif happening.kind not in (RESTART, RESET_DEVICE):
                self._faults.strike(happening)
        return killed

    def _collect(self, one: Round, number: int) -> float | None:
        """Wait for a batch and judge it; the seconds it took, or None if the engine failed."""
        prompts = one.prompts[number]
        try:
            answers: list[dict[str, Any]] = self._engines[number].answer(HANG)
        except EngineError as error:
            self._failed(number, error)
            return None
        right = [self.oracle.answer(prompt) for prompt in prompts]
        self.tally.judge(one.number, number, right, answers)
        return float(answers[0]["seconds"])

    def _after(self, one: Round, killed: set[int]) -> None:
        """Stop what is to be restarted, with its faults still on, and start what is gone, without."""
        stopped = {strike.engine for strike in one.strikes if strike.kind == RESTART}
        for number in sorted(stopped):
            self.tally.planned[RESTART] += 1
            self.tally.done[RESTART] += 1
            try:
                self._engines[number].stop()
            except EngineError as error:
                self._note(number, error)
        if not stopped | killed:
            return
        self._faults.end_all()
        for number in sorted(stopped | killed):
            self._replace(number)
        for number in sorted(killed):
            if self._ask(number, one.prompts[number]):
                self._collect(one, number)

    def _command(self, number: int, command: str, **arguments: Any) -> Any:
        """What an engine says to a command; None if it failed and was replaced."""
        try:
            return self._engines[number].do(command, HANG, **arguments)
        except EngineError as error:
            self._failed(number, error)
            return None

    def _failed(self, number: int, error: EngineError) -> None:
        """An engine died or hangs: note it, and go on with another."""
        self._note(number, error)
        self._faults.end_all()
        self._replace(number)

    def _note(self, number: int, error: EngineError) -> None:
        text = f"round {self.tally.rounds}, engine {number}: {error}"
        (self.tally.hangs if isinstance(error, EngineHangError) else self.tally.crashes).append(
            text
        )
        self._say(text.partition("\n")[0])

    # Leaks.

    def _check(self, round_number: int) -> None:
        """Compare what the engines hold with what they held when they were warm."""
        plain = watch.held(self.oracle.pid)
        self.tally.plain += [plain.resident] if plain else []
        for number, engine in enumerate(self._engines):
            self._command(number, "idle", patience=SETTLE)
            level = self._level[number]
            held = self._settled(engine, level)
            if held is None:
                continue
            if level is None:
                level = self._level[number] = held
            found = {
                "round": round_number,
                "engine": number,
                **asdict(held),
                "level": asdict(level),
            }
            self.tally.checks.append(found)
            if held.exceeds(level):
                text = f"round {round_number}, engine {number}: {held}, warm {level}"
                self.tally.leaks.append(f"{text}\n  {watch.open_files(engine.pid)}")
                self._say(text)

    @staticmethod
    def _settled(engine: Engine, level: watch.Held | None) -> watch.Held | None:
        deadline = time.monotonic() + SETTLE
        while True:
            held = watch.held(engine.pid)
            late = time.monotonic() > deadline
            if level is None or held is None or not held.exceeds(level) or late:
                return held
            time.sleep(0.2)

    # The end.

    def _finish(self) -> None:
        self._faults.end_all()
        self.tally.taken_back = self._taken_back(0, 1) and self._taken_back(1, 0)
        self._check(self.tally.rounds)
        for number, engine in enumerate(self._engines):
            self._told[number] = self._command(number, "metrics") or self._told[number]
            self.tally.add_counters(self._told[number])
            try:
                engine.stop()
            except EngineError as error:
                self._note(number, error)
        for calls, nursery in zip(self._calls, self._nurseries, strict=True):
            self.tally.met.update(calls.met())
            self.tally.tracebacks += nursery.tracebacks()
        temporary = len(watch.temporary_files(self._place.root))
        with contextlib.suppress(OSError):  # what it leaves is counted
            files.run_clear(self._place, "--temporary", "--older-than", "0s")
        self.tally.left = Leaks(
            processes=sum(engine.alive for engine in self._engines),
            shared_memory=len(watch.files(self._place.shm)),
            temporary=temporary,
            temporary_left=len(watch.temporary_files(self._place.root)),
        )

    def _taken_back(self, writer: int, reader: int) -> bool:
        """Whether what one engine stores now is read by the other."""
        deadline = time.monotonic() + TAKEN_BACK
        while time.monotonic() < deadline:
            self._fresh += 1
            prompt = Prompt(Segment(40, 2 * self._fresh), (Segment(230, 2 * self._fresh + 1),), 4)
            self.oracle.learn([prompt])
            self._one(writer, prompt)
            self._command(writer, "idle", patience=SETTLE)
            if self._one(reader, prompt) > 0:
                return True
            time.sleep(0.5)
        return False

    def _one(self, number: int, prompt: Prompt) -> int:
        """Ask one prompt and judge its answer; tokens of it that were not computed."""
        try:
            self._engines[number].ask([self.oracle.tokens(prompt)], [prompt.max_tokens])
            answers: list[dict[str, Any]] = self._engines[number].answer(HANG)
        except EngineError as error:
            self._failed(number, error)
            return 0
        self.tally.judge(self.tally.rounds, number, [self.oracle.answer(prompt)], answers)
        return int(answers[0]["cached"])
