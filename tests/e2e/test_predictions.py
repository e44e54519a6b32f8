"""Before each request we say how many of its tokens a real engine will not compute; the engine agrees.

All that is known is the token ids and what the engine published: its own cache is small and forgets, host
memory is small too, and the engine is killed and started anew on the same directory. Two say so beforehand:
the plain rule over a bare socket, and a fleet as a router has it, with its subscriber, index and fast rule.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.replica import Address
from kvstrata.routing.fleet_reuse import ReuseQuery
from kvstrata.routing.reuse import ReplicaReuse, find_reuse
from kvstrata.routing.shape import Holdings, ModelShape
from kvstrata.wire.batches import decode, low_bits
from kvstrata.wire.contents import Contents
from lab.models import prompt_ids
from tests.e2e.engine import Engine

pytestmark = pytest.mark.engine

BLOCKS = {
    "gemma3-1to1": 40,
    "gemma4": 90,
    "llama4": 90,
    "granite-4-h": 40,
    "llama": 30,
    "gemma3-5to1": 125,
    "gemma3-w1024": 125,
    "gpt-oss": 40,
    "mistral": 30,
    "cohere2": 90,
    "qwen3-next": 50,
    "qwen3.5": 50,
    "mamba2": 40,
    "falcon-h1": 40,
    "nemotron-h": 40,
    "zamba2": 40,
}
"""Blocks of the device's cache, so that a few prompts fill it."""
QUICK = ["gemma3-1to1", "granite-4-h"]
RESULTS = Path(__file__).resolve().parents[2] / "build" / "predictions"
"""How many requests were predicted, and from where they were served, for whoever wants to see it."""
LONGEST = 2100
EDGES = (1536, 1537, 768, 0)
"""Lengths on the edges of blocks of any size, and 0 for any other."""
SETTLED_SECONDS = 20.0


class Follower:
    """Believes what one engine publishes, from life to life."""

    def __init__(self, endpoint: str) -> None:
        self.contents = Contents()
        self._endpoint = endpoint
        self._connect()

    def _connect(self) -> None:
        self.sequence = -1
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.subscribe(b"")
        self._socket.connect(self._endpoint)

    def close(self) -> None:
        self._socket.close(linger=0)

    def stopped(self) -> None:
        """What the engine's process held is gone; files stay."""
        self.close()
        self._connect()
        for place in [place for place in self.contents.held if place.medium != "STORAGE"]:
            del self.contents.held[place]

    @property
    def stored(self) -> int:
        """Chunks that it believes to be on storage."""
        held = self.contents.held.items()
        return sum(len(hashes) for place, hashes in held if place.medium == "STORAGE")

    def settle(self, engine: Engine) -> int:
        """Until everything that was published has arrived; number of the last batch."""
        assert engine.do("idle")
        # What happens between steps is told with the next one.
        engine.ask([33, 34, 35], max_tokens=1)
        last = engine.do("published")
        deadline = time.monotonic() + SETTLED_SECONDS
        while self.sequence < last:
            assert self._socket.poll(1000 * (deadline - time.monotonic())), "events are missing"
            _, number, payload = self._socket.recv_multipart()
            assert int.from_bytes(number, "big") == self.sequence + 1, "a gap"
            self.sequence += 1
            batch = decode(payload)
            assert batch.skipped == 0
            self.contents.apply(batch)
        return last


class Watcher:
    """A fleet of one replica, which it follows through all its lives."""

    def __init__(self, ends: dict[str, str]) -> None:
        self._fleet = Fleet()
        replica = self._fleet.add(Address("a", ((ends["endpoint"], ends["replay_endpoint"]),)))
        (self._rank,) = replica.ranks
        self._before: bytes | None = None

    def close(self) -> None:
        self._fleet.stop()

    def stopped(self) -> None:
        """The engine is gone, which the fleet has to find out for itself."""
        self._before = self._fleet.status(self._rank).epoch

    def settle(self, last: int) -> None:
        """Until it has taken in batch number `last`; a new engine tells of files at any time."""
        deadline = time.monotonic() + SETTLED_SECONDS
        while True:
            status = self._fleet.status(self._rank)
            known = status.trust is Trust.SYNCED and status.epoch != self._before
            if known and status.sequence >= last and self._rank.told:
                return
            assert time.monotonic() < deadline, (last, json.dumps(self._fleet.as_dict()))
            self._fleet.poll(0.01)

    @property
    def shape(self) -> ModelShape:
        """As the engine told it."""
        assert self._rank.told is not None
        return ModelShape.of(self._rank.told)

    @property
    def stored(self) -> int:
        """Chunks that it believes to be on storage."""
        counts = self._fleet.index.counts(self._rank.number)
        return sum(count for place, count in counts.items() if place.medium == "STORAGE")

    def predict(self, hashes: list[int], tokens: int) -> tuple[int, int, int]:
        """Boundaries with the device alone, with memory, and with storage."""
        query = ReuseQuery(self.shape)
        found = query.ask(self._fleet.index, np.array(hashes, np.uint64), tokens)
        number = self._rank.number
        return int(found.device[number]), int(found.memory[number]), int(found.storage[number])


