"""Before each request we say how many of its tokens a real engine will not compute; the engine agrees.

All that is known is the token ids and what the engine published: its own cache is small and forgets, host
memory is small too, and the engine is killed and started anew on the same directory.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import zmq
from engine import Engine

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.routing.reuse import ReplicaReuse, find_reuse
from kvstrata.routing.shape import Holdings, ModelShape
from kvstrata.wire.batches import decode, low_bits
from kvstrata.wire.contents import Contents
from lab.models import prompt_ids

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
QUICK = ["gemma3-1to1", "gemma4", "llama4", "granite-4-h"]
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

    def settle(self, engine: Engine) -> None:
        """Until everything that was published has arrived."""
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


def shape_of(engine: Engine) -> ModelShape:
    told = engine.do("shape")
    groups = [
        GroupGeometry(
            **{
                **group,
                "kind": GroupKind(group["kind"]),
                "rank_block_bytes": tuple(group["rank_block_bytes"]),
            }
        )
        for group in told["groups"]
    ]
    return ModelShape.make(
        groups, told["hash_tokens"], told["block_tokens"], frozenset(g.group for g in groups)
    )


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


def predict(shape: ModelShape, follower: Follower, prompt: list[int]) -> ReplicaReuse:
    hasher = BlockHasher("sha256", shape.hash_tokens, os.environ.get("PYTHONHASHSEED"))
    hashes = [low_bits(value) for value in hasher.hashes(prompt)]
    return find_reuse(shape, hashes, len(prompt), Holdings.of(follower.contents.held))


def compare(engine: Engine, follower: Follower, prompts: list[list[int]], seen: list[Any]) -> None:
    """Say, ask, and hold the two together; the answer is in `seen`."""
    shape = shape_of(engine)
    assert shape.exact
    for prompt in prompts:
        follower.settle(engine)
        said = predict(shape, follower, prompt)
        cached = engine.ask(prompt, max_tokens=8)[0]["cached"]
        seen.append((said, cached))
        assert said.storage.tokens == cached, f"request {len(seen)} of {len(prompt)} tokens: {said}"


def examine(model: str, lives: list[int], start: Any, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/e"
    follower = Follower(endpoint)
    extra = {"path": str(tmp_path / "kv"), "memory": "20MiB"}
    seen: list[tuple[ReplicaReuse, int]] = []
    try:
        prompts = script(sum(lives))
        for requests in lives:
            engine = start(
                model,
                extra,
                max_model_len=LONGEST + 60,
                events={"endpoint": endpoint},
                engine={"num_gpu_blocks_override": BLOCKS[model]},
            )
            compare(engine, follower, prompts[:requests], seen)
            del prompts[:requests]
            follower.settle(engine)
            engine.kill()
            follower.stopped()
    finally:
        follower.close()
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
    examine(model, [14, 8], start, tmp_path)


@pytest.mark.zoo
@pytest.mark.parametrize("model", BLOCKS)
def test_long_scripts(model: str, start: Any, tmp_path: Path) -> None:
    examine(model, [40, 30, 30], start, tmp_path)
