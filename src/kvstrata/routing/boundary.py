"""Where a request can resume: vLLM's rule for its own cache, and the connector's for the tiers below.

Both are written down as they run there, block by block and group by group, so that they can be compared
line for line; nothing here is made to be fast. What is found faster elsewhere must equal this.

The device's rule is that of `KVCacheManager.get_computed_blocks` and its coordinators: the last token is
always computed, hits are multiples of the alignment, groups of one specification are looked up together,
full ones first, and whatever shortens the hit makes the others look again.

The tiers' rule is that of the connector and of vLLM's `_lookup_complete_chunks`: whole chunks, beginning
where the device's hit ends; windows whole, or reaching back to the device's hit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from kvstrata.chunks.geometry import GroupGeometry, GroupKind, ceil_div
from kvstrata.routing.shape import ModelShape

Has = Callable[[GroupGeometry, int], bool]
"""Whether a tier holds, of a group, what ends with the i-th hash of the prompt."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One step by which a boundary became shorter because something is not there.

    Attributes:
        groups: that did it.
        kind: of their attention.
        before: tokens, the boundary that the others allowed.
        after: tokens, what these left of it.
    """

    groups: tuple[int, ...]
    kind: GroupKind
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a request can resume.

    Attributes:
        tokens: before that point.
        cuts: what made it shorter than the prompt, in the order in which it was found.
    """

    tokens: int
    cuts: tuple[Cut, ...] = ()


def device_boundary(shape: ModelShape, tokens: int, has: Has) -> Boundary:
    """The longest prefix that the device's own cache holds for all groups.

    Args:
        shape: of the model.
        tokens: of the prompt.
        has: asks the device's cache.
    """
    alike = _alike(shape.groups)
    once = len(shape.groups) == 1 or (len(alike) == 2 and alike[0][0].kind is GroupKind.FULL)
    limit = max(tokens - 1, 0)
    full: dict[int, int] = {}
    cuts: list[Cut] = []
    while True:
        current = limit
        for index, groups in enumerate(alike):
            if index in full:
                current = min(current, full[index])
                continue
            before = current
            current = _find(shape, groups, before, has)
            if groups[0].kind is GroupKind.FULL:
                full[index] = current
            if current < before // shape.alignment_tokens * shape.alignment_tokens:
                alone = {g.group: _find(shape, [g], before, has) for g in groups}
                least = tuple(g for g, found in alone.items() if found == min(alone.values()))
                cuts.append(Cut(least, groups[0].kind, before, current))
        if current >= limit or once:
            return Boundary(current, tuple(cuts))
        limit = current


def _alike(groups: Sequence[GroupGeometry]) -> list[list[GroupGeometry]]:
    """Groups that vLLM looks up together, full attention first."""
    found: dict[tuple[GroupKind, int, int, int], list[GroupGeometry]] = {}
    for group in groups:
        spec = (group.kind, group.tokens_per_block, group.window_tokens, group.extra_tokens)
        found.setdefault(spec, []).append(group)
    return sorted(found.values(), key=lambda alike: alike[0].kind is not GroupKind.FULL)


