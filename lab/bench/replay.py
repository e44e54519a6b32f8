"""One trace through the planner and the memory tier, and what no policy could exceed."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvstrata.chunks.geometry import GroupGeometry, GroupKind, ceil_div
from kvstrata.chunks.key import ChunkKey, group_of, make_key
from kvstrata.tiering.planner import GroupKeys, RequestShape, plan_load
from kvstrata.tiering.usage import describe_use
from kvstrata.tiers.eviction import PrefixUse
from kvstrata.tiers.eviction_choice import PolicyMaker
from kvstrata.tiers.lifecycle import State
from kvstrata.tiers.memory import MemoryTier
from lab.bench.traces import BLOCK, Request

PAGE = 4096
"""Bytes; chunks are a few pages here, since only the proportions between groups matter."""


def _windows(count: int, window: int) -> list[GroupGeometry]:
    return [
        GroupGeometry(1 + i, GroupKind.WINDOW, BLOCK, 1, (2 * PAGE,), window_tokens=window)
        for i in range(count)
    ]


FULL = GroupGeometry(0, GroupKind.FULL, BLOCK, 1, (2 * PAGE,))
MODELS: dict[str, tuple[GroupGeometry, ...]] = {
    "full": (FULL,),
    "window-128 1:1": (FULL, *_windows(1, 128)),
    "window-1024 5:1": (FULL, *_windows(5, 1024)),
    "mamba 3:1": (
        FULL,
        *(GroupGeometry(1 + i, GroupKind.STATE, 2 * BLOCK, 1, (3 * PAGE,)) for i in range(3)),
    ),
}
"""Groups of a full-attention model, of a gpt-oss-like, a Gemma3-like and a Qwen3-Next-like one."""


@dataclass(frozen=True, slots=True)
class Step:
    """A request as one model sees it.

    Attributes:
        shape: of the request.
        junction: tokens before the point where it leaves what it shares with earlier ones.
    """

    shape: RequestShape
    junction: int


def steps(requests: Sequence[Request], model: Sequence[GroupGeometry]) -> list[Step]:
    """Every request for one model. Junctions lie where every group has a chunk's end."""
    unit = max(geometry.tokens_per_chunk for geometry in model)
    names: dict[tuple[int, int], ChunkKey] = {}

    def keys(request: Request, geometry: GroupGeometry) -> list[ChunkKey]:
        stride = geometry.blocks_per_chunk * geometry.tokens_per_block // BLOCK
        return [
            names.setdefault(
                (block, geometry.group), make_key(block.to_bytes(16, "big"), geometry.group)
            )
            for block in request.blocks[stride - 1 :: stride]
        ]

    return [
        Step(
            RequestShape([GroupKeys(g, keys(request, g)) for g in model], request.tokens, 0),
            request.shared // unit * unit,
        )
        for request in requests
    ]


def _stored(step: Step, resumed: int) -> PrefixUse | None:
    return describe_use(step.shape, resumed, [step.junction])


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trace allows on one model.

    Attributes:
        distinct_bytes: bytes of everything that is ever stored.
        served: tokens served with room for all of it.
        items: for each chunk of each of these hits, bytes x requests that it must be kept, and tokens.
        requests: in the trace.
    """

    distinct_bytes: int
    served: int
    items: list[tuple[float, float]]
    requests: int

    def bound(self, arena_bytes: int) -> float:
        """Tokens that no policy can exceed in an arena of this size, even if it knows the future.

        A chunk is served only if it was kept from the last request that passed it to this one. That takes
        its bytes for that long, and an arena offers only its bytes times the length of the trace. The
        cheapest chunks by room per token fill it. Prefixes need not be whole here, and room may be
        borrowed over time, so this is more than can be reached.
        """
        room = float(arena_bytes) * max(self.requests - 1, 0)
        total = 0.0
        for cost, tokens in sorted(self.items, key=lambda item: item[0] / item[1]):
            if cost > room:
                return total + tokens * room / cost
            room -= cost
            total += tokens
        return total


def limits(trace: Sequence[Step], model: Sequence[GroupGeometry]) -> Limits:
    """Replay with room for everything, and note what keeping each hit's chunks takes."""
    size = {geometry.group: geometry.slot_bytes for geometry in model}
    held: set[ChunkKey] = set()
    passed: dict[ChunkKey, int] = {}
    distinct, served = 0, 0
    items: list[tuple[float, float]] = []
    for now, step in enumerate(trace):
        shape = step.shape
        plan = plan_load(shape, lambda keys: [key in held for key in keys], exact=True)
        boundary = plan.boundary
        served += boundary
        if boundary:
            items += _costs(shape, boundary, held, passed, size, now)
        for group in shape.groups:
            passed.update(dict.fromkeys(group.keys, now))
        use = _stored(step, boundary)
        for key in use.order() if use is not None else []:
            if key not in held:
                held.add(key)
                distinct += size[group_of(key)]
    return Limits(distinct, served, items, len(trace))


