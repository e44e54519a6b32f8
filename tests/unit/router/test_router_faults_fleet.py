"""What engines tell of their caches is lost, cut off, frozen or begins anew: the router learns the truth.

The oracle is the engines' own word: how much of each prompt was cached, in the very answer that the router
decided for. Answers stay right all the while.
"""

import asyncio
import os
import random
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstrata.router.preparing import warm
from tests.unit.events.fake_publisher import Proxy
from tests.unit.router.honest_engine import BLOCK, HonestEngine, text_for
from tests.unit.router.router_lab import Got, ask, fleet, get, run, until
from tests.unit.router.router_machine import Machine


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm()


@pytest.fixture
def ends() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        yield f"ipc://{directory}"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def prompt(number: int, blocks: int = 6) -> list[int]:
    """A prompt that shares nothing with others of another number."""
    return [number, *range(1, blocks * BLOCK + 3)]


def right(wanted: list[int], got: Got) -> None:
    assert got.status == 200 and got.json["choices"][0]["text"] == text_for(wanted, 4), got


async def told(router: Any, wanted: list[int]) -> dict[str, dict[str, Any]]:
    """What the router would say of each replica now."""
    record = (await ask(router, {"prompt": wanted}, "/v1/route/explain")).json
    return {one["replica"]: one for one in record["considered"]}


async def claims(router: Any, wanted: list[int]) -> dict[str, int | None]:
    """Tokens that each replica's device is said to hold; None where nothing is said."""
    shown = await told(router, wanted)
    return {name: one["reuse"] and one["reuse"]["device"]["tokens"] for name, one in shown.items()}


async def foreseen_and_cached(router: Any, wanted: list[int]) -> tuple[int | None, int]:
    """Asks, and compares what was foreseen of the chosen replica with what it then said."""
    got = await ask(router, {"prompt": wanted})
    right(wanted, got)
    path = f"/v1/route/decisions/{got.headers['x-kvstrata-decision']}"
    async with asyncio.timeout(10):
        while (record := (await get(router, path)).json)["outcome"] is None:
            await asyncio.sleep(0.01)
    chosen = next(one for one in record["considered"] if one["replica"] == record["chosen"])
    reuse = chosen["reuse"]
    return reuse and reuse["device"]["tokens"], record["outcome"]["cached_tokens"]


async def trust(router: Any, name: str) -> str:
    replicas = (await get(router, "/admin/state")).json["replicas"]
    return str(next(one["index"]["trust"] for one in replicas if one["name"] == name))


async def become(router: Any, name: str, *wanted: str) -> None:
    async with asyncio.timeout(30):
        while await trust(router, name) not in wanted:
            await asyncio.sleep(0.05)


