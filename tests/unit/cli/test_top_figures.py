"""Rows of `kvstrata top`: what changed between two looks at real metrics, at made ones, and at nonsense."""

import bisect
import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from kvstrata.cli import top_view
from kvstrata.cli.top_view import Watched
from kvstrata.cli.watched import Amount, engine_row, router_row
from kvstrata.cli.watching import Change, Kind, grown, quantiles, rates, read

RECORDED = Path(__file__).parents[1] / "deploy" / "recorded"
ENGINE = (RECORDED / "engines.txt").read_text()
ROUTER = (RECORDED / "router.txt").read_text()
BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LIKELY = st.lists(
    st.sampled_from(
        [
            'vllm:kvstrata_tokens_total{tier="memory"} 5',
            'vllm:kvstrata_tokens_total{tier="memory"} NaN',
            'vllm:kvstrata_tokens_total{tier="} 5',
            "vllm:kvstrata_tokens_total 1e300",
            'vllm:kvstrata_bytes_total{tier="a",direction="read"} 9e18',
            'vllm:kvstrata_stored_bytes{what="used"} 7',
            'vllm:kvstrata_stored_bytes{what="bound"} 0',
            "vllm:kvstrata_set_aside 1",
            'vllm:kvstrata_load_wait_seconds_bucket{le="+Inf"} 3',
            'vllm:kvstrata_load_wait_seconds_bucket{le="x"} 3',
            'vllm:kvstrata_load_wait_seconds_bucket{le="1"} 7',
            "kvstrata_router_in_flight 3",
            'kvstrata_router_replica_state{state="up"} 1',
            "\x1b[2J[bold]",
        ]
    )
)


def change(before: str, after: str, seconds: float = 2.0) -> Change:
    return Change(read(before), read(after), seconds)


def shown(*watched: Watched) -> str:
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    changes = None
    console.print(top_view.screen(watched, changes))
    return console.export_text()


