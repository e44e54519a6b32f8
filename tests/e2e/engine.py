"""The tests' handle on a real engine in a process of its own; see `engine_child.py`."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("engine_child.py")
BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Takes from root what lets it pass over file permissions."""
START_SECONDS = 120.0
COMMAND_SECONDS = 120.0
STOP_SECONDS = 30.0


class EngineError(Exception):
    """The engine said no, died, or did not answer in time."""


class Nursery:
    """A process that has imported vLLM and forks an engine whenever it is asked.

    Args:
        directory: for its socket and log.
    """

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "nursery"
        self._log = directory / "nursery.log"
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), "--fork", str(self.socket)],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def connect(self) -> socket.socket:
        """A connection to a new child; waits until the nursery is ready."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.socket))
                return connection
            except OSError as error:
                connection.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(f"no nursery\n{self._log.read_text()[-4000:]}") from error
                time.sleep(0.05)

    def close(self) -> None:
        """End it; its children are ended by their owners."""
        self._process.kill()
        self._process.wait()


class Engine:
    """One real engine.

    Args:
        model: name of a tiny model.
        log: file for what the engine prints.
        extra: our options (`kv_connector_extra_config`).
        nursery: forks the engine; None starts a process of its own.
        bound: obey file permissions, even when the tests run as root; needs a process of its own.
        settings: further settings of `engine_child.Child`.
    """

    def __init__(
        self,
        model: str,
        log: Path,
        extra: dict[str, Any],
        *,
        nursery: Nursery | None = None,
        bound: bool = False,
        **settings: Any,
    ) -> None:
        self.log = log
        log.touch()
        wanted = {"model": model, "extra": extra, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._in: IO[bytes]
        self._out: IO[bytes]
        if nursery is None or bound:
            self._spawn(json.dumps(wanted), bound)
        else:
            self._fork(nursery, {**wanted, "log": str(log)})
        try:
            answer = self._answer(START_SECONDS)
        except EngineError:
            self.kill()
            raise
        if "error" in answer:
            self.kill()
            raise EngineError(answer["error"])

    def _spawn(self, text: str, bound: bool) -> None:
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [*(BOUND if bound else ()), sys.executable, str(CHILD), text],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._pid = self._process.pid

    def _fork(self, nursery: Nursery, wanted: dict[str, Any]) -> None:
        self._connection = nursery.connect()
        self._in = self._connection.makefile("wb")
        self._out = self._connection.makefile("rb", buffering=0)
        self._in.write(json.dumps(wanted).encode() + b"\n")
        self._in.flush()
        self._pid = self._answer(START_SECONDS)["pid"]

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.alive:
            self.stop()
        else:
            self.kill()

    def ask(self, *prompts: list[int], max_tokens: int = 16) -> list[dict[str, Any]]:
        """See `Child.ask`."""
        return self.do("ask", prompts=list(prompts), max_tokens=max_tokens)

    def send(self, command: str, **arguments: Any) -> None:
        """Give a command without waiting for its answer."""
        self._in.write(json.dumps({"do": command, "with": arguments}).encode() + b"\n")
        self._in.flush()

    def do(self, command: str, **arguments: Any) -> Any:
        """Give a command and wait for its answer."""
        self.send(command, **arguments)
        return self._answer(COMMAND_SECONDS)["result"]

    def stop(self) -> None:
        """Shut down in order; what is queued is written first."""
        self.do("stop")
        self._hang_up()
        if not self._ended(STOP_SECONDS):
            self.kill()
            raise EngineError("the engine did not end after its shutdown")

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            os.kill(self._pid, signal.SIGKILL)
            self._ended(STOP_SECONDS)
        self._hang_up()

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        if self._process is not None:
            return self._process.poll() is None
        return Path(f"/proc/{self._pid}").exists()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._in.close()
        if self._process is None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)

    def _ended(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.alive

    def _answer(self, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not select.select([self._out], [], [], 1.0)[0]:
            if time.monotonic() > deadline:
                raise EngineError(f"no answer within {seconds:g} s\n{self._tail()}")
        try:
            line = self._out.readline()
        except OSError:
            line = b""
        if not line:
            raise EngineError(f"the engine died\n{self._tail()}")
        return json.loads(line)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]
