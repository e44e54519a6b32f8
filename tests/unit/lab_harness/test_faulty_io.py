"""Faults are met exactly where the rules say, and nowhere else."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.faulty_io import control
from lab.faulty_io.control import CALLS, FaultyIO, FaultyIOError, Rule

CHILD = """
import errno, json, os, sys, time

def fd(path, flags=os.O_RDONLY):
    return os.open(path, flags, 0o644)

def put(path, *parts):
    one = fd(path, os.O_WRONLY | os.O_CREAT)
    try:
        return os.pwritev(one, [part.encode() for part in parts], 0)
    finally:
        os.close(one)

def get(path, size=100, parts=2):
    one = fd(path)
    try:
        buffers = [bytearray(size // parts) for _ in range(parts)]
        count = os.preadv(one, buffers, 0)
        return b"".join(buffers)[:count].decode("latin1")
    finally:
        os.close(one)

for line in sys.stdin:
    try:
        print(json.dumps(eval(line)), flush=True)
    except OSError as error:
        print(json.dumps(errno.errorcode[error.errno]), flush=True)
"""


class Process:
    """A Python that evaluates what it is sent; an error number's name stands for an OSError."""

    def __init__(self, faults: FaultyIO) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**os.environ, **faults.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def do(self, text: str) -> Any:
        self.send(text)
        return self.answer()


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[FaultyIO]:
    (tmp_path / "d").mkdir()
    try:
        made = FaultyIO(tmp_path / "d")
    except FaultyIOError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def child(faults: FaultyIO, tmp_path: Path) -> Iterator[Process]:
    process = Process(faults)
    process.do(f"os.chdir({str(tmp_path)!r})")
    yield process
    process.process.kill()
    process.process.wait()


EACH = {
    "open": "fd('d/f')",
    "read": "get('d/f')",
    "write": "put('d/f', 'x')",
    "close": "put('d/f', 'abcdef')",
    "fsync": "os.fsync(fd('d/f'))",
    "rename": "os.rename('d/f', 'd/g')",
    "link": "os.link('d/f', 'd/g')",
    "unlink": "os.unlink('d/f')",
    "mkdir": "os.mkdir('d/m')",
    "rmdir": "os.rmdir('d/s')",
    "stat": "os.stat('d/f') and None",
    "access": "os.access('d/f', os.R_OK)",
    "list": "len(os.listdir('d'))",
    "utime": "os.utime('d/f')",
    "truncate": "os.truncate('d/f', 3)",
}


def test_every_kind_of_call_has_a_case() -> None:
    assert tuple(EACH) == CALLS


@pytest.mark.parametrize("call", CALLS)
def test_one_kind_of_call_fails_and_only_below_the_directory(
    call: str, faults: FaultyIO, child: Process, tmp_path: Path
) -> None:
    for directory in ("d", "other"):
        (tmp_path / directory / "s").mkdir(parents=True)
        (tmp_path / directory / "f").write_text("abcdef")
    faults.set([Rule(call, errno=errno.ESTALE)])
    refused = child.do(EACH[call])
    assert refused == ("ESTALE" if call != "access" else False)
    assert [one.met for one in faults.counts()] == [1]
    assert faults.totals() == {f"{call} ESTALE": 1}
    assert child.do(EACH[call].replace("d/", "other/").replace("'d'", "'other'")) != refused
    assert [one.met for one in faults.counts()] == [1]
    faults.clear()
    assert child.do(EACH[call]) != refused
    assert faults.counts() == [] and faults.totals() == {f"{call} ESTALE": 1}
    assert faults.seen()[call] == 2


def test_a_call_by_a_descriptor_of_its_directory_is_ours(faults: FaultyIO, child: Process) -> None:
    child.do("put('d/f', 'abc')")
    faults.set([Rule("open", path="f")])
    assert child.do("os.open('f', os.O_RDONLY, dir_fd=fd('d'))") == "EIO"
    faults.set([Rule("open", path="f", after=1)])
    assert child.do("os.open(f'/proc/self/fd/{fd(\"d/f\")}', os.O_RDONLY)") == "EIO"
    faults.set([Rule("read", path="f")])
    assert child.do("open('d/f').read()") == "EIO"
    assert child.do("os.read(os.open(f'/proc/self/fd/{fd(\"d/f\")}', os.O_RDONLY), 9)") == "EIO"


def test_a_descriptor_that_is_used_again_elsewhere_is_not_ours(
    faults: FaultyIO, child: Process, tmp_path: Path
) -> None:
    (tmp_path / "else").write_text("abc")
    child.do("put('d/f', 'abc')")
    faults.set([Rule("read")])
    assert child.do("get('d/f')") == "EIO"
    assert child.do("get('else')") == "abc"


def test_rules_are_met_after_so_many_and_so_many_times(faults: FaultyIO, child: Process) -> None:
    child.do("put('d/f', 'abc')")
    faults.set([Rule("read", after=2, times=2, path="f"), Rule("read", path="elsewhere")])
    found = [child.do("get('d/f')") for _ in range(6)]
    assert found == ["abc", "abc", "EIO", "EIO", "abc", "abc"]
    assert [(one.matched, one.met) for one in faults.counts()] == [(6, 2), (0, 0)]


def test_chance_depends_on_the_seed_alone(faults: FaultyIO, child: Process) -> None:
    child.do("put('d/f', 'abc')")
    runs = []
    for seed in (1, 1, 2):
        faults.set([Rule("read", probability=0.5, seed=seed)])
        runs.append([child.do("get('d/f')") for _ in range(64)])
    assert runs[0] == runs[1] != runs[2]
    assert 16 < runs[0].count("EIO") < 48


def test_short_reads_and_writes(faults: FaultyIO, child: Process) -> None:
    faults.set([Rule(["read", "write"], "short", most=4)])
    assert child.do("put('d/f', 'abc', 'def')") == 4
    assert child.do("get('d/f', size=6)") == "abcd"
    assert faults.totals() == {"read+write short": 2}


def test_wrong_bytes_and_lost_writes(faults: FaultyIO, child: Process) -> None:
    child.do("put('d/f', 'aaaaaa')")
    faults.set([Rule("read", "flip", seed=5)])
    found = [child.do("get('d/f', size=6, parts=3)") for _ in range(20)]
    bits = [sum((ord(a) ^ ord("a")).bit_count() for a in one) for one in found]
    assert bits == [1] * 20 and len(set(found)) > 5
    faults.set([Rule("write", "lose")])
    assert child.do("put('d/f', 'bbb', 'bbb')") == 6
    assert child.do("get('d/f')") == "aaaaaa"


def test_a_call_that_fails_after_it_was_done(faults: FaultyIO, child: Process) -> None:
    child.do("put('d/f', 'abc')")
    faults.set([Rule(["rename", "open"], "fail_after", errno=errno.EIO, path="g")])
    assert child.do("os.rename('d/f', 'd/g')") == "EIO"
    before = child.do("len(os.listdir('/proc/self/fd'))")
    assert child.do("get('d/g')") == "EIO"
    assert child.do("len(os.listdir('/proc/self/fd'))") == before
    faults.clear()
    assert child.do("get('d/g')") == "abc"


def test_what_hangs_goes_on_when_the_rules_change(faults: FaultyIO, child: Process) -> None:
    child.do("put('d/f', 'abc')")
    faults.set([Rule("read", "hang")])
    child.send("get('d/f')")
    deadline = time.monotonic() + 30
    while not faults.counts()[0].met and time.monotonic() < deadline:
        time.sleep(0.01)
    faults.clear()
    assert child.answer() == "abc"


def test_delays_take_their_time(faults: FaultyIO, child: Process) -> None:
    child.do("put('d/f', 'abc')")
    faults.set([Rule("read", "delay", seconds=0.2), Rule("read", errno=errno.EDQUOT)])
    begun = time.monotonic()
    assert child.do("get('d/f')") == "EDQUOT"
    assert time.monotonic() - begun >= 0.2
    assert faults.totals() == {"read delay": 1, "read EDQUOT": 1}


@pytest.mark.parametrize(("action", "left"), [("kill_before", ["f"]), ("kill_after", ["g"])])
def test_death_before_and_after_a_call(
    action: str, left: list[str], faults: FaultyIO, child: Process
) -> None:
    child.do("put('d/f', 'abc')")
    faults.set([Rule("rename", action)])
    assert child.do("os.rename('d/f', 'd/g')") is None
    assert child.process.wait() == -9
    assert [path.name for path in faults.directory.iterdir()] == left


def test_a_trace_tells_every_call_in_order(faults: FaultyIO, child: Process) -> None:
    faults.trace()
    child.do("put('d/f', 'abc', 'de')")
    child.do("os.rename('d/f', 'd/g')")
    child.do("get('d/f')")
    steps = [(one.call, one.path, one.error, one.nbytes) for one in faults.steps()]
    assert steps == [
        ("open", "f", 0, 0),
        ("write", "f", 0, 5),
        ("close", "f", 0, 0),
        ("rename", "g", 0, 0),
        ("open", "f", errno.ENOENT, 0),
    ]


@pytest.mark.parametrize("seconds", [2 * 86400.25, -86400.25])
def test_the_wall_clock_jumps_and_the_other_does_not(
    seconds: float, faults: FaultyIO, child: Process
) -> None:
    faults.jump(seconds)
    wall, other = child.do("(time.time(), time.monotonic())")
    assert abs(wall - time.time() - seconds) < 30
    assert abs(other - time.monotonic()) < 30
    faults.jump(0)
    assert abs(child.do("time.time()") - time.time()) < 30


@pytest.mark.parametrize(
    "rule",
    [Rule("reed"), Rule("read", "explode"), Rule("read", path="x" * 200), Rule("read", most=0)],
)
def test_a_rule_that_cannot_be_is_refused(rule: Rule, faults: FaultyIO) -> None:
    with pytest.raises(FaultyIOError, match="cannot be"):
        faults.set([rule])


def test_a_missing_compiler_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BUILD", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FaultyIOError, match="apt-get install gcc"):
        FaultyIO(tmp_path)
