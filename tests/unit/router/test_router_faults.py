"""Faults with real processes: every request ends with its own whole answer, or with an error that says why.

Engines answer with what only the request can tell (`honest_engine`), so that no answer that is wrong,
another's or cut passes for a right one.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstrata.router.preparing import warm
from tests.unit.router.honest_engine import streamed_text, text_for
from tests.unit.router.router_lab import Got, post, run
from tests.unit.router.router_machine import Machine

MIB = 1 << 20
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm()


@pytest.fixture
def ends() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        yield f"ipc://{directory}"


def judge(body: dict[str, Any], got: Got) -> str:
    """ "right", "cut", or the reason that the client was told; anything else fails."""
    count = body.get("max_tokens", 4)
    right = text_for(body["prompt"], count)
    streamed = got.status == 200 and body.get("stream")
    # Only a router that is killed itself can say nothing.
    if not got.whole and not streamed:
        return "cut"
    if got.status != 200:
        error = got.json["error"]
        assert len(error["message"]) > 20 and error["type"], error
        return str(error["code"])
    if streamed:
        shown = streamed_text(got.body)
        if got.whole:
            assert shown == right and got.body.endswith(b"data: [DONE]\n\n"), got.body
            return "right"
        assert right.startswith(shown), (right, shown)
        assert b"[DONE]" not in got.body
        return "broken" if b"replica_failed_mid_stream" in got.body else "cut"
    assert got.json["choices"][0]["text"] == right
    return "right"


class Users:
    """Clients that ask all the time, each on one connection as long as that lasts."""

    def __init__(self, machine: Machine, count: int, pause: float = 0.01) -> None:
        self.machine, self.count, self.pause = machine, count, pause
        self.ends: Counter[str] = Counter()
        self.stopping = False

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._user(n)) for n in range(self.count)]
        try:
            yield
        finally:
            self.stopping = True
            await asyncio.gather(*tasks)

    async def more(self, count: int) -> None:
        """Wait until so many more were answered right."""
        wanted = self.ends["right"] + count
        async with asyncio.timeout(60):
            while self.ends["right"] < wanted:
                await asyncio.sleep(0.02)

    async def _user(self, number: int) -> None:
        dice = random.Random(number)
        wire = None
        for turn in itertools.count():
            if self.stopping:
                break
            body = {"prompt": [number, turn, *range(40)], "max_tokens": dice.randrange(1, 12)}
            if dice.random() < 0.6:
                body |= {"stream": True, "pause": self.pause}
            got = None
            try:
                wire = wire or await self.machine.wire()
            except ConnectionError:
                self.ends["refused"] += 1
                await asyncio.sleep(0.05)
                continue
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                got = await wire.ask(body)
            if got is None:
                self.ends["cut"] += 1  # the client knows, and may ask again
            if got is not None:
                self.ends[judge(body, got)] += 1
            if got is None or not got.whole or got.headers.get("connection") == "close":
                wire.close()
                wire = None
        if wire:
            wire.close()


async def well(machine: Machine, *ports: int) -> None:
    """Nothing is left of what was: no request in flight, no body held, nothing malformed sent."""
    async with asyncio.timeout(30):
        while True:
            told = (await machine.state())["router"]
            if (told["in_flight"], told["buffered_bytes"], told["waiting"]) == (0, 0, 0):
                break
            await asyncio.sleep(0.05)
    for port in ports:
        assert await machine.counted(port, "honest:malformed") == 0


async def back_to(machine: Machine, descriptors: int) -> None:
    """The router has no more descriptors open than it had, but for looks that are under way."""
    async with asyncio.timeout(20):
        while machine.descriptors > descriptors + 2:
            await asyncio.sleep(0.05)


def test_replicas_that_die_freeze_and_fail_under_load_never_answer_wrongly(
    machine: Machine,
) -> None:
    children: list[Any]
    children, ports = map(list, zip(*[machine.honest(name) for name in "abc"], strict=True))
    settings = machine.settings.replace("timeout = 0.5", "timeout = 2")
    machine.settings = settings + "engine_keepalive = 0.5\n"
    machine.route(*ports)
    users = Users(machine, 16)

    async def go() -> None:
        await machine.become("up", "up", "up")
        before = machine.descriptors
        async with users.asking():
            await users.more(60)
            # Killed while it streams, and started again at the same address.
            children[0].kill()
            await machine.become("down", "up", "up")
            await users.more(40)
            children[0], _ = machine.honest("a", ports[0])
            await machine.become("up", "up", "up")
            assert users.ends["broken"] > 0
            # It answers 500.
            broken = users.ends["broken"]
            children[1].send_signal(signal.SIGUSR1)
            await machine.become("up", "down", "up")
            await users.more(40)
            children[1].send_signal(signal.SIGUSR2)
            await machine.become("up", "up", "up")
            assert users.ends["broken"] == broken  # nothing had been sent of what it did not answer
            # It freezes and wakes, with connections that were used.
            os.kill(children[2].pid, signal.SIGSTOP)
            await machine.become("up", "up", "down")
            await users.more(40)
            os.kill(children[2].pid, signal.SIGCONT)
            await machine.become("up", "up", "up")
            await users.more(60)
        assert set(users.ends) <= {"right", "broken"}, users.ends
        await well(machine, *ports)
        await back_to(machine, before)

    run(go(), 120)


def test_a_slow_replica_is_used_and_right(machine: Machine) -> None:
    ports = [machine.honest("a")[1], machine.honest("b", slow=0.3)[1]]
    machine.settings = machine.settings.replace("timeout = 0.5", "timeout = 20")
    machine.route(*ports)

    async def go() -> None:
        await machine.become("up", "up")
        bodies = [{"prompt": [n] * 9, "max_tokens": 4, "stream": n % 2 == 0} for n in range(8)]
        got = await asyncio.gather(*[machine.ask(body) for body in bodies])
        assert [judge(*pair) for pair in zip(bodies, got, strict=True)] == ["right"] * 8
        assert {one.headers["x-kvstrata-replica"] for one in got} == {"r0", "r1"}
        assert await machine.states() == ["up", "up"]
        await well(machine, *ports)

    run(go())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_router_that_is_restarted_under_load_answers_nothing_wrongly(
    machine: Machine, ends: str, number: signal.Signals
) -> None:
    """And soon knows again what the engines hold."""
    ports = [
        machine.honest(name, events=f"{ends}/{name}", replay=f"{ends}/{name}r")[1] for name in "ab"
    ]
    machine.settings += f'state = "{machine.directory}/learned.json"\n'
    # Nobody is down here: a busy machine must not look as if.
    settings = machine.settings.replace("timeout = 0.5", "timeout = 20")
    machine.settings = settings.replace("round-robin", "seconds").replace("0.3", "2")
    machine.route(*ports)
    users = Users(machine, 12)

    async def go() -> None:
        await machine.become("up", "up")
        async with users.asking():
            await users.more(60)
            machine.router.send_signal(number)
            while machine.router.poll() is None:
                await asyncio.sleep(0.02)
            ended = machine.router
            await asyncio.to_thread(machine.route, *ports, port=machine.port)
            await machine.become("up", "up")
            await users.more(60)
        assert set(users.ends) <= {"right", "refused", "cut"}, users.ends
        if number == signal.SIGTERM:
            assert ended.returncode == 0 and not users.ends["cut"]
        await well(machine, *ports)
        body = {"prompt": [*range(100)]}
        found = (-1, 0)
        while found != (96, 96):
            got = await machine.ask(body)
            assert judge(body, got) == "right"
            found = await foreseen_and_cached(machine, got)

    run(go(), 120)


async def foreseen_and_cached(machine: Machine, got: Got) -> tuple[int, int]:
    """Tokens that the chosen replica was said to hold, and that it said it had."""
    path = f"/v1/route/decisions/{got.headers['x-kvstrata-decision']}"
    while (record := (await machine.get(path)).json)["outcome"] is None:
        await asyncio.sleep(0.02)
    chosen = next(one for one in record["considered"] if one["replica"] == record["chosen"])
    return (chosen["reuse"] or {"device": {"tokens": -1}})["device"]["tokens"], record["outcome"][
        "cached_tokens"
    ]


def test_thousand_silent_and_half_asking_clients_keep_nobody_out(machine: Machine) -> None:
    ports = [machine.honest("a")[1]]
    machine.settings += "engine_keepalive = 0.5\nhead_timeout = 4\nbody_timeout = 4\n"
    machine.route(*ports)

    async def go() -> None:
        await machine.become("up")
        before, open_before = machine.resident, machine.descriptors
        silent = [await machine.wire() for _ in range(1000)]
        half = [await machine.wire() for _ in range(100)]
        for number, wire in enumerate(half):
            whole = post({"prompt": "x" * 5000})
            await wire.send(whole[: 1 + number * 50])
        while machine.descriptors < 1100:
            await asyncio.sleep(0.05)
        for number in range(20):
            body = {"prompt": [number] * 20}
            assert judge(body, await machine.ask(body)) == "right"
        assert machine.resident - before < 64 * MIB
        answers = [await wire.answer() for wire in half]
        assert {(one.status, one.code) for one in answers} == {(408, "request_timeout")}
        assert all([await wire.closed() for wire in silent])
        for wire in silent + half:
            wire.close()
        await back_to(machine, open_before)
        assert await machine.counted(ports[0], "honest:served") == 20
        await well(machine, *ports)

    run(go())


def test_bodies_of_100_mib_are_refused_and_not_kept(machine: Machine) -> None:
    ports = [machine.honest("a")[1]]
    machine.route(*ports)
    piece = b"100000\r\n" + b" " * MIB + b"\r\n"

    async def go() -> None:
        await machine.become("up")
        before = machine.resident

        async def send(told: bool) -> None:
            wire = await machine.wire()
            framing = b"content-length: 104857600" if told else b"transfer-encoding: chunked"
            await wire.send(HEAD + framing + b"\r\n\r\n")
            try:
                for _ in range(100):
                    await wire.send(b" " * MIB if told else piece)
            except ConnectionError:
                pass  # it stopped reading; its answer was sent before
            got = await wire.answer()
            assert (got.status, got.code) == (413, "body_too_large")
            wire.close()

        await asyncio.gather(send(True), send(False))
        await send(False)
        assert machine.resident - before < 96 * MIB  # of 64 MiB that a body may have
        assert await machine.counted(ports[0], "honest:served") == 0
        body = {"prompt": [1] * 20}
        assert judge(body, await machine.ask(body)) == "right"
        await well(machine, *ports)

    run(go())