def script(length: int) -> list[list[int]]:
    """Prompts of a few streams that part here and there; some come again, some go on."""
    choose = random.Random(length)
    streams = [prompt_ids(LONGEST, seed=number) for number in range(4)]
    prompts = [stream[: choose.randrange(900, LONGEST)] for stream in streams]
    while len(prompts) < length:
        before = choose.choice(prompts)
        match choose.randrange(7):
            case 0 | 1:  # again
                prompts.append(before)
            case 2:  # goes on
                more = prompt_ids(choose.randrange(1, 500), seed=choose.randrange(100))
                prompts.append((before + more)[:LONGEST])
            case 3 | 4:  # parts from one that was seen
                parting = choose.randrange(1, len(before) + 1)
                end = prompt_ids(choose.randrange(1, 900), seed=choose.randrange(100))
                prompts.append((before[:parting] + end)[:LONGEST])
            case _:
                edge = choose.choice(EDGES)
                prompts.append(choose.choice(streams)[: edge or choose.randrange(40, LONGEST)])
    return prompts


def introduce(engine: Engine, follower: Follower, watcher: Watcher) -> None:
    """Until a new engine has told what its directory holds: the fleet forgot it with the old engine."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while True:
        watcher.settle(follower.settle(engine))
        if watcher.stored == follower.stored:
            return
        assert time.monotonic() < deadline, (watcher.stored, follower.stored)


def compare(
    engine: Engine,
    follower: Follower,
    watcher: Watcher,
    prompts: list[list[int]],
    seen: list[tuple[ReplicaReuse, int]],
) -> None:
    """Say, ask, and hold the two together; the answer is in `seen`."""
    for prompt in prompts:
        watcher.settle(follower.settle(engine))
        shape = watcher.shape
        assert shape.exact
        hasher = BlockHasher("sha256", shape.hash_tokens, os.environ.get("PYTHONHASHSEED"))
        hashes = [low_bits(value) for value in hasher.hashes(prompt)]
        said = find_reuse(shape, hashes, len(prompt), Holdings.of(follower.contents.held))
        plain = (said.device.tokens, said.memory.tokens, said.storage.tokens)
        assert watcher.predict(hashes, len(prompt)) == plain
        cached = engine.ask(prompt, max_tokens=8)[0]["cached"]
        seen.append((said, cached))
        assert said.storage.tokens == cached, f"request {len(seen)} of {len(prompt)} tokens: {said}"


def examine(model: str, lives: list[int], start: Any, tmp_path: Path) -> None:
    ends = {"endpoint": f"ipc://{tmp_path}/e", "replay_endpoint": f"ipc://{tmp_path}/r"}
    follower, watcher = Follower(ends["endpoint"]), Watcher(ends)
    extra = {"path": str(tmp_path / "kv"), "memory": "20MiB"}
    seen: list[tuple[ReplicaReuse, int]] = []
    try:
        prompts = script(sum(lives))
        for requests in lives:
            engine = start(
                model,
                extra,
                max_model_len=LONGEST + 60,
                events=ends,
                engine={"num_gpu_blocks_override": BLOCKS[model]},
            )
            introduce(engine, follower, watcher)
            compare(engine, follower, watcher, prompts[:requests], seen)
            del prompts[:requests]
            follower.settle(engine)
            engine.kill()
            follower.stopped()
            watcher.stopped()
    finally:
        follower.close()
        watcher.close()
    served = {
        "device": sum(0 < said.device.tokens == cached for said, cached in seen),
        "memory": sum(said.device.tokens < said.memory.tokens == cached for said, cached in seen),
        "storage": sum(said.memory.tokens < said.storage.tokens for said, _ in seen),
        "nothing": sum(cached == 0 for _, cached in seen),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    row = {"model": model, "requests": len(seen), "lives": len(lives), "served": served}
    (RESULTS / f"{model}.json").write_text(json.dumps(row) + "\n")
    assert served["storage"] > 0 and served["device"] + served["memory"] > 0


@pytest.mark.parametrize("model", QUICK)
def test_what_is_predicted_is_what_is_cached(model: str, start: Any, tmp_path: Path) -> None:
    examine(model, [10, 6], start, tmp_path)


@pytest.mark.zoo
@pytest.mark.parametrize("model", BLOCKS)
def test_long_scripts(model: str, start: Any, tmp_path: Path) -> None:
    examine(model, [40, 30, 30], start, tmp_path)
