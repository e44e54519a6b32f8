"""An engine's publisher without the engine: vLLM's `ZmqEventPublisher` protocol, and our questions.

As a program, `python fake_publisher.py '{"events": ..., "replay": ..., ...}'` publishes what each line of its
standard input says (JSON: a list of events), and answers each line with the number of its last batch.
"""

import contextlib
import json
import queue
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import xxhash
import zmq

from kvstrata.wire.batches import decode
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import ANSWER, END, VERSION, EngineFacts, Header, Question, encode

Event = dict[str, Any]


def random_events(dice: random.Random, count: int, hashes: int = 500) -> list[Event]:
    """Some blocks come and go, now and then all of the device's."""
    made: list[Event] = []
    for _ in range(count):
        kind = dice.random()
        if kind < 0.01:
            made.append({"type": "AllBlocksCleared"})
            continue
        names = [dice.randrange(hashes) for _ in range(dice.randrange(1, 5))]
        place: Event = {
            "block_hashes": names,
            "medium": dice.choice(["GPU", "GPU", "CPU", "STORAGE"]),
            "group_idx": dice.randrange(2),
        }
        if place["medium"] == "STORAGE":
            place["ownership"] = "names@place"
        if kind < 0.6:
            stored: Event = {"parent_block_hash": None, "token_ids": [], "block_size": 0}
            made.append({"type": "BlockStored", "lora_id": None, **stored, **place})
        else:
            made.append({"type": "BlockRemoved", **place})
    return made


class FakeEngine:
    """Publishes batches and answers on its replay endpoint, in a thread of its own.

    Args:
        events: address that is bound for events.
        replay: address that is bound for replays, or None.
        ring: batches that can be replayed.
        speaks: whether it answers questions.
        facts: of the engine.
        deaf: whether it never answers at all.
    """

    def __init__(
        self,
        events: str,
        replay: str | None = None,
        *,
        ring: int = 10_000,
        speaks: bool = True,
        facts: EngineFacts | None = None,
        deaf: bool = False,
    ) -> None:
        self.contents = Contents()
        self.epoch = random.randbytes(16)
        self._speaks, self._facts, self._deaf = speaks, facts, deaf
        self._ring: deque[tuple[int, bytes]] = deque(maxlen=ring)
        self._recent: deque[bytes] = deque(maxlen=64)
        self._last = -1
        self._context = zmq.Context()
        self._events = self._context.socket(zmq.PUB)
        self._events.set_hwm(100_000)
        self._events.bind(events)
        self._replay = None
        if replay is not None:
            self._replay = self._context.socket(zmq.ROUTER)
            self._replay.set_hwm(100_000)
            self._replay.bind(replay)
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def publish(self, events: Sequence[Event], rank: int = 0) -> None:
        """One batch."""
        self.publish_payload(msgspec.msgpack.encode([time.time(), events, rank]))

    def publish_payload(self, payload: bytes) -> None:
        """One batch, whatever it is."""
        self._queue.put(payload)

    def settle(self) -> int:
        """Wait until all is published; the number of the last batch."""
        self._queue.join()
        return self._last

    def close(self) -> None:
        """End."""
        self._queue.put(None)
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while True:
            while self._replay is not None and self._replay.poll(0):
                client, _, question = self._replay.recv_multipart()
                if not self._deaf:
                    self._answer(client, question)
            try:
                payload = self._queue.get(timeout=0.01)
            except queue.Empty:
                continue
            if payload is None:
                self._queue.task_done()
                return
            self._last += 1
            self._events.send_multipart((b"", self._last.to_bytes(8, "big"), payload))
            self._ring.append((self._last, payload))
            self._recent.append(xxhash.xxh3_128_digest(payload))
            with contextlib.suppress(ValueError):  # an unreadable batch changes nothing
                self.contents.apply(decode(payload))
            self._queue.task_done()

    def _answer(self, client: bytes, question: bytes) -> None:
        assert self._replay is not None
        known = [one.value for one in Question]
        if self._speaks and question in known:
            recent = tuple(self._recent)
            header = Header(VERSION, self.epoch, self._last, time.time(), 0, recent, self._facts)
            held = self.contents.parts() if question == Question.SNAPSHOT.value else ()
            for part in encode(header, held):
                self._replay.send_multipart((client, b"", b"", ANSWER, part))
        else:
            first = int.from_bytes(question, "big")
            for sequence, payload in self._ring:
                if sequence >= first:
                    number = sequence.to_bytes(8, "big")
                    self._replay.send_multipart((client, b"", b"", number, payload))
        self._replay.send_multipart((client, b"", b"", END, b""))


class Proxy:
    """Stands between an engine and its subscriber and drops, repeats, delays and reorders batches.

    Args:
        engine: address of the engine's events.
        bound: address for the subscriber.
        seed: of its dice.
    """

    def __init__(self, engine: str, bound: str, seed: int) -> None:
        self.faulty = True
        self.passed = self.dropped = self.repeated = self.delayed = 0
        self._dice = random.Random(seed)
        self._context = zmq.Context()
        self._in = self._context.socket(zmq.SUB)
        self._in.set_hwm(100_000)
        self._in.setsockopt(zmq.RECONNECT_IVL, 10)
        self._in.setsockopt(zmq.SUBSCRIBE, b"")
        self._in.connect(engine)
        self._out = self._context.socket(zmq.PUB)
        self._out.set_hwm(100_000)
        self._out.bind(bound)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        late: list[list[bytes]] = []
        while not self._stopping.is_set():
            frames = self._in.recv_multipart() if self._in.poll(10) else None
            fate = self._dice.random() if self.faulty else 1.0
            if frames is None or not self.faulty or fate > 0.9:
                for held in late:
                    self._out.send_multipart(held)
                late.clear()
            if frames is None:
                continue
            if fate < 0.03:
                self.dropped += 1
                continue
            if fate < 0.15:
                self.delayed += 1
                late.insert(self._dice.randrange(len(late) + 1), frames)
                continue
            self.passed += 1
            self._out.send_multipart(frames)
            if fate < 0.2:
                self.repeated += 1
                self._out.send_multipart(frames)


def say(answer: Any) -> None:
    """One line on standard output."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Publish what standard input says."""
    engine = FakeEngine(**json.loads(sys.argv[1]))
    say({"epoch": engine.epoch.hex()})
    for line in sys.stdin:
        for events in json.loads(line):
            engine.publish(events)
        last = engine.settle()
        held = [
            [place.medium, place.group, place.owner, sorted(counts.items())]
            for place, counts in engine.contents.held.items()
        ]
        say({"sequence": last, "held": held})


if __name__ == "__main__":
    main()