def _find(shape: ModelShape, groups: Sequence[GroupGeometry], limit: int, has: Has) -> int:
    """`find_longest_cache_hit` of the groups' manager: tokens, at most `limit`."""
    kind, block = groups[0].kind, groups[0].tokens_per_block

    def held(end: int) -> bool:
        return all(has(group, end // shape.hash_tokens - 1) for group in groups)

    if kind is GroupKind.FULL:
        return _find_full(held, limit, block, shape.alignment_tokens)
    if kind is GroupKind.WINDOW:
        need = max(ceil_div(groups[0].window_tokens - 1, block), 1)
        return _find_window(held, limit, block, shape.alignment_tokens, need)
    if kind is GroupKind.LOCAL:
        return _find_local(held, limit, block, groups[0].window_tokens)
    # A state ends anywhere the cache aligns to: at blocks, or inside them.
    unit = min(block, shape.alignment_tokens)
    for end in range(limit // unit * unit, 0, -unit):
        if end % shape.alignment_tokens == 0 and held(end):
            return end
    return 0


def _find_full(held: Callable[[int], bool], limit: int, block: int, alignment: int) -> int:
    ends = range(block, limit // block * block + 1, block)
    hit = max(takewhile(held, ends), default=0)
    if alignment < block:
        # One more block may be known by a hash from its inside, where a prompt ended.
        inside = min(hit + block - alignment, limit // alignment * alignment)
        hit = next((end for end in range(inside, hit, -alignment) if held(end)), hit)
    return hit // alignment * alignment


def _find_window(
    held: Callable[[int], bool], limit: int, block: int, alignment: int, need: int
) -> int:
    run = 0
    for index in range(limit // block - 1, -1, -1):
        if not held((index + 1) * block):
            run = 0
        elif run or (index + 1) * block % alignment == 0:
            run += 1
            if run == need:
                return (index + need) * block
    return run * block  # a run from the beginning of the prompt is a window, however short


def _find_local(held: Callable[[int], bool], limit: int, block: int, window: int) -> int:
    start = limit // window * window // block
    return next(i for i in count(start) if i >= limit // block or not held((i + 1) * block)) * block


def tier_boundary(
    shape: ModelShape, tokens: int, computed: int, has: Has, load_cap: int | None = None
) -> Boundary:
    """The furthest boundary that can be loaded; `computed` when there is none.

    Args:
        shape: of the model.
        tokens: of the prompt.
        computed: tokens that the device holds already.
        has: asks the tiers, by a chunk's last hash.
        load_cap: the request's own cap on tokens to load, or None.
    """
    groups = [group for group in shape.groups if group.group in shape.tiered]
    full = [group for group in groups if not group.windowed]
    windowed = [group for group in groups if group.windowed]
    windowed.sort(key=lambda group: group.window_chunks(0), reverse=True)
    limit = _cap(groups, tokens, computed, load_cap)
    cuts: list[Cut] = []
    again = full + windowed
    while again:
        before = limit
        for group in again:
            chunk = group.tokens_per_chunk
            limit = min(limit, tokens // chunk * chunk)
            if load_cap is not None:
                limit = limit // chunk * chunk
            if limit - computed < chunk:
                return Boundary(computed, tuple(cuts))
            found = (_load_window if group.windowed else _load_full)(
                shape, group, limit, computed, has
            )
            if found < limit:
                cuts.append(Cut((group.group,), group.kind, limit, found))
                limit = found
            if limit - computed < chunk:
                return Boundary(computed, tuple(cuts))
        again = windowed if limit != before else []
    return Boundary(limit if groups else computed, tuple(cuts))


def _cap(groups: Sequence[GroupGeometry], tokens: int, computed: int, load_cap: int | None) -> int:
    cap = tokens if load_cap is None else min(tokens, computed + load_cap)
    if any(group.windowed for group in groups):
        cap -= 1  # a window must still fit before the last token, which is computed
    for group in groups:
        if group.kind is GroupKind.STATE:
            cap = cap // group.tokens_per_chunk * group.tokens_per_chunk
    return cap


def _load_full(shape: ModelShape, group: GroupGeometry, limit: int, computed: int, has: Has) -> int:
    chunk = group.tokens_per_chunk
    end = computed // chunk
    while end * chunk < limit and has(group, last_hash(shape, group, end)):
        end += 1
    return min(limit, end * chunk)


def _load_window(
    shape: ModelShape, group: GroupGeometry, limit: int, computed: int, has: Has
) -> int:
    chunk = group.tokens_per_chunk
    start, end = computed // chunk, ceil_div(limit, chunk)
    # A boundary inside the last chunk needs one that reaches further left.
    needed = group.window_chunks(limit)
    run = 0
    for index in range(end - 1, start - 1, -1):
        if has(group, last_hash(shape, group, index)):
            run += 1
            if run == needed:
                return min(limit, (index + needed) * chunk)
        else:
            run, needed = 0, group.window_chunks(index * chunk)
    return min(limit, (start + run) * chunk) if run else computed


def last_hash(shape: ModelShape, group: GroupGeometry, index: int) -> int:
    """Which hash of the prompt names a group's chunk."""
    return (index + 1) * group.tokens_per_chunk // shape.hash_tokens - 1
