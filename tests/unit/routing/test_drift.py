"""An index that does not keep its word is noticed; one that is unlucky now and then is left alone."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.routing.decision import Appraisal, Reach, Reuse, Terms
from kvstrata.routing.drift import (
    CALM_ANSWERS,
    LEAST_TRUST,
    LESS,
    MORE,
    QUIET_SECONDS,
    RESYNC_MOST,
    RESYNC_SECONDS,
    Change,
    Drift,
    Verdict,
    claim_of,
    judge,
    slack_of,
)

TOKENS = 8000


def said(tokens: int, *, predicted: int = 0, reach: int | None = None, **more) -> Appraisal:
    """An appraisal whose index says that `tokens` are there."""
    indexed = tokens - predicted if reach is None else reach
    reuse = Reuse(Reach(indexed), Reach(indexed), Reach(indexed))
    return Appraisal(
        replica="a", score=0.0, tokens=tokens, predicted_tokens=predicted, reuse=reuse, **more
    )


def answers(drift: Drift, count: int, appraisal: Appraisal, cached: int | None, at: float) -> float:
    """So many answers, a second apart; returns the time of the last."""
    for number in range(count):
        drift.note(appraisal, TOKENS, None, cached, at + number)
    return at + count - 1


@pytest.mark.parametrize(
    ("appraisal", "cached", "verdict"),
    [
        (said(4000), 4000, Verdict.AGREES),
        (said(4000), 4000 - 160, Verdict.AGREES),
        (said(4000), 4000 - 161, Verdict.LESS),
        (said(4000), 4161, Verdict.MORE),
        # Half of it only believed: to miss that half is not the index's fault.
        (said(4000, predicted=2000), 2000, Verdict.AGREES),
        (said(4000, predicted=2000), 1000, Verdict.LESS),
        # Told to stop at 1000, it may not know how to.
        (said(1000, reach=6000), 6000, Verdict.AGREES),
        (said(1000, reach=6000), 7000, Verdict.MORE),
        (said(0), 0, Verdict.AGREES),
    ],
)
def test_verdicts(appraisal: Appraisal, cached: int, verdict: Verdict) -> None:
    assert judge(*claim_of(appraisal), slack_of(TOKENS), cached) is verdict


@given(st.integers(1, 10**6), st.data())
def test_what_was_said_is_never_held_against_the_index(tokens: int, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, tokens))
    predicted = data.draw(st.integers(0, chosen))
    reach = data.draw(st.integers(chosen - predicted, tokens))
    appraisal = said(chosen, predicted=predicted, reach=reach)
    least, most = claim_of(appraisal)
    cached = data.draw(st.integers(least, most))
    assert judge(least, most, slack_of(tokens), cached) is Verdict.AGREES


def test_an_index_that_is_always_wrong_raises_the_alarm_once() -> None:
    drift = Drift()
    at = answers(drift, LESS[0] - 1, said(4000), 0, 0.0)
    assert drift.look("a", at) is Change.NONE
    at = answers(drift, 1, said(4000), 0, at + 1)
    assert drift.look("a", at) is Change.RAISED
    assert drift.look("a", at) is Change.NONE
    assert drift.alarm("a") is Verdict.LESS
    told = drift.describe("a")
    assert (told["cached_less"], told["alarm"], told["alarm_of"]) == (LESS[0], True, "less")
    assert (told["predicted_tokens"], told["cached_tokens"]) == (4000 * LESS[0], 0)


def test_cold_prompts_hide_nothing() -> None:
    drift = Drift()
    for number in range(20):
        at = answers(drift, 9, said(0), 0, number * 10.0)
        at = answers(drift, 1, said(4000), 0, at + 1)
    assert drift.look("a", at) is Change.RAISED


def test_evictions_now_and_then_raise_none() -> None:
    """One claim in six is broken, as on a device whose cache is too small: no alarm in a day of them."""
    drift, dice = Drift(), random.Random(5)
    for number in range(10_000):
        drift.note(said(4000), TOKENS, None, 0 if dice.random() < 1 / 6 else 4000, float(number))
        assert drift.look("a", float(number)) is Change.NONE


def test_a_burst_of_equal_prompts_raises_none_but_an_index_that_misses_all_does() -> None:
    drift = Drift()
    at = answers(drift, MORE[0] - 1, said(0), 4000, 0.0)
    assert drift.look("a", at) is Change.NONE
    at = answers(drift, MORE[0] // 2, said(4000), 4000, at + 1)
    assert drift.look("a", at) is Change.NONE
    at = answers(drift, 4 * MORE[0], said(0), 4000, at + 1)
    assert drift.look("a", at) is Change.RAISED
    assert drift.alarm("a") is Verdict.MORE
    assert drift.trust("a") == 1.0  # what it does say holds


def test_the_alarm_ends_only_well_below_where_it_began() -> None:
    drift = Drift()
    at = answers(drift, 10, said(4000), 0, 0.0)
    drift.look("a", at)
    changes = []
    for number in range(60):
        drift.note(said(4000), TOKENS, None, 4000, at + number)
        changes.append(drift.look("a", at + number))
    cleared = changes.index(Change.CLEARED)
    assert changes.count(Change.CLEARED) == 1 and Change.RAISED not in changes
    share = 10 / 16
    assert cleared >= CALM_ANSWERS and cleared > math.log(LESS[1] / share) / math.log(15 / 16)


def test_after_a_resync_a_few_good_answers_end_it() -> None:
    drift = Drift()
    at = answers(drift, 10, said(4000), 0, 0.0)
    assert drift.look("a", at) is Change.RAISED
    assert drift.resync_due("a", at)
    drift.resynced("a", at)
    assert drift.look("a", at) is Change.NONE and drift.alarm("a") is Verdict.LESS
    at = answers(drift, CALM_ANSWERS, said(4000), 4000, at + 1)
    assert drift.look("a", at) is Change.CLEARED
    assert drift.describe("a")["resyncs"] == 1


def test_resyncs_that_do_not_help_become_rare() -> None:
    drift, times = Drift(), []
    for number in range(20_000):
        drift.note(said(4000), TOKENS, None, 0, float(number))
        drift.look("a", float(number))
        if drift.resync_due("a", float(number)):
            drift.resynced("a", float(number))
            times.append(number)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert gaps[0] >= RESYNC_SECONDS
    assert gaps == sorted(gaps) and gaps[-1] >= RESYNC_MOST
    assert drift.describe("a")["resyncs"] == len(times) <= 13


def test_trust_is_the_share_of_claims_that_hold() -> None:
    drift = Drift()
    assert drift.trust("a") == 1.0
    at = answers(drift, 5, said(4000), 4000, 0.0)
    assert drift.trust("a") == 1.0
    at = answers(drift, 20, said(4000), 0, at + 1)
    drift.look("a", at)
    assert LEAST_TRUST <= drift.trust("a") < 0.3
    drift.resynced("a", at)
    assert drift.trust("a") == 0.5
    answers(drift, CALM_ANSWERS, said(4000), 4000, at + 1)
    drift.look("a", at + 10)
    assert drift.trust("a") == 1.0


def test_an_alarm_of_which_nothing_more_is_heard_ends() -> None:
    drift = Drift()
    at = answers(drift, 10, said(4000), 0, 0.0)
    drift.look("a", at)
    assert drift.look("a", at + QUIET_SECONDS) is Change.NONE
    answers(drift, 50, said(0), 0, at + 1)  # these prove nothing
    assert drift.look("a", at + QUIET_SECONDS + 1) is Change.CLEARED


def test_a_history_makes_no_claims_and_answers_without_figures_count_not() -> None:
    drift = Drift()
    believed = Appraisal(replica="a", score=0.0, tokens=4000, predicted_tokens=4000)
    at = answers(drift, 50, believed, 0, 0.0)
    at = answers(drift, 50, said(4000), None, at)
    assert drift.look("a", at) is Change.NONE
    assert drift.describe("a")["cached_as_predicted"] == 50


def test_the_error_of_the_first_token_is_a_logarithm() -> None:
    drift = Drift()
    for number in range(300):
        seen = 2.0 if number % 2 else 0.5
        drift.note(said(0, terms=Terms(compute=1.0)), TOKENS, seen, None, float(number))
    told = drift.describe("a")
    assert told["ttft_error"] == pytest.approx(math.log(2), rel=0.01)
    assert abs(told["ttft_bias"]) < 0.05


def test_a_replica_that_restarts_is_believed_and_its_counts_stay() -> None:
    drift = Drift()
    at = answers(drift, 10, said(4000), 0, 0.0)
    drift.look("a", at)
    drift.restarted("a")
    assert drift.alarm("a") is None and drift.describe("a")["cached_less"] == 10
    assert drift.look("a", at) is Change.NONE and not drift.resync_due("a", at)
