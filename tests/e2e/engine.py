"""The tests' handle on a real engine in a process of its own; see `engine_child.py`."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("engine_child.py")
BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Takes from root what lets it pass over file permissions."""
START_SECONDS = 120.0
COMMAND_SECONDS = 120.0


class EngineError(Exception):
    """The engine said no, died, or did not answer in time."""


class Engine:
    """One real engine.

    Args:
        model: name of a tiny model.
        log: file for what the engine prints.
        extra: our options (`kv_connector_extra_config`).
        bound: obey file permissions, even when the tests run as root.
        settings: further settings of `engine_child.Child`.
    """

    def __init__(
        self,
        model: str,
        log: Path,
        extra: dict[str, Any],
        *,
        bound: bool = False,
        **settings: Any,
    ) -> None:
        text = json.dumps({"model": model, "extra": extra, **settings})
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*(BOUND if bound else ()), sys.executable, str(CHILD), text],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
            )
        try:
            answer = self._answer(START_SECONDS)
        except EngineError:
            self.kill()
            raise
        if "error" in answer:
            self.kill()
            raise EngineError(answer["error"])

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._process.poll() is None:
            self.stop()
        else:
            self.kill()

    def ask(self, *prompts: list[int], max_tokens: int = 16) -> list[dict[str, Any]]:
        """See `Child.ask`."""
        return self.do("ask", prompts=list(prompts), max_tokens=max_tokens)

    def send(self, command: str, **arguments: Any) -> None:
        """Give a command without waiting for its answer."""
        assert self._process.stdin is not None
        line = json.dumps({"do": command, "with": arguments}) + "\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def do(self, command: str, **arguments: Any) -> Any:
        """Give a command and wait for its answer."""
        self.send(command, **arguments)
        return self._answer(COMMAND_SECONDS)["result"]

    def stop(self) -> None:
        """Shut down in order; what is queued is written first."""
        self.do("stop")
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise EngineError("the engine did not end after its shutdown") from error

    def kill(self) -> None:
        """SIGKILL."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def _answer(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while not select.select([self._process.stdout], [], [], 1.0)[0]:
            if time.monotonic() > deadline:
                raise EngineError(f"no answer within {seconds:g} s\n{self._tail()}")
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"the engine died\n{self._tail()}")
        return json.loads(line)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]
