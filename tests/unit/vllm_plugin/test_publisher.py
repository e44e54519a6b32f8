"""vLLM's publisher in our form, over real sockets: snapshots, and replays exactly as vLLM's own."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
import zmq
from vllm.config import KVEventsConfig
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventPublisherFactory,
    KVEventBatch,
    ZmqEventPublisher,
)

from kvstrata.vllm_plugin import publisher as module
from kvstrata.vllm_plugin.publisher import SnapshotPublisher, beside, introduce, register_publisher
from kvstrata.wire.snapshot import (
    ANSWER,
    END,
    EngineFacts,
    GroupFacts,
    Place,
    Question,
    Snapshot,
    decode,
)

FACTS = EngineFacts(
    "tiny", "sha256", b"\1" * 32, 16, 32, (GroupFacts(0, "full", 16, 2, 4096),), "tiny-f@here"
)
GPU, CPU = Place("GPU", 0), Place("CPU", 0)
HERE, GONE = Place("STORAGE", 0, "tiny-f@here"), Place("STORAGE", 0, "tiny-e@here")
Frames = list[bytes]


def stored(*hashes: int | bytes, medium: str = "GPU", owner: str | None = None) -> BlockStored:
    return BlockStored(
        block_hashes=list(hashes),
        parent_block_hash=None,
        token_ids=[],
        block_size=0,
        lora_id=None,
        medium=medium,
        lora_name=None,
        group_idx=0,
        ownership=owner,
    )


def removed(*hashes: int, medium: str = "GPU") -> BlockRemoved:
    return BlockRemoved(block_hashes=list(hashes), medium=medium, group_idx=0)


class Engine:
    """Stands for the connector."""

    def __init__(self) -> None:
        self.publisher: SnapshotPublisher | None = None
        self.answer: EngineFacts | None = FACTS

    def facts(self) -> EngineFacts | None:
        return self.answer

    def connected(self, publisher: SnapshotPublisher) -> None:
        self.publisher = publisher


class Line:
    """A publisher, and a client of its replay socket."""

    def __init__(self, publisher: Any, endpoint: str) -> None:
        self.publisher = publisher
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(endpoint)

    def publish(self, *events: Any) -> None:
        self.publisher.publish(KVEventBatch(ts=1.0, events=list(events)))

    def settle(self) -> None:
        self.publisher._event_queue.join()

    def ask(self, request: bytes) -> list[Frames]:
        """All messages of an answer, the empty first frame left out, up to its end."""
        self.socket.send_multipart([b"", request])
        messages: list[Frames] = []
        while self.socket.poll(10_000):
            messages.append(self.socket.recv_multipart()[1:])
            if messages[-1][1] == END:
                return messages
        raise AssertionError(f"no end of the answer after {len(messages)} messages")

    def snapshot(self, question: Question = Question.SNAPSHOT) -> Snapshot:
        self.settle()
        messages = self.ask(question.value)
        assert all(frames[1] == ANSWER for frames in messages[:-1])
        return decode(frames[2] for frames in messages[:-1])


Make = Callable[..., Line]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    lines: list[Line] = []

    def start(kind: Any = SnapshotPublisher, replay: bool = True, **settings: Any) -> Line:
        endpoint = f"ipc://{tmp_path}/e{len(lines)}"
        chosen = f"{endpoint}.asked" if replay else None
        publisher = kind(0, endpoint=endpoint, replay_endpoint=chosen, **settings)
        lines.append(Line(publisher, chosen or f"{endpoint}.replay"))
        return lines[-1]

    yield start
    for line in lines:
        line.socket.close(linger=0)
        line.publisher.shutdown()


def held(snapshot: Snapshot) -> dict[Place, tuple[list[int], list[int]]]:
    return {p: (sorted(h.tolist()), sorted(a.tolist())) for p, (h, a) in snapshot.held.items()}


def test_an_engine_that_published_nothing_says_so(make: Make) -> None:
    snapshot = make().snapshot()
    assert snapshot.header.sequence == -1 and snapshot.header.recent == ()
    assert len(snapshot.header.epoch) == 16 and snapshot.header.facts is None
    assert held(snapshot) == {}


def test_a_snapshot_is_what_the_batches_come_to(make: Make) -> None:
    line = make()
    line.publish(stored(1, 2, 3, 2), stored(7, 8, medium="CPU"))
    line.publish(stored(2**64 - 1, b"\xaa" * 24 + (5).to_bytes(8, "big")), removed(3, 4))
    line.publish(stored(8, 9, medium="CPU"), removed(7, medium="CPU"))
    snapshot = line.snapshot()
    assert held(snapshot) == {GPU: ([1, 2, 5, 2**64 - 1], [2]), CPU: ([8, 9], [])}
    assert snapshot.header.sequence == 2
    payloads = [payload for _, payload in line.publisher._buffer]
    assert snapshot.header.recent == tuple(xxhash.xxh3_128_digest(p) for p in payloads)
    line.publish(AllBlocksCleared())
    again = line.snapshot()
    assert held(again) == {CPU: ([8, 9], [])}
    assert (again.header.sequence, again.header.epoch) == (3, snapshot.header.epoch)


def test_the_state_alone_is_small(make: Make) -> None:
    line = make()
    line.publish(stored(*range(1000)))
    state = line.snapshot(Question.STATE)
    assert (state.header.sequence, state.header.recent, state.held) == (0, (), {})


def test_the_content_survives_the_ring(make: Make) -> None:
    line = make(buffer_steps=4)
    for value in range(50):
        line.publish(stored(value))
    snapshot = line.snapshot()
    assert held(snapshot) == {GPU: (list(range(50)), [])}
    assert len(snapshot.header.recent) == 4 and snapshot.header.sequence == 49


def test_digests_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECENT", 3)
    line = make()
    for value in range(9):
        line.publish(stored(value))
    recent = line.snapshot().header.recent
    payloads = [payload for _, payload in line.publisher._buffer]
    assert recent == tuple(xxhash.xxh3_128_digest(p) for p in payloads[-3:])


@pytest.mark.parametrize(
    "request_",
    [
        *((n).to_bytes(8, "big") for n in (0, 3, 5, 6, 2**64 - 1)),
        b"",
        b"kvstrata",
        Question.SNAPSHOT.value + b"?",
        Question.SNAPSHOT.value[:-1],
    ],
    ids=lambda value: value.hex() or "empty",
)
def test_anything_else_is_answered_as_vllm_does(make: Make, request_: bytes) -> None:
    answers = []
    for kind in (SnapshotPublisher, ZmqEventPublisher):
        line = make(kind, buffer_steps=4)
        for value in range(6):
            line.publish(stored(value))
        line.settle()
        answers.append(line.ask(request_))
    assert answers[0] == answers[1]


def test_a_request_of_other_frames_is_passed_over(make: Make) -> None:
    line = make()
    line.publish(stored(1))
    for frames in ([b""], [b"", Question.SNAPSHOT.value, b""], [b"", b"", b"", b""]):
        line.socket.send_multipart(frames)
    assert held(line.snapshot()) == {GPU: ([1], [])}


def test_a_stock_publisher_ends_the_answer_at_once(make: Make) -> None:
    """So a question can be asked of any engine."""
    line = make(ZmqEventPublisher)
    line.publish(stored(1))
    line.settle()
    assert [frames[1] for frames in line.ask(Question.SNAPSHOT.value)] == [END]


def test_a_whole_ring_is_replayed_to_a_slow_reader(make: Make) -> None:
    """vLLM before 0.33 drops what its socket's default limit of 1000 messages does not hold."""
    line = make(buffer_steps=6000)
    for value in range(6000):
        line.publish(stored(value))
    line.settle()
    line.socket.setsockopt(zmq.RCVHWM, 1)
    line.socket.send_multipart([b"", bytes(8)])
    time.sleep(0.5)  # the answer is sent meanwhile, and nobody reads
    sequences = []
    while line.socket.poll(5000):
        frames = line.socket.recv_multipart()
        if frames[2] == END:
            break
        sequences.append(int.from_bytes(frames[2], "big"))
    assert sequences == list(range(6000))


