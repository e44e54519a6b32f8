"""Engines in processes of their own: asked, awaited, killed, replaced. The other side is `lab.soak.child`."""

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 180.0
STOP_SECONDS = 60.0
TAIL_BYTES = 3000
CONTEXT_BYTES = 300
TRACEBACK = "Traceback (most recent call last)"
BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Takes from root what lets it pass over file permissions."""


class EngineError(Exception):
    """The engine died, or did not start; the message ends with its log."""


class EngineHangError(EngineError):
    """The engine did not answer in time; its log holds the stacks of its threads."""


def obeys_permissions() -> bool:
    """Whether engines can be made to obey file permissions."""
    return os.getuid() != 0 or shutil.which(BOUND[0]) is not None


class Nursery:
    """A process that has imported vLLM and forks an engine whenever it is asked: a restart takes seconds.

    It and its engines end with this process.

    Args:
        directory: for its socket and log; made if it is missing.
        environment: further environment variables.
        bound: obey file permissions, also as root.
    """

    def __init__(
        self, directory: Path, environment: Mapping[str, str] | None = None, *, bound: bool = False
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "log"
        self._socket = directory / "socket"
        self._socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "lab.soak.child", str(self._socket)]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [*(BOUND if bound and os.getuid() == 0 else ()), *command],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def connect(self) -> socket.socket:
        """A connection to a new child; waits until the nursery is ready.

        Raises:
            EngineError: it did not get ready.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._socket))
                return connection
            except OSError as error:
                connection.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(f"no nursery\n{self.tail()}") from error
                time.sleep(0.05)

    def tail(self) -> str:
        """The end of what it and its engines printed."""
        return self.log.read_text(errors="replace")[-TAIL_BYTES:]

    def tracebacks(self) -> list[str]:
        """The beginnings of all tracebacks that its engines printed."""
        parts = self.log.read_text(errors="replace").split(TRACEBACK)
        return [
            before[-CONTEXT_BYTES:] + TRACEBACK + part[:TAIL_BYTES]
            for before, part in itertools.pairwise(parts)
        ]

    def close(self) -> None:
        """SIGKILL; its engines end with it."""
        self._process.kill()
        self._process.wait()


class Engine:
    """One engine.

    Attributes:
        pid: of its process.

    Args:
        nursery: forks it.
        settings: see `lab.soak.child`.

    Raises:
        EngineError: it did not start.
    """

    def __init__(self, nursery: Nursery, settings: Mapping[str, Any]) -> None:
        self._nursery = nursery
        self._connection = nursery.connect()
        self._in = self._connection.makefile("wb")
        self._out = self._connection.makefile("rb", buffering=0)
        self._in.write(json.dumps(settings).encode() + b"\n")
        self._in.flush()
        self.pid: int = self.answer(START_SECONDS)
        try:
            self.answer(START_SECONDS)
        except EngineError:
            self.kill()
            raise

    def send(self, command: str, **arguments: Any) -> None:
        """Give a command of `lab.soak.child.Child` without waiting; `answer` must follow.

        Raises:
            EngineError: it is dead.
        """
        try:
            self._in.write(json.dumps({"do": command, "with": arguments}).encode() + b"\n")
            self._in.flush()
        except OSError as error:
            raise EngineError(f"the engine died\n{self._nursery.tail()}") from error

    def answer(self, seconds: float) -> Any:
        """What the command gave.

        Raises:
            EngineHangError: it takes longer than `seconds`.
            EngineError: it died.
        """
        if not select.select([self._out], [], [], seconds)[0]:
            self.print_stacks()
            raise EngineHangError(f"no answer within {seconds:g} s\n{self._nursery.tail()}")
        try:
            line = self._out.readline()
        except OSError:
            line = b""
        if not line:
            raise EngineError(f"the engine died\n{self._nursery.tail()}")
        return json.loads(line)["result"]

    def do(self, command: str, seconds: float, **arguments: Any) -> Any:
        """`send` and `answer`."""
        self.send(command, **arguments)
        return self.answer(seconds)

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> None:
        """Send prompts (token ids) and the lengths of their answers; `answer` must follow."""
        self.send("ask", prompts=prompts, max_tokens=max_tokens)

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return Path(f"/proc/{self.pid}").exists()

    def print_stacks(self) -> None:
        """Write the stacks of all its threads to its log."""
        if self.alive:
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(1.0)

    def stop(self) -> None:
        """Shut down in order.

        Raises:
            EngineHangError: it does not end; it was killed.
        """
        try:
            self.do("stop", STOP_SECONDS)
            self._connection.shutdown(socket.SHUT_WR)
            if not self._ended(STOP_SECONDS):
                self.print_stacks()
                raise EngineHangError(f"it did not end after its shutdown\n{self._nursery.tail()}")
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self._ended(STOP_SECONDS)
        with contextlib.suppress(OSError):
            self._in.close()
        self._out.close()
        self._connection.close()

    def _ended(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.alive
