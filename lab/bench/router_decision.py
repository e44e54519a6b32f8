"""What one choice costs, without HTTP: `python -m lab.bench.router_decision ROUNDS` prints samples as JSON.

In a process of its own, in the router's kind of loop. The fleet's index is filled directly: the replicas
publish nothing, and are taken for followed.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop

from kvstrata.chunks.block_hashes import BlockHasher, low_bits
from kvstrata.events.follower import Status
from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.replica import Address, Rank
from kvstrata.router.asking import ask
from kvstrata.router.config import parse_replica
from kvstrata.router.fleet_chooser import FleetChooser
from kvstrata.router.inbound import Request
from kvstrata.router.reading import Reading
from kvstrata.router.replicas import Replica
from kvstrata.router.upstream import EnginePool
from kvstrata.routing.policies import make_policy
from kvstrata.wire.snapshot import EngineFacts, GroupFacts, Place
from lab.bench.router_prompts import IDS, TAIL, body, listed

TOKENS, REPLICAS, BLOCK = 1 << 17, 64, 16
EACH = 5
"""Choices of one kind in a round."""
_FOLLOWED = Status(Trust.SYNCED, "", level_at=None)
_NONE = np.empty(0, np.uint64)
_KINDS = (("full", 0), ("window", 128), ("state", 0))
Ids = npt.NDArray[np.uint32]
Samples = dict[str, list[float]]


class Filled(Fleet):
    """A fleet whose index is what the bench put there."""

    def status(self, rank: Rank) -> Status:
        """As of a replica whose events are followed without a gap."""
        return _FOLLOWED


class Cost(NamedTuple):
    """Seconds of one choice.

    Attributes:
        read: to read the body.
        choice: from there to the choice.
        noted: to note that it is sent, after that.
    """

    read: float
    choice: float
    noted: float


@dataclass(slots=True)
class Case:
    """A fleet of `REPLICAS`, of which each holds another length of one prompt, and its chooser.

    Args:
        groups: 1 is full attention; 3 are that, a window of 128 tokens and a state.
        algorithm: of the block hashes.
    """

    groups: int = 1
    algorithm: str = "sha256"
    held: Ids = field(init=False)
    chooser: FleetChooser = field(init=False)
    replicas: list[Replica] = field(init=False)
    _dice: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    _count: int = 0

    def __post_init__(self) -> None:
        hasher = BlockHasher(self.algorithm, BLOCK, "0")
        self.held = self.draw(TOKENS - TAIL)
        hashes = low_bits(hasher.hashes(self.held))
        kinds = [
            GroupFacts(n, kind, BLOCK, 1, 1 << 20, window)
            for n, (kind, window) in enumerate(_KINDS[: self.groups])
        ]
        facts = EngineFacts("m", self.algorithm, hasher.none_hash, BLOCK, BLOCK, tuple(kinds))
        fleet = Filled()
        self.replicas = []
        for number in range(REPLICAS):
            config = parse_replica({"url": f"http://127.0.0.1:{number + 1}", "name": f"r{number}"})
            self.replicas.append(Replica(config, EnginePool(config, 4.0)))
            nobody = f"inproc://{number}"
            followed = fleet.add(Address(config.name, ((nobody, None),)))
            kept = hashes[: len(hashes) * (number + 1) // REPLICAS]
            own = self._dice.integers(1, 2**64, len(hashes), np.uint64)
            there = np.concatenate((kept, own))
            held = {Place("GPU", group): (there, _NONE) for group in range(self.groups)}
            for rank in followed.ranks:
                fleet.index.restore(rank.number, held)
                rank.told = facts
        self.chooser = FleetChooser(make_policy("seconds"), fleet, Reading())

    def draw(self, tokens: int) -> Ids:
        """New token ids."""
        return self._dice.integers(300, IDS, tokens, np.uint32)

    async def choose(self, ids: Ids) -> Cost:
        """Choose for a request of these ids."""
        self._count += 1
        now = time.monotonic()
        request = _request(body(listed(ids), 2), now)
        begin = time.perf_counter()
        asked = ask(request, str(self._count))
        read = time.perf_counter()
        view = await self.chooser.view(asked)
        decision = self.chooser.choose(view, self.replicas, now)
        chosen = time.perf_counter()
        self.chooser.sent(view, decision, now)
        assert view.tokens == len(ids), view.doubt
        return Cost(read - begin, chosen - read, time.perf_counter() - chosen)


def _request(data: bytes, now: float) -> Request:
    return Request("POST", "/v1/completions", b"", [], "127.0.0.1", now, True, True, data)


async def choices(rounds: int) -> Samples:
    """Milliseconds of a choice, by case."""
    plain, hybrid, fast = Case(), Case(groups=3), Case(algorithm="xxhash")
    every = (plain, hybrid, fast)
    samples: Samples = {}
    strange = plain.draw(TOKENS - TAIL)
    nothing = np.empty(0, np.uint32)
    for case in every:
        case.chooser.start()
        await case.choose(case.held)
    await plain.choose(strange)
    cases = (
        ("decision_known_ms", plain, plain.held),
        ("decision_known_3_groups_ms", hybrid, hybrid.held),
        ("decision_unheld_ms", plain, strange),
        ("decision_cold_ms", plain, nothing),
        ("decision_cold_xxhash_ms", fast, nothing),
    )
    for _ in range(rounds):
        for name, case, begin in cases:
            for _ in range(EACH):
                ids = np.concatenate((begin, case.draw(TOKENS - len(begin))))
                cost = await case.choose(ids)
                samples.setdefault(name, []).append(cost.choice * 1e3)
                samples.setdefault("decision_noted_ms", []).append(cost.noted * 1e3)
                samples.setdefault("parse_ours_ms", []).append(cost.read * 1e3)
    for case in every:
        case.chooser.close()
    return samples


def parsing(rounds: int) -> Samples:
    """Milliseconds to read a body of `TOKENS` ids, as others do."""
    data = body(listed(np.random.default_rng(2).integers(300, IDS, TOKENS, np.uint32)), 2)
    ways: Sequence[tuple[str, Callable[[], object]]] = (
        ("parse_json_ms", lambda: json.loads(data)),
        ("parse_msgspec_ms", lambda: msgspec.json.decode(data)),
    )
    samples: Samples = {"body_kb": [len(data) / 1e3]}
    for _ in range(rounds):
        for name, way in ways:
            for _ in range(EACH):
                begin = time.perf_counter()
                way()
                samples.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)
    return samples


def main() -> None:
    """Print all samples."""
    rounds = int(sys.argv[1])
    print(json.dumps({**uvloop.run(choices(rounds)), **parsing(rounds)}))


if __name__ == "__main__":
    main()
