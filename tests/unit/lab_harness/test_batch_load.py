"""What the batch benchmark expects and concludes, from shapes and events that are known."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.tiering.planner import GroupKeys, RequestShape, plan_load
from lab.bench import batch_load, batch_shape
from lab.bench.batch_shape import Batch, bytes_needed
from lab.recipes import RECIPES

HALF = RECIPES["wide-half"]
PAGE = 2 * 4 * 128 * 4 * 128
"""Bytes of one layer's block: keys and values, 4 heads of 128 floats, 128 tokens."""


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        # 64 blocks of each full layer; of a window of 128 the last block, of one of 1024 the last eight.
        ("wide-half", 4 * 64 + 4 * 1),
        ("wide-half-w1024", 4 * 64 + 4 * 8),
        ("wide-three-quarters", 2 * 64 + 6 * 1),
    ],
)
def test_the_formula_by_hand(model: str, blocks: int) -> None:
    assert bytes_needed(RECIPES[model], 8192, hybrid=True) == blocks * PAGE
    assert bytes_needed(RECIPES[model], 8192, hybrid=False) == 8 * 64 * PAGE


def test_a_window_that_sees_everything_saves_nothing() -> None:
    wide = dataclasses.replace(HALF, window=4096)
    assert bytes_needed(wide, 1024, hybrid=True) == bytes_needed(wide, 1024, hybrid=False)


@given(window=st.integers(2, 3000), blocks=st.integers(1, 30), full_every=st.sampled_from([2, 4]))
def test_the_formula_is_what_a_load_is_planned_to_read(
    window: int, blocks: int, full_every: int
) -> None:
    recipe = dataclasses.replace(HALF, window=window, full_every=full_every)
    layers = recipe.layer_types.count("full_attention")
    sizes = (layers * PAGE,)
    full = GroupGeometry(0, GroupKind.FULL, 128, 1, sizes)
    windows = [
        GroupGeometry(group, GroupKind.WINDOW, 128, 1, sizes, window_tokens=window)
        for group in range(1, 8 // layers)
    ]
    keys = [bytes([block]) * 4 for block in range(blocks)]
    shape = RequestShape([GroupKeys(g, keys) for g in (full, *windows)], blocks * 128 + 1, 0)
    plan = plan_load(shape, lambda asked: [True] * len(asked))
    assert plan.boundary == blocks * 128
    planned = sum(
        (part.geometry.blocks_per_chunk * len(part.keys) - part.first_block)
        * part.geometry.block_bytes
        for part in plan.parts
    )
    assert planned == bytes_needed(recipe, blocks * 128, hybrid=True)


def events(*loads: tuple[float, int]) -> list[str]:
    asked = [{"event": "asked", "at": 10.0 + n / 1000} for n in range(len(loads))]
    ended = [{"event": "loaded", "began": 10, "ended": e, "nbytes": n} for e, n in loads]
    return [json.dumps(one) for one in [{"event": "queued"}, *asked, *ended]]


def test_a_load_lasts_from_the_first_look_to_the_last_chunk() -> None:
    milliseconds, nbytes = batch_shape.load_of(events((10.5, 3), (10.2, 4)), requests=2)
    assert milliseconds == pytest.approx(500)
    assert nbytes == 7


@pytest.mark.parametrize("requests", [1, 3])
def test_a_batch_that_was_not_loaded_whole_has_no_load(requests: int) -> None:
    with pytest.raises(ValueError, match="2 loads of 2 requests"):
        batch_shape.load_of(events((10.5, 3), (10.2, 4)), requests)


def measured() -> batch_load.Measured:
    """Loads that take 1.5 times as long with the hybrid manager off, and first tokens 1.2 times."""
    found = batch_load.Measured(needed={"on": 100, "off": 190}, resident={"on": 5.0, "off": 9.0})
    for case in batch_shape.CASES:
        for mode, factor, first in (("on", 1.0, 1.0), ("off", 1.5, 1.2)):
            for samples in (found.loads, found.plain):
                samples[case, mode] = [
                    Batch(noise * factor, noise * 10 * first, found.needed[mode], 0)
                    if case == "memory"
                    else Batch(noise * factor, noise * 10 * first, *[found.needed[mode]] * 2)
                    for noise in (8.0, 9.0, 50.0)
                ]
    return found


def test_figures_are_ratios_of_medians() -> None:
    figures = batch_load.figures_of(measured(), "w1024_")
    assert figures["w1024_hma_speedup_memory"] == pytest.approx(1.5)
    assert figures["w1024_batch_ttft_speedup_storage"] == pytest.approx(1.2)
    assert figures["w1024_device_capacity_gain"] == pytest.approx(1.8)
    assert figures["w1024_formula"] == pytest.approx(1.9)
    assert figures["w1024_bytes_vs_formula"] == 1


@pytest.mark.parametrize("more", [Batch(1, 1, 103, 100), Batch(1, 1, 100, 103)])
def test_one_batch_that_reads_too_much_shows(more: Batch) -> None:
    found = measured()
    found.plain["storage", "on"].append(more)
    assert batch_load.figures_of(found, "")["bytes_vs_formula"] == pytest.approx(1.03)


def test_the_table_has_every_case() -> None:
    console = Console(width=200, record=True, quiet=False)
    with console.capture() as shown:
        console.print(batch_load.table_of("wide-half", 8192, measured()))
    text = shown.get()
    assert text.count("1.50") == len(batch_shape.CASES)
    assert "9 (8-50, 3)" in text and "storage, cold" in text


def test_the_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_load, "DIRECTORY", tmp_path)
    drawn = batch_load.draw(dict.fromkeys(batch_load.MODELS, measured()), 8192)
    assert drawn.read_bytes().startswith(b"\x89PNG")
