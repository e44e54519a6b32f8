"""The eviction benchmark measures what it says: its traces, its replay and its bound."""

import itertools

import pytest

from kvstrata.tiers.eviction_choice import POLICIES
from lab.bench import eviction
from lab.bench.replay import MODELS, limits, replay, steps
from lab.bench.traces import BLOCK, TRACES, Text, trace

COUNT = 50


@pytest.mark.parametrize("name", list(TRACES))
def test_a_trace_is_the_same_each_time_and_another_with_another_seed(name: str) -> None:
    first, again, other = (trace(TRACES[name](seed), COUNT) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len(first) == COUNT


def test_blocks_are_shared_exactly_as_far_as_tokens_are() -> None:
    system, left, right = Text(1, 300), Text(2, 400), Text(3, 400)
    prompts = [(system, left), (system, right), (system, left, right), (left,)]
    one, two, three, four = trace(iter(prompts), 10)
    assert [len(r.blocks) for r in (one, two, three, four)] == [5, 5, 8, 3]
    assert two.shared == 300 // BLOCK * BLOCK and one.shared == 0
    assert one.blocks[:2] == two.blocks[:2] and one.blocks[2] != two.blocks[2]
    assert three.shared == 700 // BLOCK * BLOCK
    assert not set(four.blocks) & set(one.blocks), "a block is known by all that stands before it"


@pytest.mark.parametrize(("name", "model"), list(itertools.product(TRACES, MODELS)))
def test_nobody_beats_the_bound_and_nobody_needs_more_than_everything(
    name: str, model: str
) -> None:
    replayed = steps(trace(TRACES[name](5), COUNT), MODELS[model])
    limit = limits(replayed, MODELS[model])
    bounds = [limit.bound(limit.distinct_bytes * percent // 100) for percent in (5, 30, 60, 1000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(limit.served)
    for maker in POLICIES.values():
        arena = max(limit.distinct_bytes * 30 // 100, 1 << 17)
        assert replay(replayed, MODELS[model], arena, maker) <= limit.bound(arena) + 1e-6
        roomy = replay(replayed, MODELS[model], 2 * limit.distinct_bytes, maker)
        assert roomy == limit.served, "with room for all, every policy serves all"


def test_the_figures_are_of_the_cases_that_they_name() -> None:
    def case(model: str, percent: int, ours: int) -> eviction.Case:
        return eviction.Case(
            "t", model, percent, 1000, 900, 400, {"boundary": ours, "lru": 100, "arc": 50}
        )

    found = [
        *(case("full", percent, 99) for percent in eviction.PARTS),
        *(case("mamba 3:1", percent, 100 + percent) for percent in eviction.PARTS),
        *(case("window-128 1:1", percent, 100 + percent) for percent in eviction.PARTS),
    ]
    figures = eviction.figures(found)
    assert figures["reused_vs_lru_30"] == pytest.approx(1.3)
    assert figures["reused_vs_bound_30"] == pytest.approx(130 / 400)
    assert figures["bound_vs_lru_30"] == pytest.approx(4)
    assert figures["worst_vs_lru"] == pytest.approx(0.99)
    assert figures["full_reused_vs_lru_10"] == pytest.approx(0.99)
