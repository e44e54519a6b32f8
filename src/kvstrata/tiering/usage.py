"""What a request's use of a prefix consists of, for eviction. Pure."""

import bisect
from collections.abc import Iterable
from dataclasses import replace

from kvstrata.chunks.geometry import ceil_div
from kvstrata.tiering.planner import GroupKeys, RequestShape
from kvstrata.tiers.eviction import Boundary, Placed, PrefixUse


def describe_use(
    shape: RequestShape, resumed: int = 0, junctions: Iterable[int] = ()
) -> PrefixUse | None:
    """The use of a prefix by one request, or None when it has no complete chunk.

    Args:
        shape: the request, its prompt whole.
        resumed: tokens before the point where it resumes; 0 when it computes all.
        junctions: tokens before other points that it leaves states of windowed groups at.
    """
    full = [group for group in shape.groups if not group.geometry.windowed]
    chain = [placed for group in full for placed in _placed(group, 0, len(group.keys))]
    if len(full) > 1:
        chain.sort()
    end = _end(shape, shape.tokens)
    points = sorted({point for point in junctions if resumed < point < end})
    kept = [_boundary(shape, chain, point) for point in (*points, end) if point > 0]
    before = _boundary(shape, chain, resumed) if resumed > 0 else None
    if not kept and before is None:
        return None
    return PrefixUse(chain, before, kept)


def describe_answer(shape: RequestShape, prompt_tokens: int) -> PrefixUse | None:
    """What a request's answer adds to its use of a prefix; None when that is no complete chunk.

    Args:
        shape: the request, its answer included.
        prompt_tokens: tokens of the prompt alone.
    """
    before = _end(shape, prompt_tokens)
    if before <= 0 or _end(shape, shape.tokens) <= before:
        return None
    use = describe_use(shape, before)
    return None if use is None else replace(use, answered=True)


def _end(shape: RequestShape, tokens: int) -> int:
    """The furthest boundary of the request's first `tokens` tokens."""
    # A cap on loads is none on what is kept.
    end = replace(shape, tokens=tokens, max_load_tokens=None).cap()
    for group in shape.groups:
        chunk = group.geometry.tokens_per_chunk
        end = min(end, tokens // chunk * chunk, len(group.keys) * chunk)
    # Less than a chunk is never loaded; see `plan_load`.
    return end if all(end >= group.geometry.tokens_per_chunk for group in shape.groups) else 0


def _boundary(shape: RequestShape, chain: list[Placed], tokens: int) -> Boundary:
    reach = 0
    tail: list[Placed] = []
    for group in shape.groups:
        chunk = group.geometry.tokens_per_chunk
        stop = min(ceil_div(tokens, chunk), len(group.keys))
        if not group.geometry.windowed:
            reach = max(reach, stop * chunk)
        else:
            tail += _placed(group, max(0, stop - group.geometry.window_chunks(tokens)), stop)
    needed = bisect.bisect_right(chain, reach, key=lambda placed: placed.end)
    return Boundary(tokens, needed, tuple(tail))


def _placed(group: GroupKeys, start: int, stop: int) -> list[Placed]:
    chunk = group.geometry.tokens_per_chunk
    ends = range((start + 1) * chunk, (stop + 1) * chunk, chunk)
    return list(map(Placed, ends, group.keys[start:stop]))
