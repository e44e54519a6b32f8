"""What a router hears of storage besides an engine's steps, and how the manager names it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_offload.base import Locality, Medium, OffloadingEvent

from kvstrata import metrics as m
from kvstrata.chunks.key import ChunkKey, group_of, hash_of, make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.place import PLACE_FILE
from kvstrata.vllm_plugin import announcer as module
from kvstrata.vllm_plugin.announcer import Announcer
from kvstrata.wire.batches import decode_any
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import EngineFacts, Place
from tests.unit.vllm_plugin.test_manager import (
    BY_GROUP,
    GEOMETRIES,
    Engine,
    keys_of,
    payload,
    wait_for,
)

FACTS = EngineFacts("tiny", "sha256", b"", 16, 16, ())
SPACE = Namespace("tiny", {"weights": "abc"})


class Publisher:
    """Notes what is published, as it would come over the wire."""

    events_endpoint = "ipc:///run/e"
    snapshots_endpoint = "ipc:///run/e.replay"

    def __init__(self) -> None:
        self.contents = Contents()
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def publish(self, batch: Any) -> None:
        self.gate.wait(10)
        batch.data_parallel_rank = 0
        found = decode_any(msgspec.msgpack.encode(batch))
        assert not found.skipped
        self.sizes.append(sum(len(event.hashes) for event in found.events))  # type: ignore[union-attr]
        self.contents.apply(found)

    def may_hold(self, place: Place, value: int) -> bool:
        return value in self.contents.held.get(place, ())


def number(key: ChunkKey) -> int:
    return int.from_bytes(hash_of(key)[-8:], "big")


def tier(root: Path) -> FilesystemTier:
    tier = FilesystemTier(root, SPACE, BY_GROUP)
    tier.prepare()
    tier.introduce()
    return tier


def write(tier: FilesystemTier, keys: list[ChunkKey]) -> None:
    for key in keys:
        tier.write(key, memoryview(payload(key)))


def keys_at(count: int) -> list[ChunkKey]:
    return [make_key(i.to_bytes(4, "big") * 8, g.group) for g in GEOMETRIES for i in range(count)]


def told(publisher: Publisher, owner: str | None) -> set[tuple[int, int]]:
    assert all(place.owner == owner for place in publisher.contents.held)
    return {(p.group, value) for p, values in publisher.contents.held.items() for value in values}


@pytest.fixture
def announcers() -> Iterator[list[Announcer]]:
    made: list[Announcer] = []
    yield made
    for announcer in made:
        announcer.stop()


def ended(announcer: Announcer) -> bool:
    return announcer._thread is not None and not announcer._thread.is_alive()


def test_what_lies_there_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announcers: list[Announcer]
) -> None:
    monkeypatch.setattr(module, "SLICE", 16)
    storage, publisher = tier(tmp_path), Publisher()
    write(storage, keys := keys_at(50))
    (storage.directory / "ab" / "cd").mkdir(parents=True)
    (storage.directory / "ab" / "cd" / "foreign.kv").write_bytes(b"")
    announcers.append(announcer := Announcer(FACTS))
    announcer.use(storage)
    announcer.connected(publisher)  # type: ignore[arg-type]
    wait_for(lambda: ended(announcer))
    assert told(publisher, storage.owner) == {(group_of(key), number(key)) for key in keys}
    assert max(publisher.sizes) == 16 and sum(publisher.sizes) == 100
    assert all(announcer.announced(key) for key in keys)
    assert not announcer.announced(make_key(b"\xff" * 32, 0))


def test_very_many_files_are_told_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announcers: list[Announcer]
) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    storage, publisher = tier(tmp_path), Publisher()
    write(storage, keys_at(20))
    announcers.append(announcer := Announcer(FACTS))
    announcer.use(storage)
    announcer.connected(publisher)  # type: ignore[arg-type]
    wait_for(lambda: ended(announcer))
    assert sum(publisher.sizes) == 10


@pytest.mark.parametrize("how", ["stop", "reset"])
def test_it_ends_when_nobody_is_to_hear_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announcers: list[Announcer], how: str
) -> None:
    monkeypatch.setattr(module, "SLICE", 1)
    storage, publisher = tier(tmp_path), Publisher()
    write(storage, keys_at(20))
    announcers.append(announcer := Announcer(FACTS))
    announcer.use(storage)
    publisher.gate.clear()
    announcer.connected(publisher)  # type: ignore[arg-type]
    announcer.stop() if how == "stop" else announcer.use(None)
    monkeypatch.setattr(module, "WORK_SECONDS", 0.0)  # it looks up after each
    publisher.gate.set()
    wait_for(lambda: ended(announcer))
    assert len(publisher.sizes) < 40


def test_nothing_is_told_where_the_option_says_so(tmp_path: Path) -> None:
    announcer = Announcer(FACTS, look_through=False)
    announcer.use(tier(tmp_path))
    announcer.connected(Publisher())  # type: ignore[arg-type]
    assert announcer._thread is None


def test_an_error_ends_the_thread_and_nothing_else(
    tmp_path: Path, announcers: list[Announcer], caplog: pytest.LogCaptureFixture
) -> None:
    storage, publisher = tier(tmp_path), Publisher()
    write(storage, keys_at(3))
    publisher.publish = lambda batch: 1 / 0  # type: ignore[method-assign, assignment]
    announcers.append(announcer := Announcer(FACTS))
    announcer.use(storage)
    announcer.connected(publisher)  # type: ignore[arg-type]
    wait_for(lambda: ended(announcer))


def test_facts_wait_for_the_hash_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announcer = Announcer(FACTS)
    monkeypatch.delattr(kv_cache_utils, "NONE_HASH", raising=False)
    assert announcer.facts() is None
    monkeypatch.setattr(kv_cache_utils, "NONE_HASH", b"\2" * 32, raising=False)
    announcer.use(storage := tier(tmp_path))
    facts = announcer.facts()
    assert facts is not None
    assert (facts.none_hash, facts.storage) == (b"\2" * 32, storage.owner)


class Followed(Engine):
    """An engine whose events are published."""

    def __init__(self, shm: Path, **options: Any) -> None:
        super().__init__(shm, **options)
        self.manager.shutdown()  # as it was made without an announcer
        self.announcer = Announcer(FACTS)
        self.publisher = Publisher()
        self.manager.start(self.arena, GEOMETRIES, self.namespace, self.announcer)
        self.announcer.connected(self.publisher)  # type: ignore[arg-type]
        self.events: list[OffloadingEvent] = []

    def step(self) -> None:
        super().step()
        self.events += self.manager.take_events()

    def take(self) -> list[OffloadingEvent]:
        self.step()
        events, self.events = self.events, []
        return events


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Followed]:
    engine = Followed(tmp_path, path=str(tmp_path / "kv"))
    yield engine
    engine.manager.shutdown()


def labels(engine: Engine) -> dict[tuple[str, ...], float]:
    stats = engine.manager.get_stats()
    return dict(stats.data["data"].get(f"vllm:{m.INFO.name}", {})) if stats is not None else {}


def test_storage_is_named_by_namespace_and_place(engine: Followed, tmp_path: Path) -> None:
    place = (tmp_path / "kv" / PLACE_FILE).read_text().strip()
    owner = f"{engine.namespace.directory_name}@{place}"
    engine.store(keys_of("a", 2))
    engine.idle()
    events = engine.take()
    named = {(e.medium, e.locality, e.ownership) for e in events}
    assert named == {(Medium.CPU, None, None), (Medium.STORAGE, Locality.REMOTE, owner)}
    (said, value), *more = labels(engine).items()
    assert value == 1 and not more
    assert said[3:] == ("ipc:///run/e", "ipc:///run/e.replay", owner)


def b_is_written(engine: Engine) -> bool:
    """Without a step in which its events would be taken."""
    return not any(map(engine.manager.cache._writes.active, keys_of("b", 1)))


def test_a_reset_is_told_and_storage_gets_another_name(engine: Followed) -> None:
    engine.store(keys_of("a", 2))
    engine.idle()
    old = engine.announcer.owner
    engine.take()
    labels(engine)
    engine.store(keys_of("b", 1))
    wait_for(lambda: engine.manager.on_schedule_end(None) or b_is_written(engine))
    engine.manager.reset_cache()
    assert engine.manager.has_pending_work()
    events = engine.take()
    gone = {key for e in events if e.removed for key in e.keys}
    assert gone == {*keys_of("a", 2), *keys_of("b", 1)}
    assert {e.medium for e in events if e.removed} == {Medium.CPU}
    assert {e.ownership for e in events if e.medium is Medium.STORAGE} == {old}
    assert engine.announcer.owner not in (None, old)
    said = labels(engine)
    assert {key[5]: value for key, value in said.items()} == {old: 0, engine.announcer.owner: 1}
    engine.store(keys_of("c", 1))
    engine.idle()
    later = engine.take()
    assert {e.ownership for e in later if e.medium is Medium.STORAGE} == {engine.announcer.owner}
