"""What the demo and the benchmarks conclude and write, from samples that are known."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from kvstrata.doctor.probe import probe
from lab import demo, models, plots
from lab.bench import page_cache, results, ttft
from lab.demo import Row
from lab.exclusive import OccupiedError, exclusive
from lab.server import EngineServer

COLD = Row("cold", 9000.0, 0, 1.0, True, 0)
STORAGE = Row("storage_restart", 100.0, 16384, 90.0, True, 44_040_192)


def test_a_good_demo_has_no_failures() -> None:
    assert demo.failures([COLD, STORAGE]) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row("device", 90.0, 16384, 100.0, False, 0), "device: the tokens differ"),
        (Row("storage_restart", 2000.0, 16384, 4.5, True, 1), "only 4.5x faster"),
        (Row("storage_restart", 100.0, 16384, 90.0, True, 0), "nothing was read from files"),
    ],
)
def test_each_failure_of_the_demo_is_said(row: Row, said: str) -> None:
    (found,) = demo.failures([COLD, row])
    assert said in found


def test_a_row_stands_below_its_header() -> None:
    shown = demo.line(STORAGE)
    for word, value in (("speed-up", "90.0x"), ("cached", "16384"), ("MiB read", "42.0")):
        assert shown.index(value) + len(value) == demo.HEADER.index(word) + len(word)
    assert demo.line(Row("device", 1, 1, 1, False, 0)).endswith("DIFFERENT")


def test_the_report_has_the_promised_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DIRECTORY", tmp_path)
    demo.save([COLD, STORAGE])
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["rows"][1] == {
        "step": "storage_restart",
        "ttft_ms": 100.0,
        "cached_tokens": 16384,
        "speedup": 90.0,
        "identical": True,
        "bytes_read": 44_040_192,
    }
    assert written["machine"]["cores"] >= 1 and written["versions"]["python"]
    assert (tmp_path / "ttft.png").read_bytes().startswith(b"\x89PNG")


def test_a_benchmark_writes_the_common_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "DIRECTORY", tmp_path / "bench")
    path = results.save("x", {"ratio_32k": 1.23456789}, {"ratio_*": "1 is ideal"}, {"a": [1.23456]})
    written = json.loads(path.read_text())
    assert path == tmp_path / "bench" / "x.json"
    assert list(written) == ["figures", "unit notes", "machine", "versions", "samples"]
    assert written["figures"] == {"ratio_32k": 1.2346}
    assert written["samples"] == {"a": [1.235]}


def test_the_spread_names_median_extremes_and_number() -> None:
    assert results.spread([3.0, 1.0, 9.0]) == "3.0 (1.0 - 9.0, 3)"
    assert results.spread([]) == "-"


def bench(tmp_path: Path) -> ttft.Bench:
    """Samples whose medians are whole ratios of each other."""
    server = EngineServer("llama", tmp_path / "log")
    made = ttft.Bench(server, tmp_path, Console(quiet=True), [1024, 32768])
    for length in made.lengths:
        made.samples["recompute", length] = [3000.0]
        made.samples["device", length] = [90.0, 100.0, 500.0]
        made.samples["memory", length] = [1.0, 110.0, 110.0]
        made.samples["storage", length] = [120.0]
        made.samples["storage_cold", length] = [150.0]
    return made


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.server.ensure", lambda name: Path(name))


def test_figures_are_ratios_of_medians(tmp_path: Path) -> None:
    found = ttft.figures_of(bench(tmp_path), "gemma3_")
    assert found["gemma3_memory_over_device_32k"] == pytest.approx(1.1)
    assert found["gemma3_storage_over_device_32k"] == pytest.approx(1.2)
    assert found["gemma3_storage_cold_over_device_1k"] == pytest.approx(1.5)
    assert found["gemma3_storage_speedup_32k"] == pytest.approx(25)
    assert len(found) == 8


def test_the_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttft, "DIRECTORY", tmp_path)
    made = bench(tmp_path)
    drawn = ttft.draw(dict.fromkeys(ttft.MODELS, made))
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_the_arena_holds_one_longest_prompt_but_not_two() -> None:
    for model in ttft.MODELS:
        recipe = models.RECIPES[model]
        full = recipe.layer_types.count("full_attention")
        one = full * 32768 * 2 * recipe.key_value_heads * recipe.head_size * 4
        assert one < ttft.arena_bytes(model, 32768) < 2 * one


def test_pages_of_a_file_are_in_the_page_cache_until_they_are_dropped(tmp_path: Path) -> None:
    if probe(tmp_path, write=False).in_memory:
        pytest.skip("temporary files live in memory here: their pages stay")
    path = tmp_path / "x.kv"
    path.write_bytes(b"x" * 8193)
    (tmp_path / "y.kv").hardlink_to(path)
    with path.open("rb") as file:
        assert page_cache.cached_pages(file.fileno()) == 3
        page_cache.drop_pages(tmp_path)
        for _ in range(2):  # asking reads nothing
            assert page_cache.cached_pages(file.fileno()) == 0


def test_pages_that_stay_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.kv").write_bytes(b"x" * 8192)
    monkeypatch.setattr(page_cache.os, "posix_fadvise", lambda *_: None)
    with pytest.raises(RuntimeError, match="1 of 1 files"):
        page_cache.drop_pages(tmp_path)


def test_only_one_measures(tmp_path: Path) -> None:
    lock = tmp_path / "made" / "lock"
    with exclusive(lock), pytest.raises(OccupiedError, match="try again"), exclusive(lock):
        pytest.fail("both hold it")
    with exclusive(lock):
        pass


def test_labels_say_time_factor_and_what_was_read() -> None:
    assert demo.label(COLD) == "9,000 ms"
    assert demo.label(STORAGE) == "100 ms   90x   42 MiB"


def test_bars_take_any_number_of_rows(tmp_path: Path) -> None:
    plots.bars(tmp_path / "one.png", [("cold", 10.0, "10 ms", "red")], "title", "ms")
    assert (tmp_path / "one.png").exists()
