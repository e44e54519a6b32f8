"""A router with stub engines in one loop, and a client that shows every byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kvstrata.router.chooser import Chooser
from kvstrata.router.config import RouterConfig
from kvstrata.router.service import Router
from tests.unit.router.stub_engine import StubEngine

LONGEST = 60.0
QUICK = {
    "probe_every": 0.1,
    "probe_timeout": 1.0,
    "drain_grace": 0.05,
    "port": 0,
    "policy": "least-loaded",  # most tests ask nothing of an index, which takes a second to load
}


def run(test: Coroutine[Any, Any, None], longest: float = LONGEST) -> None:
    """Run a test's coroutine, for a bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(longest):
            await test

    asyncio.run(bounded())


@asynccontextmanager
async def fleet(
    *engines: StubEngine,
    url: list[str] | None = None,
    chooser: Chooser | None = None,
    **settings: Any,
) -> AsyncIterator[Router]:
    """A router over `engines`, which are started too, once it has looked at each."""
    for engine in engines:
        if engine.server is None:
            await engine.start()
    listed = [{"url": one.url, "name": one.name} for one in engines] + [
        {"url": u} for u in url or []
    ]
    router = Router(RouterConfig.parse({**QUICK, "replica": listed, **settings}), chooser=chooser)
    await router.start()
    try:
        if engines:
            await until(
                lambda: not any(one.health.state == "new" for one in router.application.replicas)
            )
        yield router
    finally:
        await router.stop()
        for engine in engines:
            await engine.stop()


async def until(true: Any, longest: float = 20.0) -> None:
    """Wait until `true()` holds."""
    async with asyncio.timeout(longest):
        while not true():
            await asyncio.sleep(0.01)


@dataclass
class Got:
    """An answer. `whole` is false when it was cut."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True
    raw: bytes = field(default=b"", repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class Wire:
    """One connection to the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, router: Router) -> "Wire":
        return cls(*await asyncio.open_connection("127.0.0.1", router.port, limit=1 << 22))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, body: Any, path: str = "/v1/completions", **headers: str) -> Got:
        await self.send(post(body, path, **headers))
        return await self.answer()

    async def answer(self) -> Got:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        got = Got(int(head[0].split(" ")[1]), headers, b"")
        pieces: list[bytes] = []
        try:
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    pieces.append((await self.reader.readexactly(size + 2))[:-2])
                await self.reader.readexactly(2)
            elif "content-length" in headers:
                got.body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                got.body = await self.reader.read()
        except asyncio.IncompleteReadError:
            got.whole = False
        got.body = got.body or b"".join(pieces)
        return got

    async def closed(self) -> bool:
        """Whether the router closes, and sends nothing more."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 10) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


def post(body: Any, path: str = "/v1/completions", **headers: str) -> bytes:
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: router", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


async def ask(router: Router, body: Any, path: str = "/v1/completions", **headers: str) -> Got:
    """One request on a connection of its own."""
    wire = await Wire.open(router)
    try:
        return await wire.ask(body, path, **headers)
    finally:
        wire.close()


async def get(router: Router, path: str, method: str = "GET", **headers: str) -> Got:
    """One request without a body."""
    wire = await Wire.open(router)
    lines = [f"{method} {path} HTTP/1.1", "host: router"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    await wire.send("\r\n".join([*lines, "", ""]).encode())
    try:
        return await wire.answer()
    finally:
        wire.close()
