"""What can be loaded is what the connector would load: the same boundary, the same chunks, the same bytes."""

import math
import os

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvstrata.chunks.key import group_of, make_key
from kvstrata.routing.boundary import last_hash
from kvstrata.routing.reuse import Reached, reach
from kvstrata.routing.shape import ModelShape
from kvstrata.tiering.planner import plan_load
from tests.unit.vllm_plugin.test_planner_against_vllm import (
    BLOCK,
    cases,
    group_config,
    shape_of,
    vllm_answer,
)

MORE = int(os.environ.get("KVSTRATA_MORE_CASES", "1"))
"""Factor for a longer search than a change has to wait for."""


@st.composite
def contents(draw):
    """A case of the planner's, with holes in full groups too, and where each chunk lies."""
    per_chunk, configs, keys, present, tokens, computed, cap = draw(cases())
    unit = math.lcm(*(config.tokens_per_chunk for config in configs))
    if tokens // unit * unit > computed and draw(st.booleans()):
        # Where the last token ends a chunk, the boundary before it lies inside that chunk.
        tokens = tokens // unit * unit
        keys = [
            group[: tokens // config.tokens_per_chunk]
            for group, config in zip(keys, configs, strict=True)
        ]
    present = set(present) & {key for group in keys for key in group}
    for group in keys:
        if group and draw(st.integers(0, 3)) == 0:
            present.discard(group[draw(st.integers(0, len(group) - 1))])
    ordered = sorted(present)
    places = draw(st.lists(st.integers(0, 2), min_size=len(ordered), max_size=len(ordered)))
    memory = {key for key, place in zip(ordered, places, strict=True) if place != 1}
    storage = {key for key, place in zip(ordered, places, strict=True) if place != 0}
    return per_chunk, configs, keys, memory, storage, tokens, computed, cap


def asker(shape: ModelShape, keys, present):
    """Membership by group and hash, as the rule asks it."""
    held = {
        (group.group, last_hash(shape, group, index))
        for group, chunks in zip(shape.groups, keys, strict=True)
        for index, key in enumerate(chunks)
        if key in present
    }
    return lambda group, index: (group.group, index) in held


def shape_for(geometries) -> ModelShape:
    return ModelShape.make(
        geometries,
        BLOCK,
        max(geometry.tokens_per_block for geometry in geometries),
        frozenset(geometry.group for geometry in geometries),
    )


@settings(max_examples=600 * MORE)
@given(contents())
def test_loads_are_the_connectors(case) -> None:
    check(case)


def test_a_boundary_inside_a_chunk_asks_for_a_longer_window_than_one_at_its_end() -> None:
    """A window that reaches back one block: two before token 63, one before token 48."""
    configs = [group_config(0, "full", 0, BLOCK, 1), group_config(1, "window", BLOCK + 1, BLOCK, 1)]
    keys = [[make_key(bytes([i]) * 16, group) for i in range(4)] for group in range(2)]
    assert check((1, configs, keys, {*keys[0], keys[1][2]}, set(), 64, 0, None)) == 48
    assert check((1, configs, keys, {*keys[0], keys[1][3]}, set(), 64, 0, None)) == 0
    assert check((1, configs, keys, {*keys[0], *keys[1][2:]}, set(), 64, 0, None)) == 63


def check(case) -> int:
    """The rule, the planner and vLLM agree; where."""
    per_chunk, configs, keys, memory, storage, tokens, computed, cap = case
    request = shape_of(configs, per_chunk, keys, tokens, computed, cap)
    geometries = [group.geometry for group in request.groups]
    shape = shape_for(geometries)
    assume(computed % shape.step == 0)
    for present in (memory, memory | storage):
        plan = plan_load(request, lambda asked, p=present: [k in p for k in asked], exact=True)
        boundary = computed + vllm_answer(configs, per_chunk, keys, present, tokens, computed, cap)
        found = reach(
            shape,
            tokens,
            Reached(computed),
            asker(shape, keys, present),
            asker(shape, keys, memory),
            cap,
        )
        assert found.tokens == boundary == plan.boundary
        assert loads_of(found) == needs_of(plan, geometries, memory)
    return found.tokens


def loads_of(found: Reached) -> dict:
    return {(load.tier, load.group): (load.chunks, load.tokens, load.bytes) for load in found.loads}


def needs_of(plan, geometries, memory) -> dict:
    """Chunks, tokens and bytes by tier and group, of what the planner asks for."""
    by_group = {geometry.group: geometry for geometry in geometries}
    found: dict = {}
    for key, first_block in plan.needs():
        geometry = by_group[group_of(key)]
        blocks = geometry.blocks_per_chunk - first_block
        place = ("memory" if key in memory else "storage", geometry.group)
        chunks, tokens, nbytes = found.get(place, (0, 0, 0))
        found[place] = (
            chunks + 1,
            tokens + blocks * geometry.tokens_per_block,
            nbytes + blocks * geometry.block_bytes,
        )
    return found


@settings(max_examples=500)
@given(contents())
def test_what_is_not_cut_is_as_far_as_it_goes(case) -> None:
    per_chunk, configs, keys, memory, storage, tokens, computed, cap = case
    request = shape_of(configs, per_chunk, keys, tokens, computed, cap)
    shape = shape_for([group.geometry for group in request.groups])
    assume(computed % shape.step == 0)
    has = asker(shape, keys, memory | storage)
    found = reach(shape, tokens, Reached(computed), has, has, cap)
    complete = reach(shape, tokens, Reached(computed), lambda *_: True, lambda *_: True, cap)
    assert found.tokens <= complete.tokens and complete.cuts == ()
    if not found.cuts:
        assert found.tokens == complete.tokens
    for cut in found.cuts:
        assert found.tokens <= max(cut.after, computed) < cut.before