def test_no_part_is_dropped_however_short_the_ring(make: Make) -> None:
    line = make(buffer_steps=2)
    media = [f"tier {i}" for i in range(40)]
    line.publish(*(stored(1, medium=medium) for medium in media))
    for _ in range(8):
        assert {place.medium for place in line.snapshot().held} == set(media)


def test_no_batch_stops_the_publisher(make: Make) -> None:
    """Whatever an engine publishes, whether it can be followed or not."""
    line = make()
    line.publish(stored(1))
    line.publisher.publish(Strange(1.0, "no events"))
    line.publish(stored(2))
    snapshot = line.snapshot()
    assert held(snapshot) == {GPU: ([1, 2], [])}
    assert snapshot.header.sequence == 2 and line.publisher._ring.unreadable == 1


class Strange(msgspec.Struct, array_like=True):
    ts: float
    events: Any
    data_parallel_rank: int | None = None


def test_the_engine_introduced_last_is_the_next_publishers(make: Make) -> None:
    other, engine = Engine(), Engine()
    introduce(other)
    introduce(engine)
    line = make()
    assert engine.publisher is line.publisher and other.publisher is None
    assert line.snapshot().header.facts == FACTS
    assert make().snapshot().header.facts is None


def test_storage_that_the_engine_turned_away_from_is_left_out(make: Make) -> None:
    engine = Engine()
    introduce(engine)
    line = make()
    line.publish(*(stored(1, medium="STORAGE", owner=place.owner) for place in (HERE, GONE)))
    assert set(line.snapshot().held) == {HERE}
    engine.answer = None
    line.publisher._made = 0.0
    assert set(line.snapshot().held) == {HERE}