def parsed(text: str) -> dict[tuple[str, str], dict[str, float]]:
    """Values by one of their labels, by name and that label, as Prometheus' own reader has them."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault((sample.name, label), {})[value] = sample.value
    return found


def test_an_engine_that_did_all_that_was_recorded_in_two_seconds() -> None:
    nothing = re.sub(r" \S+$", " 0", ENGINE, flags=re.MULTILINE)
    made = change(nothing, ENGINE)
    row = engine_row([made])
    assert made.after.kind is Kind.ENGINE and row.ours and not row.restarted
    told = parsed(ENGINE)
    tokens = told["vllm:kvstrata_tokens_total", "tier"]
    assert tokens.keys() == {"device", "memory", "filesystem", "computed"}
    for tier, count in tokens.items():
        assert row.shares[tier] == pytest.approx(count / sum(tokens.values()))
    assert row.prompt_tokens_per_s == pytest.approx(sum(tokens.values()) / 2)
    dropped = told["vllm:kvstrata_writes_dropped_total", "reason"]["capacity"]
    assert dropped and row.dropped["capacity"] == Amount(dropped, dropped)
    bad = told["vllm:kvstrata_bad_records_total", "reason"]
    assert bad["truncated"] and row.bad == {why: Amount(n, n) for why, n in bad.items()}
    assert row.bound == pytest.approx(256 << 20, rel=1e-5)
    assert row.used is not None and 0 < row.used < row.bound
    assert set(row.read_bytes_per_s) == set(row.written_bytes_per_s) == {"filesystem"}
    assert row.queues.keys() == {"survey", "read", "write"}
    assert not row.set_aside and row.stuck == 0
    low, high = row.load_wait
    assert low is not None and high is not None and 0 < low <= high <= BOUNDS[-1]
    text = shown(Watched("a:1", row))
    assert (
        f"device {100 * row.shares['device']:.0f}%" in text
        and "not stored: capacity" in text
        and "well" in text
    )
    json.dumps(top_view.as_dict([Watched("a:1", row)], row), allow_nan=False)


def test_a_router_that_did_all_that_was_recorded() -> None:
    nothing = re.sub(r"(_total\{.*) \S+$", r"\1 0", ROUTER, flags=re.MULTILINE)
    made = change(nothing, ROUTER, 10.0)
    row = router_row(made)
    assert made.after.kind is Kind.ROUTER
    assert row.replicas == {"up": 2} and row.trust == {"synced": 2} and row.alarms == ()
    assert row.answers_per_s.keys() == {"200"} and row.answers_per_s["200"] > 1
    assert sum(row.shares.values()) == pytest.approx(1)
    assert "2 up" in shown(Watched("r:1", row))
    down = ROUTER.replace('state="up"} 1', 'state="up"} 0')
    assert "no replica is up" in shown(Watched("r:1", router_row(change(ROUTER, down))))


COUNTER = 'vllm:kvstrata_bad_records_total{{engine="0",reason="{}"}} {}'


def test_an_engine_that_began_anew_counts_from_nothing() -> None:
    made = change(COUNTER.format("io", 90), COUNTER.format("io", 4))
    row = engine_row([made])
    assert row.restarted and row.bad == {"io": Amount(4, 4)}
    assert "restarted" in shown(Watched("a:1", row))


def test_a_series_that_appears_grew_from_nothing_and_one_that_goes_is_forgotten() -> None:
    made = change(COUNTER.format("io", 90), COUNTER.format("checksum", 3))
    assert grown([made], "vllm:kvstrata_bad_records_total", "reason") == {"checksum": 3}


def test_rates_of_processes_that_were_looked_at_for_other_times_are_added() -> None:
    text = 'vllm:kvstrata_bytes_total{{tier="filesystem",direction="read"}} {}'
    changes = [change(text.format(0), text.format(10), seconds) for seconds in (1.0, 5.0)]
    name = "vllm:kvstrata_bytes_total"
    assert rates(changes, name, "tier", direction="read") == {"filesystem": 12.0}
    assert rates(changes, name, "tier", direction="write") == {}


def stored(used: int, bound: int, place: str) -> Change:
    text = "\n".join(
        [
            f'vllm:kvstrata_stored_bytes{{tier="filesystem",what="used"}} {used}',
            f'vllm:kvstrata_stored_bytes{{tier="filesystem",what="bound"}} {bound}',
            f'vllm:kvstrata_info{{storage="{place}"}} 1',
        ]
    )
    return change(text, text)


def test_a_path_that_several_engines_share_counts_once() -> None:
    row = engine_row([stored(70, 100, "m-1@x"), stored(72, 100, "m-2@x"), stored(5, 50, "m-1@y")])
    assert (row.used, row.bound) == (77, 150)
    nameless = engine_row([stored(70, 100, ""), stored(72, 100, "")])
    assert (nameless.used, nameless.bound) == (72, 100)
    assert engine_row([change("vllm:x 1", "vllm:x 1")]).used is None


def buckets(values: list[float]) -> str:
    ordered = sorted(values)
    counts = [(bound, bisect.bisect_right(ordered, bound)) for bound in BOUNDS]
    lines = [f'vllm:t_bucket{{le="{bound}"}} {count}' for bound, count in counts]
    return "\n".join([*lines, f'vllm:t_bucket{{le="+Inf"}} {len(values)}'])


@given(
    st.lists(st.floats(0.0001, 20.0)),
    st.lists(st.floats(0.0001, 20.0), min_size=1),
    st.floats(0.01, 1),
)
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_stands_for(
    before: list[float], new: list[float], share: float
) -> None:
    (found,) = quantiles([change(buckets(before), buckets([*before, *new]))], "vllm:t", [share])
    rank = max(1, -(-share * len(new) // 1))
    value = sorted(new)[min(int(rank), len(new)) - 1]
    at = bisect.bisect_left(BOUNDS, value)
    assert found is not None
    if at == len(BOUNDS):
        assert found == BOUNDS[-1]
    else:
        assert (0, *BOUNDS)[at] <= found <= BOUNDS[at] * (1 + 1e-9)


def test_what_observed_nothing_or_contradicts_itself_has_no_quantile() -> None:
    text = buckets([0.5, 2.0])
    assert quantiles([change(text, text)], "vllm:t", [0.5, 0.9]) == (None, None)
    wrong = text.replace('le="+Inf"} 2', 'le="+Inf"} 1')
    nothing = buckets([])
    assert quantiles([change(nothing, wrong)], "vllm:t", [0.5]) == (None,)
    endless = "\n".join(text.split("\n")[:-1])
    assert quantiles([change(nothing, endless)], "vllm:t", [0.5]) == (None,)


@given(st.text(max_size=200))
def test_nonsense_is_refused_in_one_way(text: str) -> None:
    with contextlib.suppress(ValueError):
        read(text)


@given(LIKELY, LIKELY)
def test_half_nonsense_is_shown(before: list[str], after: list[str]) -> None:
    try:
        looks = read("\n".join(before)), read("\n".join(after))
    except ValueError:
        return
    made = Change(*looks, 1.0)
    row = router_row(made) if made.after.kind is Kind.ROUTER else engine_row([made])
    assert shown(Watched("a:1", row))
    json.dumps(top_view.as_dict([Watched("a:1", row)], None), allow_nan=False)
