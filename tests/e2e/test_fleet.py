"""A fleet that comes late, dies, or sees its engine die knows what the engine holds all the same."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstrata.cli.fleet_following import explanations
from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet, warm
from kvstrata.fleet.replica import Address
from kvstrata.wire.snapshot import Place
from lab.models import prompt_ids
from tests.e2e.engine import Engine

pytestmark = pytest.mark.engine

SECONDS = 20.0
RESULTS = Path(__file__).resolve().parents[2] / "build" / "fleet-recovery.json"
"""How long each recovery took, for whoever wants to see it."""


@pytest.fixture
def ends() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        yield {"endpoint": f"ipc://{directory}/e", "replay_endpoint": f"ipc://{directory}/r"}


@pytest.fixture
def fleets() -> Iterator[Callable[[dict[str, str]], Fleet]]:
    made: list[Fleet] = []
    warm()

    def begin(ends: dict[str, str]) -> Fleet:
        made.append(Fleet())
        made[-1].add(Address("a", ((ends["endpoint"], ends["replay_endpoint"]),)))
        return made[-1]

    yield begin
    for fleet in made:
        fleet.stop()


def until(fleet: Fleet, done: Callable[[], bool]) -> float:
    """Follow until it is so; seconds that it took."""
    begun = time.monotonic()
    while not done():
        assert time.monotonic() < begun + SECONDS, json.dumps(fleet.as_dict(), indent=1)
        fleet.poll(0.01)
    return time.monotonic() - begun


def caught_up(fleet: Fleet, last: int) -> bool:
    status = fleet.status(fleet.replica("a").ranks[0])
    return status.trust is Trust.SYNCED and status.sequence >= last


def settle(engine: Engine) -> int:
    """Nothing is being stored any more, and what that changed is told; number of the last batch."""
    assert engine.do("idle")
    engine.ask([33, 34, 35], max_tokens=1)  # what happens between steps is told with the next one
    return engine.do("published")


def files(directory: Path) -> dict[int, int]:
    """Chunks on storage, by group."""
    return Counter(int(path.suffixes[-2].removeprefix(".g")) for path in directory.rglob("*.g*.kv"))


def check(fleet: Fleet, engine: Engine, directory: Path) -> None:
    """The index holds what the device's block pool and the directory hold."""
    blocks = engine.do("device_blocks")
    number = fleet.replica("a").ranks[0].number
    with fleet.reading() as index:
        counts = index.counts(number)
        for group, value, _ in blocks:
            held = index_holds(fleet, group, value)
            assert held, f"group {group} lacks {value}"
    device = {p.group: n for p, n in counts.items() if p.medium == "GPU"}
    assert device == Counter(group for group, _, _ in blocks)
    storage = {p.group: n for p, n in counts.items() if p.medium == "STORAGE"}
    assert storage == files(directory) != {}


def index_holds(fleet: Fleet, group: int, value: int) -> bool:
    from kvstrata.fleet.membership import held_of

    held = held_of(fleet.index, fleet.replica("a").ranks[0].number, np.array([value], np.uint64))
    return Place("GPU", group) in held


def predicted(fleet: Fleet, prompt: list[int]) -> int:
    told = explanations(fleet, np.array(prompt, np.uint32), None)[0]
    assert told["trust"] == "synced" and not told["notes"], told
    return told["reuse"]["storage"]["tokens"]


def test_late_killed_and_restarted(
    start: Any, fleets: Callable[[dict[str, str]], Fleet], ends: dict[str, str], tmp_path: Path
) -> None:
    seconds: dict[str, float] = {}
    kv = tmp_path / "kv"
    engine = start("gemma3-1to1", events=ends)
    for seed in range(3):
        engine.ask(prompt_ids(900, seed=seed), max_tokens=8)
    last = settle(engine)

    fleet = fleets(ends)
    seconds["late start"] = until(fleet, lambda: caught_up(fleet, last))
    check(fleet, engine, kv)
    rank = fleet.replica("a").ranks[0]
    assert rank.told is not None and rank.told.storage and fleet.findings() == ()
    first_epoch = fleet.status(rank).epoch

    # Another takes its place, while more was published.
    fleet.stop()
    engine.ask(prompt_ids(900, seed=3), max_tokens=8)
    last = settle(engine)
    fleet = fleets(ends)
    seconds["killed and started again"] = until(fleet, lambda: caught_up(fleet, last))
    check(fleet, engine, kv)
    prompt = prompt_ids(900, seed=1)
    said = predicted(fleet, prompt)
    assert engine.ask(prompt, max_tokens=1)[0]["cached"] == said > 0

    engine.kill()
    rank = fleet.replica("a").ranks[0]
    seconds["engine's death noticed"] = until(
        fleet, lambda: fleet.status(rank).trust is Trust.STALE
    )
    engine = start("gemma3-1to1", events=ends)
    seconds["after the engine's restart"] = until(fleet, lambda: caught_up(fleet, -1))
    assert fleet.status(rank).epoch not in (None, first_epoch)
    last = settle(engine)
    until(fleet, lambda: caught_up(fleet, last) and told_of_files(fleet, kv))
    check(fleet, engine, kv)
    said = predicted(fleet, prompt)
    assert engine.ask(prompt, max_tokens=1)[0]["cached"] == said > 0, "from storage alone"
    last = settle(engine)
    seconds["next batches"] = until(fleet, lambda: caught_up(fleet, last))
    check(fleet, engine, kv)
    assert fleet.findings() == ()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({name: round(value, 3) for name, value in seconds.items()}) + "\n"
    )


def told_of_files(fleet: Fleet, directory: Path) -> bool:
    with fleet.reading() as index:
        counts = index.counts(fleet.replica("a").ranks[0].number)
    return {p.group: n for p, n in counts.items() if p.medium == "STORAGE"} == files(directory)


def test_an_engine_without_our_connector_is_understood_by_its_events(
    start: Any, fleets: Callable[[dict[str, str]], Fleet], ends: dict[str, str]
) -> None:
    engine = start("gemma3-1to1", {}, events=ends)
    fleet = fleets(ends)
    until(fleet, lambda: caught_up(fleet, -1))
    assert fleet.replica("a").facts is None
    prompt = prompt_ids(900, seed=1)
    engine.ask(prompt, max_tokens=8)
    last = engine.do("published")
    until(fleet, lambda: caught_up(fleet, last))
    facts = fleet.replica("a").facts
    assert facts is not None and fleet.findings() == ()
    assert [group.kind for group in facts.groups] == ["full", "window"] or [
        group.kind for group in facts.groups
    ] == ["window", "full"]
    said = predicted(fleet, prompt)
    assert engine.ask(prompt, max_tokens=1)[0]["cached"] == said > 0