def test_an_engine_that_is_still_being_made_is_not_answered_for(make: Make) -> None:
    engine = Engine()
    engine.answer = None
    introduce(engine)
    line = make()
    line.socket.send_multipart([b"", Question.SNAPSHOT.value])
    assert not line.socket.poll(500)
    engine.answer = FACTS
    assert line.snapshot().header.facts == FACTS


def test_whether_a_block_may_be_believed_in(make: Make) -> None:
    line = make()
    line.publish(stored(1))
    line.settle()
    assert line.publisher.may_hold(GPU, 1)
    assert not line.publisher.may_hold(GPU, 2) and not line.publisher.may_hold(CPU, 1)
    line.publisher._event_queue.unfinished_tasks += 1  # something is on its way
    assert line.publisher.may_hold(GPU, 2)
    line.publisher._event_queue.unfinished_tasks -= 1


def test_an_endpoint_is_chosen_where_none_is_given(make: Make) -> None:
    line = make(replay=False)
    line.publish(stored(1))
    assert held(line.snapshot()) == {GPU: ([1], [])}
    assert line.publisher.snapshots_endpoint == line.publisher.events_endpoint + ".replay"


def test_without_an_endpoint_events_are_published_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "beside", lambda _: f"ipc://{tmp_path}/no/such/directory")
    publisher = SnapshotPublisher(0, endpoint=f"ipc://{tmp_path}/e")
    assert publisher.snapshots_endpoint is None
    publisher.publish(KVEventBatch(ts=1.0, events=[stored(1)]))
    publisher._event_queue.join()
    assert publisher.may_hold(GPU, 1)
    publisher.shutdown()


