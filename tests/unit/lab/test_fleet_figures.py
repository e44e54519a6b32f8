"""Rows add up what runs say, and being behind is said."""

import json
from dataclasses import replace

import pytest

from lab.fleet_client import Sample
from lab.fleet_figures import Run, behind, document, order, row_of, rows_of

SAMPLE = Sample(
    conversation="0.0",
    turn=0,
    at=0.0,
    ttft=0.1,
    seconds=0.2,
    prompt_tokens=100,
    cached_tokens=40,
    answer_tokens=8,
    replica="a",
    decision="1",
)
TOKENS = {
    "a": {"device": 30, "memory": 10, "filesystem": 0, "computed": 50},
    "b": {"device": 0, "memory": 0, "filesystem": 60, "computed": 50},
}


def run(policy: str, *ttft: float, cached: int = 40, number: int = 0) -> Run:
    samples = [replace(SAMPLE, ttft=one, cached_tokens=cached) for one in ttft]
    return Run(policy, number, samples, 2.0, TOKENS, {}, 0.5)


def test_a_row_is_over_the_requests_of_all_runs() -> None:
    row = row_of([run("x", *([0.1] * 9)), run("x", *([0.1] * 8), 3.0, number=1)])
    assert row.requests == 18
    assert row.ttft_p50 == pytest.approx(100)
    assert row.ttft_p90 == pytest.approx(100)
    assert row.ttft_mean == pytest.approx((17 * 100 + 3000) / 18)
    assert row.p90_of_runs == pytest.approx((100, 100 + 0.2 * 2900))
    assert row.computed == 9 * 60
    assert (row.device, row.memory, row.storage) == (30, 10, 60)
    assert row.prompt_tokens_per_s == pytest.approx(18 * 100 / 4)
    assert row.wall == 2


def test_rows_follow_the_first_round() -> None:
    rows = rows_of(
        [run("seconds", 0.1), run("round-robin", 0.1), run("round-robin", 0.2, number=1)]
    )
    assert [(row.policy, row.requests) for row in rows] == [("seconds", 1), ("round-robin", 2)]


def test_ours_is_ahead_only_if_it_is_better_in_both() -> None:
    ours = run("seconds", 0.1, cached=50)
    assert behind(rows_of([ours, run("round-robin", 0.2, cached=40)])) == []
    [line] = behind(rows_of([ours, run("round-robin", 0.1, cached=40)]))
    assert line.startswith("TTFT p90: 100 ms, round-robin has 100 ms")
    [line] = behind(rows_of([ours, run("tier-weighted", 0.2, cached=50)]))
    assert line == "tokens recomputed: 50, tier-weighted has 50"
    both = [ours, run("a", 0.05, cached=60), run("b", 0.2, cached=40)]
    assert len(behind(rows_of(both))) == 2


def test_without_ours_nothing_is_behind() -> None:
    assert behind(rows_of([run("round-robin", 0.1)])) == []


def test_a_report_is_json() -> None:
    written = json.loads(json.dumps(document([run("seconds", 0.1)])))
    assert written["rows"][0]["policy"] == "seconds"
    assert written["runs"][0]["samples"][0]["cached_tokens"] == 40


def test_every_other_round_runs_backwards() -> None:
    assert order(["a", "b", "c"], 0) == ["a", "b", "c"]
    assert order(["a", "b", "c"], 1) == ["c", "b", "a"]
