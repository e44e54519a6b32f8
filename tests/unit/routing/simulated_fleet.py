"""A small fleet in virtual time: what engines really do with requests, whatever a policy believes.

Each replica computes one prompt after the other. Blocks of its device cache and memory tier are bounded and
evicted by recency; storage is shared and holds everything. A load goes on beside computation. An index hears
of all changes `LAG` seconds later. Nothing here uses the package's own price: the physics is stated anew.
"""

import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

import numpy as np

from kvstrata.routing.decision import (
    Candidate,
    Decision,
    Outcome,
    Policy,
    Reach,
    RequestView,
    Reuse,
)

BLOCK = 128
BLOCK_BYTES = BLOCK * 100_000
LAG = 0.2


@dataclass(frozen=True)
class Physics:
    """What a replica really takes."""

    overhead: float = 0.02
    per_token: float = 1e-4
    per_pair: float = 2e-9
    memory_latency: float = 0.003
    memory_bandwidth: float = 10e9
    storage_latency: float = 0.01
    storage_bandwidth: float = 2e9
    device_blocks: int = 600
    memory_blocks: int = 1500
    decode: float = 0.5

    def prefill(self, tokens: int, before: int) -> float:
        """Seconds: each token looks back at all before it."""
        past = tokens * before + tokens * (tokens - 1) / 2
        return self.overhead + tokens * self.per_token + past * self.per_pair

    def copy(self, moved: int) -> float:
        """Seconds from memory to the device."""
        return self.memory_latency + moved / self.memory_bandwidth if moved else 0.0

    def read(self, storage_bytes: int) -> float:
        """Seconds from storage to memory, alone."""
        return (
            self.storage_latency + storage_bytes / self.storage_bandwidth if storage_bytes else 0.0
        )


@dataclass(frozen=True)
class Prompt:
    """One request: when, of which conversation, its blocks and the tokens beyond the last one."""

    at: float
    session: str
    blocks: tuple[int, ...]
    rest: int = 17

    @property
    def tokens(self) -> int:
        return len(self.blocks) * BLOCK + self.rest


@dataclass
class Under:
    """A request on its replica."""

    id: str
    prompt: Prompt
    decision: Decision
    at: float
    cached: int = -1
    ready: bool = False


