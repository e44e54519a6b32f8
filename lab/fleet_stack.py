"""Three real engines over one directory, and `kvstrata route` in front of them, as processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from lab.models import MODELS_ROOT
from lab.server import EngineServer, ServerError, die_with_parent

TIERS = ("device", "memory", "filesystem", "computed")
START_SECONDS = 240.0
"""All engines start beside each other."""
READY_SECONDS = 150.0
"""A router compiles its index at a machine's first start."""
STOP_SECONDS = 20.0
TAIL_BYTES = 3000
BY_PROMPT = frozenset({"seconds", "tier-weighted", "approximate-prefix"})
"""Policies that follow the engines' events."""


@dataclass(frozen=True, slots=True)
class Engines:
    """What each engine is.

    Attributes:
        model: of `lab.models`.
        replicas: how many.
        device_bytes: of each one's device cache.
        memory: of each one's memory tier, as the option `memory` takes it.
        max_model_len: tokens.
        step_tokens: that one engine step computes at most.
        retention: tokens between places where windows are kept, so that already the second prompt with a
            beginning resumes there; a multiple of the block of 128. See the doctor's `sparse-retention`.
        capacity: of the directory that they share, as the option takes it; None for no bound.
    """

    model: str = "gemma3-5to1"
    replicas: int = 3
    device_bytes: int = 64 << 20
    memory: str = "64MiB"
    max_model_len: int = 8192
    step_tokens: int = 2048
    retention: int = 256
    capacity: str | None = None


