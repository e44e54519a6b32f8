"""What an engine's counters show of answers that tell nothing, and when they show nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.routing.decision import Appraisal, Reach, Reuse
from kvstrata.routing.drift import LESS, Change, Drift, Window, slack_of
from kvstrata.routing.totals import Counted, Totals, read_counters


def said(tokens: int) -> Appraisal:
    reuse = Reuse(Reach(tokens), Reach(tokens), Reach(tokens))
    return Appraisal(replica="a", score=0.0, tokens=tokens, reuse=reuse)


def test_two_quiet_moments_make_a_window() -> None:
    totals = Totals()
    assert totals.quiet("a", Counted(10_000, 500)) is None
    totals.answered(said(4000), 8000)
    totals.answered(said(0), 100)
    found = totals.quiet("a", Counted(18_100, 500 + 3990))
    assert found == Window(4000, 4000, 3990, slack_of(8000) + slack_of(100), 4000)
    assert totals.quiet("a", Counted(18_100, 4490)) is None  # nothing since


def test_what_was_answered_before_the_first_quiet_moment_is_left_out() -> None:
    totals = Totals()
    totals.answered(said(4000), 8000)
    assert totals.quiet("a", Counted(8000, 4000)) is None
    totals.answered(said(4000), 8000)
    found = totals.quiet("a", Counted(16_000, 8000))
    assert found is not None and found.cached == 4000


@pytest.mark.parametrize(
    "counted",
    [
        Counted(10_000 + 8001, 500),  # someone else asked it
        Counted(10_000 + 7999, 500),  # not all of it came there
        Counted(8000, 0),  # it restarted
        Counted(18_000, 499),
    ],
)
def test_a_window_that_does_not_add_up_shows_nothing_and_the_next_may(counted: Counted) -> None:
    totals = Totals()
    totals.quiet("a", Counted(10_000, 500))
    totals.answered(said(4000), 8000)
    assert totals.quiet("a", counted) is None
    totals.answered(said(4000), 8000)
    after = Counted(counted.prompt + 8000, counted.cached + 4000)
    assert totals.quiet("a", after) is not None


def test_what_is_not_known_spoils_its_window_only() -> None:
    for spoil in (
        lambda totals: totals.spoil("a"),
        lambda totals: totals.answered(replace_reuse(said(4000)), 8000),
    ):
        totals = Totals()
        totals.quiet("a", Counted(0, 0))
        totals.answered(said(4000), 8000)
        spoil(totals)
        assert totals.quiet("a", Counted(8000, 4000)) is None
        totals.answered(said(4000), 8000)
        assert totals.quiet("a", Counted(16_000, 8000)) is not None


def replace_reuse(appraisal: Appraisal) -> Appraisal:
    return Appraisal(replica=appraisal.replica, score=0.0, tokens=appraisal.tokens)


def test_a_replica_that_begins_anew_has_no_window() -> None:
    totals = Totals()
    totals.quiet("a", Counted(0, 0))
    totals.answered(said(4000), 8000)
    totals.forget("a")
    assert totals.quiet("a", Counted(8000, 4000)) is None


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9000)), max_size=4),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_windows_add_up_to_what_was_answered(story: list[tuple[list, bool]]) -> None:
    """Against an engine that counts; now and then someone else asks it as well."""
    totals, engine = Totals(), Counted(0, 0)
    totals.quiet("a", engine)
    for answers, foreign in story:
        for tokens, cached in answers:
            cached = min(cached, tokens)
            totals.answered(said(cached), tokens)
            engine = Counted(engine.prompt + tokens, engine.cached + cached)
        if foreign:
            engine = Counted(engine.prompt + 10, engine.cached)
        found = totals.quiet("a", engine)
        assert (found is not None) is bool(answers and not foreign)
        if found is not None:
            assert found.least == found.most == found.cached


def test_an_index_that_is_wrong_is_found_by_counters_alone() -> None:
    drift = Drift()
    wrong = Window(4000, 4000, 0, 160.0, 4000)
    changes = []
    for number in range(LESS[0]):
        drift.note_sum("a", wrong, float(number))
        changes.append(drift.look("a", float(number)))
    assert changes == [Change.NONE] * (LESS[0] - 1) + [Change.RAISED]
    for number in range(60):
        drift.note_sum("a", replace(wrong, cached=4000), 100.0 + number)
        changes.append(drift.look("a", 100.0 + number))
    assert changes[-1] is Change.NONE and changes.count(Change.CLEARED) == 1
    assert [one for one, other in pairwise(changes) if one is other is Change.RAISED] == []


METRICS = b"""# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+03
vllm:prompt_tokens_total{engine="1",model_name="m"} 500.0
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 64.0
vllm:prompt_tokens_by_source_total{engine="0",source="local"} 7.0
vllm:prompt_tokens_created{engine="0"} 1.7e+09
"""


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        (METRICS, Counted(2000, 64)),
        (b"", None),
        (b"vllm:prompt_tokens_total 5\n", None),
        (b"vllm:prompt_tokens_total 5\nvllm:prompt_tokens_cached_total 3\n", Counted(5, 3)),
        (b"vllm:prompt_tokens_total 5\nvllm:prompt_tokens_cached_total 1e999\n", None),
        (b"vllm:prompt_tokens_total 5\nvllm:prompt_tokens_cached_total 1e+e\n", None),
    ],
)
def test_counters_are_read_from_metrics(text: bytes, counted: Counted | None) -> None:
    assert read_counters(text) == counted