class Recency:
    """Blocks of a tier, the oldest leave first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def touch(self, blocks: Iterable[int]) -> list[int]:
        for block in blocks:
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        gone = []
        while len(self.blocks) > self.most:
            gone.append(self.blocks.popitem(last=False)[0])
        return gone


@dataclass
class Replica:
    name: str
    physics: Physics
    device: Recency
    memory: Recency
    queue: deque[Under] = field(default_factory=deque)
    busy: bool = False
    in_flight: dict[str, int] = field(default_factory=dict)
    seen_device: set[int] = field(default_factory=set)
    seen_memory: set[int] = field(default_factory=set)
    computed: int = 0
    served: int = 0
    disk_until: float = 0.0


def reuse_of(
    prompt: Prompt, device: Container[int], memory: Container[int], storage: Container[int]
) -> Reuse:
    """By blocks from the left; one token is always computed, which the rest of the prompt sees to."""
    blocks = prompt.blocks
    first = 0
    while first < len(blocks) and blocks[first] in device:
        first += 1
    # What memory holds, up to the first block that only storage may hold, and then the rest.
    second = first
    while second < len(blocks) and (blocks[second] in memory or blocks[second] in device):
        second += 1
    count, read = second, 0
    while count < len(blocks) and (
        blocks[count] in storage or blocks[count] in memory or blocks[count] in device
    ):
        read += blocks[count] not in memory
        count += 1
    return Reuse(
        Reach(first * BLOCK),
        Reach(second * BLOCK, (second - first) * BLOCK_BYTES),
        Reach(count * BLOCK, (count - first - read) * BLOCK_BYTES, read * BLOCK_BYTES),
    )


class Fleet:
    """Runs a load against a policy; `ttft` holds seconds by request, in the order of arrival."""

    def __init__(self, policy: Policy, physics: list[Physics], seed: int = 0) -> None:
        self.policy = policy
        self.replicas = [
            Replica(f"r{i}", one, Recency(one.device_blocks), Recency(one.memory_blocks))
            for i, one in enumerate(physics)
        ]
        self.storage: set[int] = set()
        self.ttft: dict[str, float] = {}
        self.decisions: list[Decision] = []
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []

    def run(self, prompts: Iterable[Prompt]) -> "Fleet":
        for number, prompt in enumerate(prompts):
            self._at(prompt.at, lambda now, n=number, p=prompt: self._arrive(f"q{n}", p, now))
        while self._events:
            now, _, what = heapq.heappop(self._events)
            what(now)
        return self

    def seconds(self) -> np.ndarray:
        return np.array([self.ttft[f"q{n}"] for n in range(len(self.ttft))])

    def _at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def _arrive(self, name: str, prompt: Prompt, now: float) -> None:
        view = RequestView(
            id=name,
            tokens=prompt.tokens,
            prefix=np.array(prompt.blocks, dtype=np.uint64),
            prefix_tokens=BLOCK,
            session=prompt.session,
            arrival=now,
        )
        candidates = [
            Candidate(
                name=one.name,
                waiting=len(one.queue),
                running=len(one.in_flight) - len(one.queue),
                in_flight=len(one.in_flight),
                in_flight_tokens=sum(one.in_flight.values()),
                reuse=reuse_of(prompt, one.seen_device, one.seen_memory, self.storage),
            )
            for one in self.replicas
        ]
        decision = self.policy.decide(view, candidates, now)
        self.policy.sent(view, decision, now)
        self.decisions.append(decision)
        replica = next(one for one in self.replicas if one.name == decision.chosen)
        replica.in_flight[name] = prompt.tokens
        replica.queue.append(Under(name, prompt, decision, now))
        self._step(replica, now)

    def _step(self, replica: Replica, now: float) -> None:
        """The engine looks at its queue: loads begin, one prompt is computed."""
        if replica.busy:
            return
        waiting = len(replica.queue)
        for _ in range(waiting):
            under = replica.queue.popleft()
            if not under.ready:
                loading = self._look_up(replica, under, now)
                under.ready = True
                if loading:
                    self._at(now + loading, lambda t, u=under: self._loaded(replica, u, t))
                    continue
            replica.busy = True
            left = under.prompt.tokens - under.cached
            seconds = replica.physics.prefill(left, under.cached) * self._noise(0.05)
            self._at(now + seconds, lambda t, u=under: self._computed(replica, u, t))
            return

    def _look_up(self, replica: Replica, under: Under, now: float) -> float:
        prompt = under.prompt
        reuse = reuse_of(prompt, replica.device.blocks, replica.memory.blocks, self.storage)
        cap = under.decision.load_cap
        count = reuse.storage.tokens // BLOCK
        if cap is not None:
            count = min(count, reuse.device.tokens // BLOCK + cap // BLOCK)
        under.cached = count * BLOCK
        loaded = prompt.blocks[reuse.device.tokens // BLOCK : count]
        in_memory = sum(block in replica.memory.blocks for block in loaded)
        seconds = replica.physics.copy(len(loaded) * BLOCK_BYTES)
        read = replica.physics.read((len(loaded) - in_memory) * BLOCK_BYTES) * self._noise(0.2)
        if read:
            # One way to storage: reads of a replica follow each other.
            replica.disk_until = max(replica.disk_until, now) + read
            seconds += replica.disk_until - now
        return seconds

    def _loaded(self, replica: Replica, under: Under, now: float) -> None:
        replica.queue.appendleft(under)
        self._step(replica, now)

    def _computed(self, replica: Replica, under: Under, now: float) -> None:
        replica.busy = False
        replica.computed += under.prompt.tokens - under.cached
        replica.served += 1
        blocks = under.prompt.blocks
        left_device, left_memory = replica.device.touch(blocks), replica.memory.touch(blocks)
        self._at(now + LAG, lambda t: self._heard(replica, blocks, left_device, left_memory))
        ttft = now - under.at
        self.ttft[under.id] = ttft
        self.policy.observed(
            Outcome(id=under.id, replica=replica.name, final=False, ttft=ttft), now
        )
        self._at(now + replica.physics.decode, lambda t: self._finished(replica, under, ttft, t))
        self._step(replica, now)

    def _heard(
        self, replica: Replica, blocks: tuple[int, ...], device: list[int], memory: list[int]
    ) -> None:
        replica.seen_device.update(blocks)
        replica.seen_device.difference_update(device)
        replica.seen_memory.update(blocks)
        replica.seen_memory.difference_update(memory)
        self.storage.update(blocks)

    def _finished(self, replica: Replica, under: Under, ttft: float, now: float) -> None:
        del replica.in_flight[under.id]
        self.policy.observed(
            Outcome(id=under.id, replica=replica.name, ttft=ttft, cached_tokens=under.cached),
            now,
        )

    def _noise(self, spread: float) -> float:
        return self._random.lognormvariate(0, spread)


def conversations(
    seed: int,
    *,
    seconds: float = 300.0,
    rate: float = 1.2,
    shared: int = 6,
    shared_blocks: int = 24,
    turns: int = 5,
    think: float = 12.0,
) -> list[Prompt]:
    """Conversations that begin with one of some shared prompts, the first of them the most popular.

    Args:
        seed: of everything.
        seconds: until the last conversation begins.
        rate: conversations that begin per second.
        shared: number of shared prompts.
        shared_blocks: of each.
        turns: mean number of turns.
        think: mean seconds between two turns.
    """
    chance = random.Random(seed)

    def fresh(count: int) -> tuple[int, ...]:
        return tuple(chance.getrandbits(63) for _ in range(count))

    systems = [fresh(shared_blocks) for _ in range(shared)]
    popularity = [1 / (place + 1) for place in range(shared)]
    prompts = []
    start = 0.0
    for number in itertools.count():
        start += chance.expovariate(rate)
        if start > seconds:
            break
        blocks = chance.choices(systems, popularity)[0] + fresh(int(chance.lognormvariate(3, 0.7)))
        at = start
        for _ in range(1 + int(chance.expovariate(1 / (turns - 1)))):
            prompts.append(Prompt(at, f"c{number}", blocks, chance.randrange(1, BLOCK)))
            blocks += fresh(1 + chance.randrange(8))
            at += 1 + chance.expovariate(1 / think)
    return sorted(prompts, key=lambda prompt: prompt.at)
