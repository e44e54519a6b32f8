"""A router and engines as processes of their own, and what can be seen of them from outside."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.unit.router.router_lab import Got, Wire

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SETTINGS = """
port = 0
policy = "round-robin"
probe_every = 0.1
probe_timeout = 0.5
probe_failures = 2
drain_grace = 0.3
retries = 2
"""


class Machine:
    """Processes of one test, and the router among them.

    Args:
        directory: for their logs and the router's settings.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "fleet.toml"
        self.settings = SETTINGS
        self.children: list[subprocess.Popen[str]] = []
        self.router: subprocess.Popen[str]
        self.port = 0

    def engine(self, name: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
        """A stub engine and its port."""
        return self._listening([str(HERE / "stub_engine.py"), str(port), name])

    def honest(self, name: str, port: int = 0, **options: Any) -> tuple[subprocess.Popen[str], int]:
        """An honest engine and its port."""
        told = json.dumps({"name": name, "port": port, **options})
        return self._listening([str(HERE / "honest_engine.py"), told])

    def route(self, *ports: int, port: int = 0) -> None:
        """Start the router, at a free port unless one is given."""
        self.write(*ports, port=port)
        self.router, self.port = self._listening(
            ["-m", "kvstrata.cli.main", "route", "--config", str(self.config)]
        )

    def write(self, *ports: int, port: int = 0) -> None:
        """Write the router's settings."""
        tables = [f'[[replica]]\nurl = "http://127.0.0.1:{port}"\nname = "r{n}"\n'
                  for n, port in enumerate(ports)]  # fmt: skip
        text = self.settings.replace("port = 0", f"port = {port}", 1)
        self.config.write_text(text + "\n".join(tables))

    def _listening(self, arguments: list[str]) -> tuple[subprocess.Popen[str], int]:
        log = (self.directory / f"{len(self.children)}.log").open("w")
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        log.close()
        self.children.append(child)
        assert child.stdout is not None
        said = child.stdout.readline()
        assert said, Path(log.name).read_text()
        return child, int(said.rsplit(":", 1)[-1])

    def close(self) -> None:
        """End all of them."""
        for child in self.children:
            child.send_signal(signal.SIGCONT)
            child.kill()
        for child in self.children:
            child.wait(20)
            assert child.stdout is not None
            child.stdout.close()

    @property
    def resident(self) -> int:
        """Bytes of memory that the router has."""
        return int(psutil.Process(self.router.pid).memory_info().rss)

    @property
    def descriptors(self) -> int:
        """Descriptors that the router has open."""
        return int(psutil.Process(self.router.pid).num_fds())

    async def get(self, path: str, port: int | None = None) -> Got:
        """GET from the router, or from whoever has another port."""
        wire = await self.wire(port)
        try:
            await wire.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            return await wire.answer()
        finally:
            wire.close()

    async def wire(self, port: int | None = None) -> Wire:
        """A connection to the router, or to another port."""
        return Wire(*await asyncio.open_connection("127.0.0.1", port or self.port, limit=1 << 22))

    async def ask(self, body: object, path: str = "/v1/completions") -> Got:
        """One request on a connection of its own."""
        wire = await self.wire()
        try:
            return await wire.ask(body, path)
        finally:
            wire.close()

    async def state(self) -> dict[str, Any]:
        """Everything that the router says of itself."""
        got = await self.get("/admin/state")
        assert got.status == 200
        return dict(got.json)

    async def states(self) -> list[str]:
        """Of its replicas."""
        got = await self.get("/admin/replicas")
        return [one["state"] for one in got.json["replicas"]]

    async def become(self, *wanted: str) -> None:
        """Wait for these states."""
        async with asyncio.timeout(30):
            while await self.states() != list(wanted):
                await asyncio.sleep(0.05)

    async def counted(self, port: int, name: str) -> int:
        """A number that an honest engine counts."""
        text = (await self.get("/metrics", port)).body.decode()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))
