"""A server is awaited, its death is explained, and nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import server as harness
from lab.client import Answer
from lab.server import EngineServer, ServerError
from tests.unit.lab_harness import fake_engine

FAKE = fake_engine.__file__


class FakeServer(EngineServer):
    """Runs a command of the test's choice in place of vLLM."""

    def __init__(self, folder: Path, *arguments: str, command: list[str] | None = None) -> None:
        super().__init__("llama", folder / "logs" / "server.log")
        self.pids = folder / "pids"
        self._command = command or [
            sys.executable, FAKE, str(self.port), str(self.pids), *arguments
        ]  # fmt: skip

    def process_ids(self) -> list[int]:
        return [int(word) for word in self.pids.read_text().split()]


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ensure", lambda name: Path("models") / name)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true before patience ends."""
    for _ in range(300):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_it_answers_and_leaves_nothing(tmp_path: Path) -> None:
    with FakeServer(tmp_path) as server:
        assert server.client.healthy()
        server.warm_up(3)
        running = server.process_ids()
        assert all(alive(pid) for pid in running)
    # The child takes no notice of its parent's end, so only the group's end reaches it.
    assert eventually(lambda: not any(alive(pid) for pid in running))
    server.stop()  # a second time does nothing


def test_sigterm_ignored_is_followed_by_sigkill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "STOP_SECONDS", 0.3)
    with FakeServer(tmp_path, "ignore-sigterm") as server:
        running = server.process_ids()
    assert eventually(lambda: not any(alive(pid) for pid in running))


def test_death_at_the_start_shows_status_and_log(tmp_path: Path) -> None:
    code = "import sys; print('no such model'); sys.exit(3)"
    server = FakeServer(tmp_path, command=[sys.executable, "-c", code])
    with pytest.raises(ServerError, match=r"status 3\n(.|\n)*no such model"):
        server.start()


def test_silence_at_the_start_is_an_error_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "START_SECONDS", 1.0)
    pids = tmp_path / "pids"
    code = f"import os, time; open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    server = FakeServer(tmp_path, command=[sys.executable, "-c", code])
    with pytest.raises(ServerError, match="no answer within 1 s"):
        server.start()
    assert not pids.exists() or not alive(int(pids.read_text()))


def test_it_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = {[str(Path.cwd())]!r}
from pathlib import Path
from tests.unit.lab_harness import test_engine_server
test_engine_server.harness.ensure = lambda name: Path(name)
server = test_engine_server.FakeServer(Path({str(tmp_path)!r}))
server.start()
print("started", flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout and parent.stdout.readline() == b"started\n"
        leader, child = (int(word) for word in (tmp_path / "pids").read_text().split())
        parent.kill()
    assert eventually(lambda: not alive(leader))
    os.kill(child, signal.SIGKILL)  # a real engine core watches its parent; this one does not


class Gauges:
    """A client whose engine publishes one row of metrics after the other, the last one for ever."""

    def __init__(self, *rows: dict[str, float]) -> None:
        self.rows = list(rows)
        self.asked = 0

    def complete(self, prompt: list[int], max_tokens: int) -> Answer:
        self.asked += 1
        return Answer((), 0, 0, 0)

    def metrics(self) -> dict[str, float]:
        return self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]

    def close(self) -> None:
        pass


CHUNKS, QUEUE = harness.IDLE_GAUGES


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gauges]:
    """Lets a server wait for what the given rows say, and gives back the client it asked."""

    def wait(*rows: dict[str, float], seconds: float = 30) -> Gauges:
        server = FakeServer(tmp_path)
        server.client.close()
        server.log.parent.mkdir(exist_ok=True)
        server.log.write_text("the log's end")
        gauges = Gauges(*rows)
        monkeypatch.setattr(server, "client", gauges)
        server.wait_idle(seconds)
        return gauges

    return wait


def test_idle_is_when_both_gauges_are_zero(waits: Callable[..., Gauges]) -> None:
    done = {CHUNKS: 0.0, QUEUE: 0.0}
    gauges = waits({CHUNKS: 2.0, QUEUE: 0.0}, {CHUNKS: 0.0, QUEUE: 1.0}, done)
    assert gauges.asked == 3  # a step each, or nothing new would be published


def test_what_is_not_published_is_not_idle(waits: Callable[..., Gauges]) -> None:
    with pytest.raises(ServerError, match=r"still writing(.|\n)*the log's end"):
        waits({QUEUE: 0.0}, seconds=0.5)


def test_the_command_says_what_was_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stock = EngineServer("llama", log)
    assert "--kv-transfer-config" not in stock._command
    assert "--disable-hybrid-kv-cache-manager" not in stock._command
    ours = EngineServer("llama", log, kv={"path": "kv"}, hybrid=False, processes=True, threads=3)
    transfer = ours._command[ours._command.index("--kv-transfer-config") + 1]
    assert '"kv_connector_extra_config": {"path": "kv"}' in transfer
    assert "--disable-hybrid-kv-cache-manager" in ours._command
    assert ours._environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert ours._environment["OMP_NUM_THREADS"] == "3"