@dataclass
class Fleet:
    """Engines that run.

    Attributes:
        names: of the replicas, in order.
        servers: the engines, by name.
    """

    servers: dict[str, EngineServer] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the replicas."""
        return list(self.servers)

    def empty_devices(self) -> None:
        """Every engine forgets what its device holds, and has written what it was to write."""
        for server in self.servers.values():
            server.wait_idle()
            server.client.reset_prefix_cache()

    def tokens(self) -> dict[str, dict[str, int]]:
        """Prompt tokens since the start, as each engine counts them: by replica, by where they came from."""
        found = {}
        for name, server in self.servers.items():
            metrics = server.client.metrics()
            found[name] = {
                tier: round(metrics.get(f"vllm:kvstrata_tokens_total{{tier={tier}}}", 0))
                for tier in TIERS
            }
        return found


@contextmanager
def engines(what: Engines, directory: Path) -> Iterator[Fleet]:
    """All engines, started beside each other; stopped at the end, whatever happens.

    Args:
        what: they are.
        directory: for the storage that they share, their logs and sockets.

    Raises:
        ServerError: one did not start.
    """
    fleet = Fleet({chr(ord("a") + n): _engine(what, directory, n) for n in range(what.replicas)})
    # Each server lives no longer than the thread that started it: these live until the end.
    with ThreadPoolExecutor(what.replicas) as starters:
        try:
            for _ in starters.map(_start, fleet.servers.values()):
                pass
            yield fleet
        finally:
            for _ in starters.map(EngineServer.stop, fleet.servers.values()):
                pass


def _start(server: EngineServer) -> None:
    server.start()
    server.warm_up(2500)


def _engine(what: Engines, directory: Path, number: int) -> EngineServer:
    name = chr(ord("a") + number)
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"ipc://{directory}/{name}.events",
        "replay_endpoint": f"ipc://{directory}/{name}.replay",
    }
    return EngineServer(
        what.model,
        directory / f"{name}.log",
        kv={
            "path": str(directory / "kv"),
            "memory": what.memory,
            "offload_prompt_only": False,
            "capacity": what.capacity,
        },
        max_model_len=what.max_model_len,
        device_bytes=what.device_bytes,
        arguments=(
            *("--kv-events-config", json.dumps(events)),
            *("--max-num-batched-tokens", str(what.step_tokens)),
            *("--prefix-cache-retention-interval", str(what.retention)),
        ),
        patience=START_SECONDS,
    )


class RouterProcess:
    """`kvstrata route` over a fleet; use it as a context manager.

    Args:
        policy: name of the policy.
        fleet: to route to.
        model: whose tokenizer reads prompts of text.
        directory: for its configuration and its log.
        settings: further entries of its configuration; a mapping among them is a table.
    """

    def __init__(
        self,
        policy: str,
        fleet: Fleet,
        model: str,
        directory: Path,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.policy = policy
        self._names = fleet.names
        self._model = model
        self._log = directory / f"router-{policy}.log"
        self._config = directory / f"router-{policy}.toml"
        lines = [
            "port = 0",
            f"policy = {json.dumps(policy)}",
            f"tokenizer = {json.dumps(str(MODELS_ROOT / model))}",
        ]
        tables = []
        for key, value in (settings or {}).items():
            if isinstance(value, Mapping):
                tables += [f"[{key}]", *(f"{one} = {json.dumps(v)}" for one, v in value.items())]
            else:
                lines.append(f"{key} = {json.dumps(value)}")
        lines += tables
        for name, server in fleet.servers.items():
            lines += ["[[replica]]", f'url = "http://127.0.0.1:{server.port}"', f'name = "{name}"']
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self._http = httpx2.Client(timeout=10.0, trust_env=False)

    def __enter__(self) -> "RouterProcess":
        # On a machine's first start it would go by load for a minute.
        subprocess.run([sys.executable, "-m", "kvstrata.router.preparing"], check=True)
        command = [sys.executable, "-m", "kvstrata.cli.main", "route"]
        command += ["--config", str(self._config)]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
                preexec_fn=die_with_parent,
            )
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def get(self, path: str) -> Any:
        """What the router answers to a GET, as JSON.

        Raises:
            ServerError: it did not answer, or not with 200.
        """
        try:
            reply = self._http.get(f"{self.url}{path}")
        except httpx2.HTTPError as error:
            raise ServerError(f"the router does not answer: {error!r}\n{self.tail()}") from error
        if reply.status_code != 200:
            raise ServerError(f"the router answered {path} with {reply.status_code}: {reply.text}")
        return reply.json()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what that does not end."""
        self._http.close()
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-TAIL_BYTES:]

    def _await_ready(self) -> None:
        """Until every engine is up and, where events are followed, all that it holds is known."""
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None:
                raise ServerError(f"the router ended with status {status}\n{self.tail()}")
            self.url = self.url or _address(self._log.read_text(errors="replace"))
            if self.url:
                replicas: list[dict[str, Any]] = []
                with contextlib.suppress(ServerError):  # it says its address before it listens
                    replicas = self.get("/admin/state")["replicas"]
                if self._ready(replicas):
                    self._explain(deadline)
                    return
            time.sleep(0.1)
        raise ServerError(f"the router is not ready after {READY_SECONDS:g} s\n{self.tail()}")

    def _explain(self, deadline: float) -> None:
        """Let it choose once for nobody, so that the first user does not wait for what is compiled."""
        asked = {"model": self._model, "messages": [{"role": "user", "content": "word " * 100}]}
        patience = max(deadline - time.monotonic(), 1.0)
        try:
            reply = self._http.post(f"{self.url}/v1/route/explain", json=asked, timeout=patience)
            reply.raise_for_status()
        except httpx2.HTTPError as error:
            raise ServerError(f"the router explains nothing: {error!r}\n{self.tail()}") from error

    def _ready(self, replicas: Sequence[Mapping[str, Any]]) -> bool:
        if {one["name"] for one in replicas if one["state"] == "up"} != set(self._names):
            return False
        if self.policy not in BY_PROMPT:
            return True
        return all(one["index"] and one["index"]["trust"] == "synced" for one in replicas)


def _address(log: str) -> str:
    """Where a router says that it listens; empty until it does."""
    _, found, rest = log.partition("listening at ")
    line, ended, _ = rest.partition("\n")
    return line.strip() if found and ended else ""
