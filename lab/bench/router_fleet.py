"""The processes of `lab.bench.router`: stub engines, their events, and the routers in front of them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import report
from lab.bench.router_prompts import Held

PACKAGE = "vllm-router==0.1.17"
ENVIRONMENT = report.BUILD / "vllm-router-venv"
LOGS = report.BUILD / "bench" / "router-logs"
_START = 120.0


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Helper:
    """A program of ours that says and is told lines.

    Args:
        module: to run.
        arguments: for it.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=report.REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self.answer()

    def answer(self) -> str:
        """Its next line. Raises OSError when it has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"{self.process.args!r} ended with code {self.process.wait()}")
        return line

    def tell(self, line: str) -> str:
        """Say a line and wait for its answer."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        _end(self.process)


def _end(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Engines:
    """Stub engines.

    Attributes:
        ports: of each.
        endpoints: of each: its events, its replays.
        publish: make them say that they hold this.
    """

    ports: Sequence[int]
    endpoints: Sequence[tuple[str, str]]
    publish: Callable[[Sequence[Held]], None]


@contextlib.contextmanager
def engines(count: int, tokenizer: Path) -> Iterator[Engines]:
    """So many stub engines in one process, and their events in another."""
    addresses = [
        (f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}") for _ in range(count)
    ]
    given = json.dumps(addresses)
    with contextlib.ExitStack() as ending:
        directory = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="kvstrata-")))
        events = Helper("lab.bench.router_events", given)
        ending.callback(events.close)
        stub = Helper("lab.bench.router_stub", given, str(tokenizer))
        ending.callback(stub.close)

        def publish(held: Sequence[Held]) -> None:
            path = directory / "prefixes.npz"
            np.savez(path, **{f"{one.engine}-{n}": one.ids for n, one in enumerate(held)})  # type: ignore[arg-type]
            events.tell(str(path))

        yield Engines(json.loads(stub.first), addresses, publish)


class Running:
    """A router that runs.

    Args:
        name: for figures.
        command: that starts it.
        port: that it listens at.
    """

    def __init__(self, name: str, command: Sequence[str | Path], port: int) -> None:
        self.name, self.port = name, port
        LOGS.mkdir(parents=True, exist_ok=True)
        with (LOGS / f"{name}.log").open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=report.REPOSITORY, stdout=log, stderr=log, text=True
            )

    def wait(self) -> None:
        """Until it answers. Raises OSError when it does not."""
        until = time.monotonic() + _START
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError):
                url = f"http://127.0.0.1:{self.port}/health"
                with urllib.request.urlopen(url, timeout=2):
                    return
            time.sleep(0.1)
        self.close()
        raise OSError(f"{self.name} did not start; see {LOGS / self.name}.log")

    def cpu(self) -> float:
        """Seconds of processor time that its threads have had, ended ones left out."""
        spent = 0
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile
                spent += int((task / "schedstat").read_text().split()[0])
        return spent / 1e9

    def memory(self) -> float:
        """Resident MiB."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        _end(self._process)


def ours(policy: str, engines: Engines, tokenizer: Path, name: str) -> Running:
    """This repository's router."""
    port = free_port()
    settings = LOGS / f"{name}.toml"
    LOGS.mkdir(parents=True, exist_ok=True)
    lines = [
        f"port = {port}",
        f'policy = "{policy}"',
        f'tokenizer = "{tokenizer}"',
        "drain_grace = 0.1",
    ]
    for number, engine in enumerate(engines.ports):
        lines += ["[[replica]]", f'url = "http://127.0.0.1:{engine}"', f'name = "{number}"']
    settings.write_text("\n".join(lines) + "\n")
    # On a machine's first start it would go by load for a minute.
    subprocess.run([sys.executable, "-m", "kvstrata.router.preparing"], check=True)
    command = [sys.executable, "-m", "kvstrata.cli.main", "route", "--config", str(settings)]
    return Running(name, command, port)


def plain(engines: Engines) -> Running:
    """A proxy that does nothing else."""
    port = free_port()
    command = [sys.executable, "-m", "lab.bench.router_plain", str(port), *map(str, engines.ports)]
    return Running("plain", command, port)


def install() -> str | None:
    """Install vllm-router into its environment; None, or why it cannot be."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            venv.create(ENVIRONMENT, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", PACKAGE]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None


def vllm_router(engines: Engines) -> Running:
    """vllm-router, `kv_aware`, told where each engine's events and replays are."""
    port = free_port()
    urls = [f"http://127.0.0.1:{one}" for one in engines.ports]
    command: list[str | Path] = [ENVIRONMENT / "bin" / "vllm-router", "--host", "127.0.0.1"]
    command += [
        "--port",
        str(port),
        "--prometheus-port",
        str(free_port()),
        "--log-level",
        "warning",
    ]
    command += ["--policy", "kv_aware", "--kv-event-block-size", "16", "--kv-event-model", "m"]
    for url, (events, replay) in zip(urls, engines.endpoints, strict=True):
        command += ["--kv-event-source", f"{url}={events}"]
        command += ["--kv-event-replay-source", f"{url}={replay}"]
    return Running("vllm-router", [*command, "--worker-urls", *urls], port)