async def agree(router: Any, prompts: list[list[int]], *engines: HonestEngine) -> None:
    """Wait until the router says of every prompt what the engines hold of it."""
    async with asyncio.timeout(30):
        for wanted in prompts:
            while await claims(router, wanted) != {
                one.name: one.cached_of(wanted) for one in engines
            }:
                await asyncio.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Gate:
    """A way to a port that can be shut, so that nobody gets through, or blocked, so that nothing does."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> "Gate":
        self._server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def block(self, blocked: bool) -> None:
        self._flowing.clear() if blocked else self._flowing.set()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, there[1]}
        try:
            pumps = (self._pump(reader, there[1]), self._pump(there[0], writer))
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._writers -= {writer, there[1]}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


async def behind_gates(name: str) -> tuple[HonestEngine, list[Gate]]:
    """An engine whose events and snapshots can be reached through gates only."""
    ports = [free_port(), free_port()]
    gates = [await Gate(port).open() for port in ports]
    bound = [f"tcp://127.0.0.1:{port}" for port in ports]
    shown = tuple(f"tcp://127.0.0.1:{gate.port}" for gate in gates)
    return HonestEngine(name, *bound, shown=shown), gates  # type: ignore[arg-type]


def test_lost_late_and_repeated_events_leave_no_wrong_belief(ends: str) -> None:
    engines, proxies = [], []
    for seed, name in enumerate("ab"):
        events, replay, shown = f"{ends}/{name}", f"{ends}/{name}r", f"{ends}/{name}p"
        proxies.append(Proxy(events, shown, seed))
        engines.append(HonestEngine(name, events, replay, (shown, replay)))
    dice = random.Random(1)
    talks = [prompt(number, dice.randrange(1, 9)) for number in range(20)]

    async def go() -> None:
        async with fleet(*engines, policy="seconds") as router:
            turns = 0
            # Which engine tells how much is the router's to choose: until the way to each went wrong.
            while turns < 12 or (
                turns < 100 and not all(one.dropped + one.delayed for one in proxies)
            ):
                turns += 1
                turn = dice.sample(range(20), 8)
                got = await asyncio.gather(*[ask(router, {"prompt": talks[n]}) for n in turn])
                for number, one in zip(turn, got, strict=True):
                    right(talks[number], one)
                    talks[number] = [*talks[number], *range(dice.randrange(40))]
            assert all(proxy.dropped + proxy.delayed for proxy in proxies)
            for proxy in proxies:
                proxy.faulty = False
            await agree(router, talks, *engines)
            for wanted in talks:
                foreseen, cached = await foreseen_and_cached(router, wanted)
                assert foreseen == cached

    run(go())
    for proxy in proxies:
        proxy.close()


@pytest.mark.parametrize("how", ["shut", "blocked"])
def test_an_event_port_that_closes_or_falls_silent_is_noticed_and_made_up_for(how: str) -> None:
    async def go() -> None:
        engine, gates = await behind_gates("a")
        engine.hold(prompt(1))
        async with fleet(engine, policy="seconds") as router:
            await agree(router, [prompt(1)], engine)
            assert (await told(router, prompt(1)))["a"]["trust"] == 1.0
            for gate in gates:
                gate.shut() if how == "shut" else gate.block(True)
            await become(router, "a", "stale", "catching up")
            engine.hold(prompt(2))  # which nobody hears
            assert (await told(router, prompt(1)))["a"]["trust"] < 1.0
            for number in (1, 2, 3):
                right(prompt(number), await ask(router, {"prompt": prompt(number)}))
            for gate in gates:
                await gate.open() if how == "shut" else gate.block(False)
            await become(router, "a", "synced")
            await agree(router, [prompt(number) for number in (1, 2, 3, 4)], engine)
            assert await foreseen_and_cached(router, prompt(2)) == (96, 96)
        for gate in gates:
            gate.shut()

    run(go())


@pytest.mark.parametrize("looks", [0.1, 600])
def test_a_restart_at_the_same_address_is_no_replica_that_holds_anything(
    machine: Machine, ends: str, looks: float
) -> None:
    """Also where it is back before anyone looks at its health."""
    where = {"events": f"{ends}/a", "replay": f"{ends}/ar"}
    child, port = machine.honest("a", **where)
    url = f"http://127.0.0.1:{port}"

    async def go() -> None:
        async with fleet(policy="seconds", probe_every=looks) as router:
            await ask(router, {"url": url, "name": "a"}, "/admin/replicas")
            await until(lambda: router.application.replicas.get("a").health.state == "up")
            right(prompt(1), await ask(router, {"prompt": prompt(1)}))
            while await claims(router, prompt(1)) != {"a": 96}:
                await asyncio.sleep(0.05)
            assert await foreseen_and_cached(router, prompt(1)) == (96, 96)
            child.kill()
            child.wait(20)
            await asyncio.to_thread(machine.honest, "a", port, **where)
            await until(lambda: router.application.replicas.get("a").health.state == "up")
            while await claims(router, prompt(1)) != {"a": 0}:
                await asyncio.sleep(0.02)
            await become(router, "a", "synced")
            for _ in range(20):
                assert await claims(router, prompt(1)) == {"a": 0}
            assert await foreseen_and_cached(router, prompt(1)) == (0, 0)
            while await claims(router, prompt(1)) != {"a": 96}:
                await asyncio.sleep(0.02)
            assert await foreseen_and_cached(router, prompt(1)) == (96, 96)

    run(go())


def test_a_frozen_owner_is_left_and_found_again_with_what_it_holds(
    machine: Machine, ends: str
) -> None:
    started = {
        name: machine.honest(name, events=f"{ends}/{name}", replay=f"{ends}/{name}r")
        for name in "ab"
    }
    settings = {"probe_timeout": 0.5, "probe_failures": 2, "retries": 2}

    async def go() -> None:
        async with fleet(policy="seconds", **settings) as router:
            for name, (_, port) in started.items():
                url = f"http://127.0.0.1:{port}"
                await ask(router, {"url": url, "name": name}, "/admin/replicas")
            await until(
                lambda: all(one.health.state == "up" for one in router.application.replicas)
            )
            got = await ask(router, {"prompt": prompt(1)})
            right(prompt(1), got)
            owner = got.headers["x-kvstrata-replica"]
            while (await claims(router, prompt(1)))[owner] != 96:
                await asyncio.sleep(0.05)
            assert await foreseen_and_cached(router, prompt(1)) == (96, 96)
            frozen = started[owner][0].pid
            os.kill(frozen, signal.SIGSTOP)
            waiting = [asyncio.create_task(ask(router, {"prompt": prompt(1)})) for _ in range(4)]
            for one in await asyncio.gather(*waiting):
                right(prompt(1), one)
                assert one.headers["x-kvstrata-replica"] != owner
            os.kill(frozen, signal.SIGCONT)
            await until(
                lambda: all(one.health.state == "up" for one in router.application.replicas)
            )
            await become(router, owner, "synced")
            while (await claims(router, prompt(1)))[owner] != 96:
                await asyncio.sleep(0.05)
            assert await foreseen_and_cached(router, prompt(1)) == (96, 96)

    run(go())
