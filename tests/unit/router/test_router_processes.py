"""Router and engines as processes of their own: killed, frozen, restarted and drained under load."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.router.router_lab import Wire, post, run, until
from tests.unit.router.router_machine import Machine
from tests.unit.router.stub_engine import stream_bytes


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def test_a_killed_replica_costs_its_streams_and_nothing_else(machine: Machine) -> None:
    (first, one), (_, two) = machine.engine("a"), machine.engine("b")
    machine.route(one, two)

    async def go() -> None:
        await machine.become("up", "up")
        body = {"stream": True, "max_tokens": 50, "pause": 0.03}
        streams = [asyncio.create_task(machine.ask(body)) for _ in range(10)]
        waiting = [asyncio.create_task(machine.ask({"wait": 1})) for _ in range(10)]
        await asyncio.sleep(0.5)
        first.kill()
        whole = stream_bytes("/v1/completions", 50)
        got = await asyncio.gather(*streams)
        for answer in got:
            told = b"replica_failed_mid_stream" in answer.body
            assert answer.body == whole if answer.whole else told
        assert 0 < sum(one.whole for one in got) < 10
        assert [one.status for one in await asyncio.gather(*waiting)] == [200] * 10
        await machine.become("down", "up")
        assert [(await machine.ask({})).status for _ in range(6)] == [200] * 6
        machine.engine("a again", one)
        await machine.become("up", "up")
        names = {(await machine.ask({})).json["id"] for _ in range(6)}
        assert names == {"a again", "b"}

    run(go())


def test_a_frozen_replica_loses_its_requests_to_others(machine: Machine) -> None:
    (first, one), (_, two) = machine.engine("a"), machine.engine("b")
    machine.route(one, two)

    async def go() -> None:
        await machine.become("up", "up")
        os.kill(first.pid, signal.SIGSTOP)
        try:
            got = await asyncio.gather(*[machine.ask({}) for _ in range(10)])
            assert [answer.status for answer in got] == [200] * 10
            assert {answer.json["id"] for answer in got} == {"b"}
            await machine.become("down", "up")
        finally:
            os.kill(first.pid, signal.SIGCONT)
        await machine.become("up", "up")
        assert {(await machine.ask({})).json["id"] for _ in range(6)} == {"a", "b"}

    run(go())


def test_the_last_replica_down_is_told_at_once(machine: Machine) -> None:
    (first, one) = machine.engine("a")
    machine.route(one)

    async def go() -> None:
        await machine.become("up")
        first.kill()
        first.wait(10)
        got = await machine.ask({})
        assert got.status in (502, 503) and got.json["error"]["message"]
        await machine.become("down")
        got = await machine.ask({})
        assert got.status == 503 and "r0 is down" in got.json["error"]["message"]

    run(go())


def test_draining_under_load_drops_nothing(machine: Machine) -> None:
    (_, one), (_, two) = machine.engine("a"), machine.engine("b")
    machine.route(one, two)
    done, refused = [0], [0]

    async def user() -> None:
        wire = None
        while True:
            try:
                wire = wire or await Wire.open(machine)  # type: ignore[arg-type]
            except ConnectionError:
                refused[0] += 1
                return
            await wire.send(post({"stream": True, "max_tokens": 5, "pause": 0.01}))
            got = await wire.answer()
            assert got.whole and got.body == stream_bytes("/v1/completions", 5)
            done[0] += 1
            if got.headers.get("connection") == "close":
                wire.close()
                wire = None

    async def go() -> None:
        await machine.become("up", "up")
        users = [asyncio.create_task(user()) for _ in range(20)]
        await until(lambda: done[0] > 100)
        machine.router.send_signal(signal.SIGTERM)
        await asyncio.gather(*users)
        assert refused[0] == 20
        await until(lambda: machine.router.poll() is not None)
        assert machine.router.returncode == 0

    run(go())


def test_the_file_is_read_again_on_a_signal(machine: Machine) -> None:
    (_, one), (_, two) = machine.engine("a"), machine.engine("b")
    machine.route(one)

    async def go() -> None:
        await machine.become("up")
        machine.config.write_text("replicas = 3")
        machine.router.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.2)
        assert (await machine.ask({})).json["id"] == "a"
        machine.write(one, two)
        machine.router.send_signal(signal.SIGHUP)
        await machine.become("up", "up")
        assert {(await machine.ask({})).json["id"] for _ in range(4)} == {"a", "b"}

    run(go())


def test_what_the_command_cannot_use_is_told_in_one_line(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "kvstrata.cli.main", "route", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
        return " ".join(ended.stderr.split())

    assert "--replica" in told()
    assert "without a path" in told("--replica", "http://127.0.0.1:1/v1")
    assert "least-loaded" in told("--replica", "http://127.0.0.1:1", "--policy", "best")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen" in told("--replica", "http://127.0.0.1:1", "--port", port)
