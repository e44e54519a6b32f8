"""A writer is killed before and after each of its system calls: chunks are whole or absent, and all goes on.

The calls are not listed here: one store is recorded, and then every step of it is a place to die.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.cli.main import app
from kvstrata.tiers.catalog import iter_records
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.place import PLACE_FILE
from kvstrata.tiers.tier import Loaded, Missing, Present, Stored
from lab.faulty_io.control import FaultyIO, FaultyIOError, Rule, Step
from tests.e2e.faulty_writer import GEOMETRY, KEYS, NAMESPACE, open_tier, payload_of, write

REPOSITORY = Path(__file__).resolve().parents[2]
SIGKILLED = -9
LAST = GEOMETRY.blocks_per_chunk - 1
EMPTY: list[int] | None = None
TAILS = [LAST] * len(KEYS)
"""Chunks of which only the last block is stored, as windows leave them."""

Writer = Callable[..., int]
"""Takes what `faulty_writer.write` takes, and tells how the writer ended."""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyIO]:
    try:
        made = FaultyIO(tmp_path_factory.mktemp("torn"))
    except FaultyIOError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture(scope="module")
def writer(faults: FaultyIO) -> Iterator[Writer]:
    """Stores the chunks in a process of its own; its exit code."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("faulty_writer.py"))],
        env={**os.environ, **faults.environment(), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    commands, answers = process.stdin, process.stdout

    def run(directory: Path, **wanted: object) -> int:
        wanted["directory"] = str(directory)
        commands.write(json.dumps(wanted) + "\n")
        commands.flush()
        return int(answers.readline())

    yield run
    commands.close()
    assert process.wait(10) == 0


def read(tier: FilesystemTier, first_block: int) -> list[bool]:
    """For each chunk whether it can be read from that block on; nothing else than whole or absent will do."""
    found = []
    start = first_block * GEOMETRY.block_bytes
    for key in KEYS:
        into = bytearray(GEOMETRY.payload_bytes)
        outcome = tier.read(key, memoryview(into), first_block)
        assert isinstance(outcome, Loaded | Missing), outcome
        if isinstance(outcome, Loaded):
            assert into[start:] == payload_of(key)[start:]
        found.append(isinstance(outcome, Loaded))
    return found


def examine(root: Path, before: list[int] | None) -> None:
    """What a dead writer left harms nobody.

    Args:
        root: where it wrote whole chunks.
        before: first blocks of the chunks that were there before; None where nothing was.
    """
    namespace = root / NAMESPACE.directory_name
    tier = open_tier(root)
    assert tier.owner is not None and not tier.owner.partition("@")[2].startswith("host-")
    whole = read(tier, 0)
    if before is not None:
        assert all(read(tier, before[0])), "what was there before is gone"
    assert all(key in KEYS for key in tier.scan())
    for outcome, was_there in zip(write(root, [0] * len(KEYS)), whole, strict=True):
        assert isinstance(outcome, Present if was_there else Stored), outcome
    assert all(read(tier, 0))

    cleared = CliRunner().invoke(
        app, ["clear", "--temporary", "--older-than", "0s", "-y", str(root)]
    )
    assert cleared.exit_code == 0, cleared.output
    records = {file.path for file in iter_records(namespace)}
    assert len(records) == len(KEYS) and all(read(tier, 0))
    left = {path for path in root.rglob("*") if path.is_file()}
    assert left - records == {namespace / NAMESPACE_FILE, root / PLACE_FILE}


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
@pytest.mark.parametrize("before", [EMPTY, TAILS], ids=["nothing", "the chunks' ends"])
def test_a_writer_that_dies_at_any_step_leaves_chunks_whole_or_absent(
    faults: FaultyIO,
    writer: Writer,
    before: list[int] | None,
    together: bool,
    tmp_path: Path,
) -> None:
    numbers = iter(range(10**6))
    name = tmp_path.name

    def prepared() -> Path:
        root = faults.directory / f"{name}-{next(numbers)}"
        if before is not None:
            write(root, before, together=together)
        return root

    store = {"first_blocks": [0] * len(KEYS), "together": together}
    root = prepared()
    faults.trace()
    assert writer(root, **store) == 1
    steps = faults.steps()
    examine(root, before)
    assert_complete(steps)
    assert not together or "link" in {step.call for step in steps}, "no segment was written"
    for at, step in enumerate(steps):
        for action in ("kill_before", "kill_after"):
            root = prepared()
            faults.set([Rule("all", action, after=at, times=1)])
            died = writer(root, **store)
            faults.clear()
            assert died == SIGKILLED, f"{action} step {at}, {step}"
            try:
                examine(root, before)
            except AssertionError as error:
                raise AssertionError(f"{action} step {at}, {step}: {error}") from error


def assert_complete(steps: list[Step]) -> None:
    """What was recorded is a store: every kind of step is there that any way of publishing needs."""
    calls = {step.call for step in steps}
    assert {"open", "write", "fsync", "close"} <= calls and calls & {"rename", "link"}
    written = sum(step.nbytes for step in steps if step.call == "write")
    assert written >= len(KEYS) * GEOMETRY.payload_bytes
