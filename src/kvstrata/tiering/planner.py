"""Which chunks a request needs to resume, and where it can resume: vLLM's rule, over any set of tiers.

The rule is that of vLLM's `OffloadingConnectorScheduler._lookup_complete_chunks`: full groups count
consecutive chunks from the left; windowed groups look for the rightmost complete window at or left of
that point; whatever shrinks the boundary makes the others look again, until nothing changes. All groups
together or nothing.

What differs is the economy. vLLM asks key by key and starts a read for each; here presence is asked in
batches, a full group's prefix is found by search rather than by a walk (a hole that the search overlooks
shows when its read misses, and the request is planned again), and only what the final boundary needs is
read.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvstrata.chunks.geometry import GroupGeometry, ceil_div
from kvstrata.chunks.key import ChunkKey

Presence = Callable[[Sequence[ChunkKey]], Sequence[bool]]
"""For each key, whether it can probably be had. May block."""

SEARCH_WIDTH = 32
"""Keys asked at once while searching a prefix's end, and chunks asked at once in a window."""


@dataclass(frozen=True, slots=True)
class GroupKeys:
    """One group's complete chunks of a request, from token 0.

    Attributes:
        geometry: of the group.
        keys: key of chunk i at index i.
    """

    geometry: GroupGeometry
    keys: Sequence[ChunkKey]


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What the planner needs to know of a request.

    Attributes:
        groups: every offloaded group.
        tokens: of the request.
        computed: tokens that the device holds already; a multiple of the block size.
        max_load_tokens: the request's own cap on tokens to load, or None.
    """

    groups: Sequence[GroupKeys]
    tokens: int
    computed: int
    max_load_tokens: int | None = None

    def cap(self) -> int:
        """The furthest boundary that makes sense, in tokens."""
        cap = self.tokens
        if self.max_load_tokens is not None:
            cap = min(cap, self.computed + self.max_load_tokens)
        if any(group.geometry.windowed for group in self.groups):
            # The last token is computed again for its logits, and a window must still fit before it.
            cap -= 1
        states = [g.geometry.tokens_per_chunk for g in self.groups if _is_state(g.geometry)]
        for chunk in states:
            cap = cap // chunk * chunk
        return cap


@dataclass(frozen=True, slots=True)
class Part:
    """Chunks of one group that a load needs, in order.

    Attributes:
        geometry: of the group.
        start: index of the first chunk.
        keys: the chunks' keys.
        first_block: block of the first chunk where the needed bytes begin.
    """

    geometry: GroupGeometry
    start: int
    keys: Sequence[ChunkKey]
    first_block: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Where a request can resume, and what must be in the arena for that.

    Attributes:
        boundary: tokens; the request's `computed` when nothing can be loaded.
        parts: one for each group that needs chunks.
        shared: tokens that the full groups alone could resume at; beyond `boundary` where a windowed
            group has nothing. 0 for a model without full groups, or without windowed ones.
        beside: chunks that vLLM's lookup wants to be there although a resume at `boundary` reads none of
            their bytes: it asks for whole windows, wherever in a local attention chunk the boundary lies.
    """

    boundary: int
    parts: tuple[Part, ...]
    shared: int = 0
    beside: frozenset[ChunkKey] = frozenset()

    def keys(self) -> list[ChunkKey]:
        """Every chunk."""
        return [key for part in self.parts for key in part.keys]

    @property
    def nbytes(self) -> int:
        """Bytes of every chunk."""
        return sum(len(part.keys) * part.geometry.payload_bytes for part in self.parts)

    def first_blocks(self) -> dict[ChunkKey, int]:
        """The block where the needed bytes begin, of chunks that are not needed whole."""
        return {part.keys[0]: part.first_block for part in self.parts if part.first_block}

    def needs(self) -> list[tuple[ChunkKey, int]]:
        """Every chunk with the block where its needed bytes begin."""
        return [
            (key, part.first_block if index == 0 else 0)
            for part in self.parts
            for index, key in enumerate(part.keys)
        ]


def junction(shape: RequestShape, shared: int) -> int:
    """Where windowed groups should be kept so that the next request with this beginning is served.

    Another request computed the first `shared` tokens and left its full groups' chunks, but windowed
    groups are kept at the ends of prompts only: its own end, not where this request parts from it. This
    request computes the tokens once more; what it passes at the junction, it can leave for all others.

    Args:
        shape: the request.
        shared: see `LoadPlan.shared`.

    Returns:
        Tokens, a multiple of every group's chunk so that no chunk reaches beyond; 0 when there is
        nothing to keep, or when the end of the prompt, which is kept anyway, is the same boundary.
    """
    step = math.lcm(*(group.geometry.tokens_per_chunk for group in shape.groups))
    boundary = shared // step * step
    kept_anyway = (shape.tokens - 1) // step * step
    return boundary if shape.computed < boundary < kept_anyway else 0


