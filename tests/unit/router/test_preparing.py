"""A router answers at once, by load, and by its policy as soon as that is compiled."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvstrata.compiled import Kept
from kvstrata.router import preparing, service
from kvstrata.router.fleet_chooser import FleetChooser
from tests.unit.router.router_lab import ask, fleet, run, until
from tests.unit.router.stub_engine import StubEngine

MORE = int(os.environ.get("KVSTRATA_MORE_CASES", "1"))
PROMPT = {"model": "tiny", "prompt": list(range(400))}


@pytest.fixture
def first_start(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Nothing is kept, and compiling ends when the event is set."""
    done = asyncio.Event()

    async def elsewhere() -> bool:
        await done.wait()
        return True

    for module in (preparing, service):
        monkeypatch.setattr(module, "kept", lambda modules: Kept.SOME)
    monkeypatch.setattr(preparing, "compile_elsewhere", elsewhere)
    return done


def test_a_first_start_serves_at_once_and_knows_better_later(
    first_start: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def go() -> None:
        engines = [StubEngine("a"), StubEngine("b")]
        async with fleet(*engines, policy="seconds") as router:
            chooser = router.application.chooser
            assert isinstance(chooser, FleetChooser)
            assert (await ask(router, PROMPT)).status == 200
            assert not chooser._started
            first_start.set()
            await until(lambda: chooser._started)
            assert (await ask(router, PROMPT)).status == 200

    run(go())
    told = [one.getMessage() for one in caplog.records if one.name == preparing.__name__]
    assert len(told) == 2 and "by load until" in told[0] and "what each replica holds" in told[1]


def test_a_router_that_ends_while_it_compiles_ends(first_start: asyncio.Event) -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="seconds") as router:
            assert (await ask(router, PROMPT)).status == 200
        assert not first_start.is_set()

    run(go())


@pytest.mark.parametrize("state", [Kept.NOWHERE, Kept.SOME])
def test_where_nothing_can_be_compiled_requests_go_by_load(
    state: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> bool:
        return False

    monkeypatch.setattr(preparing, "kept", lambda modules: state)
    monkeypatch.setattr(preparing, "compile_elsewhere", fails)
    started: list[int] = []
    asyncio.run(preparing.bring(lambda: started.append(1)))
    assert not started
    assert "routed by load alone" in caplog.records[-1].getMessage()


def test_a_process_that_cannot_compile_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'MemoryError: no room' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(preparing.sys, "executable", str(script))
    assert not asyncio.run(preparing.compile_elsewhere())
    assert "code 3: MemoryError: no room" in caplog.records[-1].getMessage()


def test_a_compiling_process_does_not_outlive_its_router(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setattr(preparing.sys, "executable", str(script))

    async def go() -> None:
        task = asyncio.create_task(preparing.compile_elsewhere())
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(go())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def state_in(cache: str, then: str = "") -> str:
    code = (
        "from kvstrata.router import preparing\n"
        f"{then}\n"
        "from kvstrata.compiled import kept\n"
        "print(kept(preparing.MODULES).value)"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_what_is_kept_is_seen_without_compiling(tmp_path: Path) -> None:
    assert state_in(str(tmp_path)) == "some"
    assert not list(tmp_path.rglob("*.nbi"))


@pytest.mark.skipif(MORE == 1, reason="compiles for a minute")
def test_two_processes_that_compile_at_once_fill_one_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "kvstrata.router.preparing"]
    children = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    assert state_in(str(tmp_path)) == "all"
    assert state_in(str(tmp_path), "preparing.warm()") == "all"