def _costs(
    shape: RequestShape,
    boundary: int,
    held: set[ChunkKey],
    passed: dict[ChunkKey, int],
    size: dict[int, int],
    now: int,
) -> list[tuple[float, float]]:
    """Items of one hit. The cheapest tail that would do for any of it is spread over its tokens."""
    full = [group for group in shape.groups if not group.geometry.windowed]
    windowed = [group for group in shape.groups if group.geometry.windowed]
    unit = max(group.geometry.tokens_per_chunk for group in shape.groups)
    tails = [
        float(cost)
        for point in {*range(unit, boundary, unit), boundary}
        if (cost := _tail_cost(windowed, point, held, passed, size, now)) is not None
    ]
    tail = min(tails, default=0.0)
    items = []
    for group in full:
        chunk = group.geometry.tokens_per_chunk
        for index in range(ceil_div(boundary, chunk)):
            key = group.keys[index]
            tokens = min(chunk, boundary - index * chunk) / len(full)
            cost = size[group.geometry.group] * (now - passed[key])
            items.append((cost + tail * tokens / boundary, tokens))
    return items


def _tail_cost(
    windowed: Sequence[GroupKeys],
    point: int,
    held: set[ChunkKey],
    passed: dict[ChunkKey, int],
    size: dict[int, int],
    now: int,
) -> int | None:
    """Bytes x requests for which the windows ending at `point` must be kept; None where they are not."""
    cost = 0
    for group in windowed:
        stop = min(ceil_div(point, group.geometry.tokens_per_chunk), len(group.keys))
        start = max(0, stop - group.geometry.window_chunks(point))
        for key in group.keys[start:stop]:
            if key not in held:
                return None
            cost += size[group.geometry.group] * (now - passed[key])
    return cost


def replay(
    trace: Sequence[Step],
    model: Sequence[GroupGeometry],
    arena_bytes: int,
    policy: PolicyMaker,
) -> int:
    """Tokens that the memory tier serves over a trace."""
    tier = MemoryTier(memoryview(bytearray(arena_bytes)), {g.group: g for g in model}, policy)
    served = 0
    for step in trace:
        plan = plan_load(step.shape, tier.probe, exact=True)
        served += plan.boundary
        loaded = [key for key, _ in plan.needs()]
        tier.pin(loaded)
        use = _stored(step, plan.boundary)
        if use is not None:
            _store(tier, use)
        tier.unpin(loaded)
        if use is not None and tier.late_uses:
            tier.used(use)
        tier.take_evicted()
    return served


def _store(tier: MemoryTier, use: PrefixUse) -> None:
    order = use.order()
    protected: list[ChunkKey] = []
    if tier.late_uses:  # vLLM does not evict for a request what the same request asks to store
        protected = [key for key in order if tier.held(key)]
        tier.pin(protected)
    else:
        tier.used(use)
    placed = [
        key for key in order if tier.entry(key) is None and tier.reserve(key, "device") is not None
    ]
    for key in placed:
        entry = tier.entry(key)
        assert entry is not None and entry.state is State.WRITING
        tier.commit(key)
    tier.unpin(protected)