def plan_load(shape: RequestShape, presence: Presence, *, exact: bool = False) -> LoadPlan:
    """The furthest boundary that the present chunks allow, and the chunks it needs.

    Args:
        shape: the request.
        presence: asked for batches of keys.
        exact: walk full prefixes chunk by chunk instead of searching; for presence that costs nothing.
    """
    nothing = LoadPlan(shape.computed, ())
    full = [group for group in shape.groups if not group.geometry.windowed]
    windowed = [group for group in shape.groups if group.geometry.windowed]
    limit = shape.cap()
    for group in full:
        limit = _shrink_to_chunks(shape, group, limit)
        if limit - shape.computed < group.geometry.tokens_per_chunk:
            return nothing
        limit = _full_limit(shape, group, limit, presence, exact)
        if limit - shape.computed < group.geometry.tokens_per_chunk:
            return nothing
    shared = limit if full and windowed else 0
    nothing = LoadPlan(shape.computed, (), shared)
    windowed.sort(key=lambda group: group.geometry.window_chunks(0), reverse=True)
    before = None
    while limit != before:
        before = limit
        for group in windowed:
            limit = _shrink_to_chunks(shape, group, limit)
            if limit - shape.computed < group.geometry.tokens_per_chunk:
                return nothing
            limit = _window_limit(shape, group, limit, presence)
            if limit - shape.computed < group.geometry.tokens_per_chunk:
                return nothing
    return LoadPlan(
        limit,
        tuple(part for group in shape.groups if (part := _part(shape, group, limit)).keys),
        shared,
        frozenset(key for group in windowed for key in _beside(shape, group, limit)),
    )


def _is_state(geometry: GroupGeometry) -> bool:
    return geometry.kind == "state"


def _shrink_to_chunks(shape: RequestShape, group: GroupKeys, limit: int) -> int:
    chunk = group.geometry.tokens_per_chunk
    limit = min(limit, len(group.keys) * chunk)
    if shape.max_load_tokens is not None:
        limit = limit // chunk * chunk
    return limit


def _full_limit(
    shape: RequestShape, group: GroupKeys, limit: int, presence: Presence, exact: bool
) -> int:
    chunk = group.geometry.tokens_per_chunk
    start = shape.computed // chunk
    end = min(ceil_div(limit, chunk), len(group.keys))
    count = (_walk if exact else _search)(group.keys, start, end, presence)
    return min(limit, (start + count) * chunk)


def _walk(keys: Sequence[ChunkKey], start: int, end: int, presence: Presence) -> int:
    """Consecutive present keys from `start`."""
    found = [*presence(keys[start:end]), False]
    return found.index(False)


def _search(keys: Sequence[ChunkKey], start: int, end: int, presence: Presence) -> int:
    """Like `_walk`, for presence that costs: supposes that a prefix has no holes.

    Asks for `SEARCH_WIDTH` keys spread over what is open, narrows to the gap behind the last one of an
    unbroken run, and repeats: three rounds for 8 192 keys.
    """
    low, high = start, end  # everything below `low` is present, `high` is absent or the end
    while low < high:
        width = min(SEARCH_WIDTH, high - low)
        points = [low + (high - low) * (i + 1) // width - 1 for i in range(width)]
        found = presence([keys[point] for point in points])
        for point, here in zip(points, found, strict=True):
            if not here:
                high = point
                break
            low = point + 1
    return low - start


def _window_limit(shape: RequestShape, group: GroupKeys, limit: int, presence: Presence) -> int:
    """The rightmost boundary at or left of `limit` whose window is complete; `computed` if there is none.

    A run of chunks that reaches back to what the device holds is complete, however short.
    """
    geometry = group.geometry
    chunk = geometry.tokens_per_chunk
    start = shape.computed // chunk
    end = min(ceil_div(limit, chunk), len(group.keys))
    needed = geometry.window_chunks(min(limit, end * chunk))
    run = 0
    index = end
    while index > start:
        low = max(start, index - max(needed - run, 1)) if run else max(start, index - needed)
        found = presence(group.keys[low:index])
        for here in reversed(found):
            index -= 1
            run = run + 1 if here else 0
            if run == needed:
                return min(limit, (index + needed) * chunk)
            if not here:
                needed = geometry.window_chunks(index * chunk)
    return min(limit, (start + run) * chunk) if run else shape.computed


def _part(shape: RequestShape, group: GroupKeys, boundary: int) -> Part:
    """Exactly what a resume at `boundary` reads: from its first token's block on."""
    geometry = group.geometry
    chunk = geometry.tokens_per_chunk
    end = min(ceil_div(boundary, chunk), len(group.keys))
    first_token = max(shape.computed, geometry.first_token(boundary))
    start = first_token // chunk
    first_block = first_token % chunk // geometry.tokens_per_block
    return Part(geometry, start, group.keys[start:end], first_block)


def _beside(shape: RequestShape, group: GroupKeys, boundary: int) -> Sequence[ChunkKey]:
    """Chunks of the window that the lookup asks for, before those that are read."""
    geometry = group.geometry
    chunk = geometry.tokens_per_chunk
    end = min(ceil_div(boundary, chunk), len(group.keys))
    asked = max(shape.computed // chunk, end - geometry.window_chunks(boundary))
    return group.keys[asked : max(shape.computed, geometry.first_token(boundary)) // chunk]