def test_an_endpoint_that_was_asked_for_is_needed(tmp_path: Path) -> None:
    with pytest.raises(zmq.ZMQError):
        SnapshotPublisher(0, endpoint=f"ipc://{tmp_path}/e", replay_endpoint="ipc:///no/such/dir/s")


@pytest.mark.parametrize(
    ("events", "snapshots"),
    [
        ("ipc:///run/e", "ipc:///run/e.replay"),
        ("inproc://e", "inproc://e.replay"),
        ("tcp://*:5557", "tcp://*:0"),
        ("tcp://[::]:5557", "tcp://[::]:0"),
        ("tcp://127.0.0.1:5557", "tcp://127.0.0.1:0"),
        ("tcp://localhost:5557", "tcp://127.0.0.1:0"),
        ("tcp://[::1]:5557", "tcp://[::1]:0"),
        ("tcp://collector:5557", "tcp://10.0.0.7:0"),
    ],
)
def test_snapshots_are_asked_for_beside_the_events(
    monkeypatch: pytest.MonkeyPatch, events: str, snapshots: str
) -> None:
    monkeypatch.setattr(module, "get_ip", lambda: "10.0.0.7")
    assert beside(events) == snapshots


def test_a_port_is_chosen_by_the_system() -> None:
    publisher = SnapshotPublisher(0, endpoint="tcp://127.0.0.1:9")  # connects: nobody need be there
    try:
        assert publisher.snapshots_endpoint is not None
        line = Line(publisher, publisher.snapshots_endpoint)
        assert int(publisher.snapshots_endpoint.rpartition(":")[2]) > 0
        line.publish(stored(1))
        assert held(line.snapshot()) == {GPU: ([1], [])}
        line.socket.close(linger=0)
    finally:
        publisher.shutdown()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    fresh = {**EventPublisherFactory._registry, "zmq": ZmqEventPublisher}
    monkeypatch.setattr(EventPublisherFactory, "_registry", fresh)
    return fresh


def test_vllm_makes_ours(registry: dict[str, Any], tmp_path: Path) -> None:
    register_publisher()
    register_publisher()
    config = KVEventsConfig(enable_kv_cache_events=True, endpoint=f"ipc://{tmp_path}/e")
    publisher = EventPublisherFactory.create(config)
    assert type(publisher) is SnapshotPublisher
    told = publisher.get_publisher_config()
    assert (told.endpoint, told.replay_endpoint) == (config.endpoint, f"{config.endpoint}.replay")
    publisher.shutdown()


def test_another_publisher_is_left_alone(registry: dict[str, Any]) -> None:
    registry["zmq"] = object
    register_publisher()
    assert registry["zmq"] is object


def test_a_publisher_of_another_make_is_left_alone(
    registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ZmqEventPublisher, "_service_replay")
    register_publisher()
    assert registry["zmq"] is ZmqEventPublisher


def test_many_blocks_come_in_slices_and_whole(make: Make) -> None:
    line = make()
    hashes = np.random.default_rng(1).integers(0, 2**64, 100_000, np.uint64)
    for low in range(0, len(hashes), 5000):
        line.publish(stored(*hashes[low : low + 5000].tolist()))
    line.publish(stored(*hashes[:17].tolist()))
    found, again = line.snapshot().held[GPU]
    assert np.array_equal(np.sort(found), np.sort(hashes))
    assert np.array_equal(np.sort(again), np.sort(hashes[:17]))


def test_an_engine_does_not_load_compiled_code() -> None:
    """vLLM's CPU build walks all that a process has loaded, and stumbles over numba's parts."""
    sources = [path.read_text() for path in Path(module.__file__).parent.glob("*.py")]
    found = re.findall(
        r"^\s*(?:from|import) (kvstrata(?:\.\w+)*)", "\n".join(sources), re.MULTILINE
    )
    needed = {name for name in found if not name.startswith("kvstrata.vllm_plugin")}
    assert "kvstrata.wire.batches" in needed
    code = f"import sys, {', '.join(sorted(needed))}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
