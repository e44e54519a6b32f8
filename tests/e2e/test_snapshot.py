"""A real engine answers for all that it holds: on the device, in memory and in files."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from kvstrata.chunks.key import group_of, hash_of, parse_file_name
from kvstrata.wire.snapshot import ANSWER, END, EngineFacts, Place, Question, Snapshot, decode
from lab.models import prompt_ids
from tests.e2e.engine import Engine

pytestmark = pytest.mark.engine

MODEL = "gemma3-1to1"
SECONDS = 20.0
Held = Counter[tuple[int, int]]
"""How often each (group, low 64 bits of the hash) is held."""


class Asker:
    """Asks an engine over its replay socket."""

    def __init__(self, endpoint: str) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.connect(endpoint)

    def ask(self, question: Question = Question.SNAPSHOT) -> Snapshot:
        self._socket.send_multipart([b"", question.value])
        parts = []
        while self._socket.poll(10_000):
            _, _, number, part = self._socket.recv_multipart()
            if number == END:
                return decode(parts)
            assert number == ANSWER
            parts.append(part)
        raise AssertionError("the engine does not answer")

    def close(self) -> None:
        self._socket.close(linger=0)


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        yield f"ipc://{directory}/e"


@pytest.fixture
def asker(endpoint: str) -> Iterator[Asker]:
    asker = Asker(f"{endpoint}.replay")  # where an engine that was given none puts it
    yield asker
    asker.close()


def told(snapshot: Snapshot, medium: str, owner: str | None = None) -> Held:
    held: Held = Counter()
    for place, (hashes, again) in snapshot.held.items():
        if (place.medium, place.owner) == (medium, owner):
            for value in (*hashes.tolist(), *again.tolist()):
                held[place.group, value] += 1
    return held


def number(key: bytes) -> tuple[int, int]:
    return group_of(key), int.from_bytes(hash_of(key)[-8:], "big")


def on_device(engine: Engine) -> Held:
    return Counter({(group, value): n for group, value, n in engine.do("device_blocks")})


def in_memory(engine: Engine) -> Held:
    return Counter(number(bytes.fromhex(key)) for key in engine.do("memory_chunks"))


def in_files(root: Path, owner: str | None) -> Held:
    assert owner is not None
    directory = root / owner.partition("@")[0]
    names = (path.name for path in directory.rglob("*.kv"))
    return Counter(number(key) for name in names if (key := parse_file_name(name)) is not None)


def facts_of(snapshot: Snapshot) -> EngineFacts:
    assert snapshot.header.facts is not None
    return snapshot.header.facts


def compare(engine: Engine, asker: Asker, root: Path) -> Snapshot:
    """The snapshot of an idle engine is what it holds, exactly."""
    assert engine.do("idle")
    last = engine.do("published")
    snapshot = asker.ask()
    assert snapshot.header.sequence == last
    owner = facts_of(snapshot).storage
    assert told(snapshot, "GPU") == on_device(engine)
    assert told(snapshot, "CPU") == in_memory(engine)
    assert told(snapshot, "STORAGE", owner) == in_files(root, owner)
    assert {(place.medium, place.owner) for place in snapshot.held} <= {
        ("GPU", None),
        ("CPU", None),
        ("STORAGE", owner),
    }
    return snapshot


def info(engine: Engine) -> dict[str, str]:
    """Labels of the info metric whose value is 1."""
    (name,) = (
        name
        for name, value in engine.do("metrics").items()
        if name.startswith("info{") and value == 1
    )
    pairs = (pair.partition("=") for pair in name[len("info{") : -1].split(","))
    return {key: value for key, _, value in pairs}


def start_engine(start: Any, endpoint: str, root: Path) -> Engine:
    tight = {"engine": {"num_gpu_blocks_override": 40}, "max_model_len": 2048}
    extra = {"path": str(root), "memory": "8MiB"}
    return start(MODEL, extra, events={"endpoint": endpoint, "buffer_steps": 4}, **tight)


def test_an_engine_answers_for_what_it_holds(
    start: Any, endpoint: str, asker: Asker, tmp_path: Path
) -> None:
    """Over evictions from device and memory, with a ring too short to replay it."""
    root = tmp_path / "kv"
    engine = start_engine(start, endpoint, root)
    compare(engine, asker, root)
    for seed in (1, 2, 1, 3, 4):
        engine.ask(prompt_ids(900 + 50 * seed, seed=seed), max_tokens=20)
        snapshot = compare(engine, asker, root)
    assert all(told(snapshot, medium) for medium in ("GPU", "CPU"))
    first, facts = snapshot, facts_of(snapshot)
    assert first.header.sequence > 4 and len(first.header.recent) == 4
    shape = engine.do("shape")
    assert facts.hash_tokens == shape["hash_tokens"]
    assert facts.alignment_tokens == shape["block_tokens"]
    assert [
        (g.group, g.kind, g.tokens_per_block, g.blocks_per_chunk, g.window_tokens)
        for g in facts.groups
    ] == [
        (
            g["group"],
            g["kind"],
            g["tokens_per_block"],
            g["blocks_per_chunk"],
            g["window_tokens"],
        )
        for g in shape["groups"]
    ]
    assert facts.device_blocks == 40 and len(facts.none_hash) == 32
    said = info(engine)
    assert said["events"] == endpoint and said["snapshots"] == f"{endpoint}.replay"
    assert said["storage"] == facts.storage

    removed_files(engine, asker, root)
    reset(engine, asker, root)
    engine.stop()
    restarted(start_engine(start, endpoint, root), asker, root, first)


def removed_files(engine: Engine, asker: Asker, root: Path) -> None:
    """As after `kvstrata clear`: the next request that misses them makes it known."""
    prompt = prompt_ids(1000, seed=7)
    engine.ask(prompt)
    before = compare(engine, asker, root)
    owner = facts_of(before).storage
    assert owner is not None
    keys = engine.do("hashes", prompt=prompt)
    for path in (root / owner.partition("@")[0]).rglob("*.kv"):
        if path.name.split(".")[0] in keys:
            path.unlink()
    for seed in (11, 12, 13):  # nothing of it stays on the device or in memory
        engine.ask(prompt_ids(1900, seed=seed))
    assert engine.do("idle") and engine.do("reset_device")
    engine.ask(prompt)
    compare(engine, asker, root)


def reset(engine: Engine, asker: Asker, root: Path) -> None:
    """All tiers of the engine are empty, and it turns to a storage of another name, without a request."""
    old = facts_of(asker.ask(Question.STATE)).storage
    assert engine.do("reset_all")
    snapshot = compare(engine, asker, root)
    assert snapshot.held == {} and facts_of(snapshot).storage != old
    engine.ask(prompt_ids(700, seed=8))
    assert told(compare(engine, asker, root), "STORAGE", facts_of(asker.ask()).storage)


def restarted(engine: Engine, asker: Asker, root: Path, before: Snapshot) -> None:
    """Another life, whose files were there before it: they are told without a request."""
    deadline = time.monotonic() + SECONDS
    while True:
        snapshot = asker.ask()
        facts = facts_of(snapshot)
        if told(snapshot, "STORAGE", facts.storage) == in_files(root, facts.storage):
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert facts.storage == facts_of(before).storage
    assert snapshot.header.epoch != before.header.epoch
    assert Place("GPU", 0) not in snapshot.held
    assert in_files(root, facts.storage)
    engine.ask(prompt_ids(1100, seed=4))
    compare(engine, asker, root)
    engine.stop()
