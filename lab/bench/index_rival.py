"""NVIDIA Dynamo's index, run by its own interpreter: reads orders from standard input, one JSON a line.

Nothing of ours is imported here. Every order is answered with one line of JSON: seconds, or bytes.
"""

import json
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynamo._core import RadixTree, compute_block_hash_for_seq  # type: ignore[import-not-found]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def stored(hashes: list[int], parent: int | None = None) -> bytes:
    """An event as its Python interface takes it."""
    blocks = [{"block_hash": value, "tokens_hash": value} for value in hashes]
    data = {"stored": {"parent_hash": parent, "blocks": blocks}}
    return json.dumps({"event_id": 1, "data": data, "dp_rank": 0}).encode()


def removed(hashes: list[int]) -> bytes:
    """The same for blocks that left."""
    data = {"removed": {"block_hashes": hashes}}
    return json.dumps({"event_id": 1, "data": data, "dp_rank": 0}).encode()


class Rival:
    """Answers orders; the tree of `fill` stays for `match`."""

    def __init__(self) -> None:
        self.tree = RadixTree()
        self.prompt: list[int] = []

    def version(self) -> str:
        """Of the package."""
        return version("ai-dynamo-runtime")

    def fill(self, blocks: int, replicas: int, own: int, cut: bool) -> int:
        """A tree where all replicas hold one prompt, or each another part of it, and blocks of their own."""
        draw = random.Random(1)
        self.tree = RadixTree()
        self.prompt = [draw.getrandbits(64) for _ in range(blocks)]
        whole = stored(self.prompt)
        for replica in range(replicas):
            part = self.prompt[: blocks * (replica + 1) // replicas]
            self.tree.apply_event(replica, stored(part) if cut else whole)
            self.tree.apply_event(replica, stored([draw.getrandbits(64) for _ in range(own)]))
        return len(self.tree.find_matches(self.prompt).scores)

    def match(self, times: int) -> float:
        """Seconds of one look-up."""
        begin = time.perf_counter()
        for _ in range(times):
            self.tree.find_matches(self.prompt)
        return (time.perf_counter() - begin) / times

    def keys(self, tokens: int) -> float:
        """Seconds to hash a prompt."""
        draw = random.Random(2)
        ids = [draw.randrange(128_000) for _ in range(tokens)]
        begin = time.perf_counter()
        compute_block_hash_for_seq(ids, 16)
        return time.perf_counter() - begin

    def ingest(self, events: int, each: int) -> dict[str, float]:
        """Seconds to take in events of so many blocks, and to remove them again."""
        draw = random.Random(3)
        tree = RadixTree()
        batches = [[draw.getrandbits(64) for _ in range(each)] for _ in range(events)]
        arriving = [stored(hashes) for hashes in batches]
        leaving = [removed(hashes) for hashes in batches]
        times = []
        for payloads in (arriving, leaving):
            begin = time.perf_counter()
            for payload in payloads:
                tree.apply_event(0, payload)
            tree.find_matches([1])  # waits for its thread
            times.append(time.perf_counter() - begin)
        return {"stored": times[0], "removed": times[1]}

    def resident(self, blocks: int, replicas: int) -> int:
        """Bytes of memory for replicas that share a prompt and have one of their own each."""
        draw = random.Random(4)
        before = resident()
        tree = self.tree = RadixTree()
        shared = stored([draw.getrandbits(64) for _ in range(blocks)])
        for replica in range(replicas):
            tree.apply_event(replica, shared)
            tree.apply_event(replica, stored([draw.getrandbits(64) for _ in range(blocks)]))
        tree.find_matches([1])
        return resident() - before


def main() -> None:
    """Answer until the input ends."""
    rival = Rival()
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        answer = getattr(rival, order.pop("do"))(**order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
