"""How long the next request waits, by what was sent before."""

import pytest

from kvstrata.routing.backlog import LOST, Backlog, Pending
from kvstrata.routing.cost import Work

RATES = (0.0, 1e-3, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""A millisecond a token, and nothing else."""


def pending(name: str, at: float, compute: float, **others: float) -> Pending:
    return Pending(
        id=name,
        replica="r",
        at=at,
        work=Work(int(1000 * compute), 0),
        loading=others.pop("loading", 0.0),
        tokens=100,
        device=0,
        **others,
    )


def test_the_wait_is_what_is_left_of_all_prompts() -> None:
    backlog = Backlog()
    backlog.add(pending("a", 0.0, 2.0))
    backlog.add(pending("b", 0.5, 3.0))
    assert backlog.wait("r", 0.5, RATES) == pytest.approx(4.5)
    assert backlog.wait("other", 0.5, RATES) == 0.0
    backlog.computed("a", 1.0)  # sooner than foreseen
    assert backlog.wait("r", 2.0, RATES) == pytest.approx(2.0)
    backlog.computed("b", 4.0)
    assert backlog.wait("r", 4.0, RATES) == 0.0
    assert len(backlog) == 2
    backlog.remove("a", 5.0)
    backlog.remove("b", 5.0)
    assert len(backlog) == 0


def test_a_short_prompt_that_overtakes_does_not_set_the_head_back() -> None:
    backlog = Backlog()
    backlog.add(pending("long", 0.0, 10.0))
    backlog.add(pending("short", 1.0, 1.0))
    backlog.computed("short", 4.0)
    assert backlog.wait("r", 4.0, RATES) == pytest.approx(6.0)


def test_a_replica_that_stands_still_is_avoided_more_and_more() -> None:
    backlog = Backlog()
    backlog.add(pending("a", 0.0, 1.0))
    waits = [backlog.wait("r", now, RATES) for now in (1.0, 2.0, 10.0, 100.0)]
    assert waits == sorted(waits) and waits[-1] > 40
    backlog.remove("a", 100.0)
    assert backlog.wait("r", 100.0, RATES) == 0.0


def test_those_behind_a_load_go_ahead_meanwhile() -> None:
    backlog = Backlog()
    backlog.add(pending("a", 0.0, 1.0, loading=5.0))
    assert backlog.wait("r", 4.0, RATES) == pytest.approx(1.0)
    assert backlog.wait("r", 5.5, RATES) == pytest.approx(0.5)


def test_reads_follow_each_other() -> None:
    backlog = Backlog()
    backlog.add(pending("a", 0.0, 1.0, loading=4.0, reading=4.0))
    backlog.add(pending("b", 0.0, 1.0, loading=4.0, reading=4.0))
    assert backlog.read_wait("r", 2.0) == pytest.approx(6.0)
    assert backlog.read_wait("r", 9.0) == 0.0
    assert backlog.read_wait("other", 0.0) == 0.0


def test_a_read_that_waits_for_computations_does_not_keep_storage_busy() -> None:
    backlog = Backlog()
    backlog.add(pending("ahead", 0.0, 30.0))
    backlog.add(pending("a", 0.0, 1.0, loading=0.5, reading=0.5))
    assert backlog.wait("r", 0.0, RATES) > 30
    assert backlog.read_wait("r", 0.2) == pytest.approx(0.3)
    assert backlog.read_wait("r", 20.0) == 0.0


def test_a_first_token_is_called_overdue_again_only_when_it_is_much_later() -> None:
    backlog = Backlog()
    backlog.add(pending("a", 0.0, 1.0, foreseen=1.0))
    assert backlog.overdue(3.0) == []
    assert [one.id for one in backlog.overdue(4.0)] == ["a"]
    assert backlog.overdue(5.0) == [] == backlog.overdue(12.0)
    assert [one.id for one in backlog.overdue(13.0)] == ["a"]
    backlog.computed("a", 14.0)
    assert backlog.overdue(1000.0) == []


def test_what_is_never_heard_of_leaves() -> None:
    backlog = Backlog()
    for number in range(10):
        backlog.add(pending(str(number), float(number), 1.0))
    backlog.add(pending("late", LOST + 20, 1.0))
    assert len(backlog) == 1
    assert backlog.wait("r", LOST + 20, RATES) == pytest.approx(1.0)


def test_a_retry_counts_once_and_a_forgotten_replica_not_at_all() -> None:
    backlog = Backlog()
    backlog.add(pending("a", 0.0, 1.0))
    backlog.add(pending("a", 1.0, 1.0))
    assert len(backlog) == 1 and backlog.wait("r", 1.0, RATES) == pytest.approx(1.0)
    backlog.forget("r")
    assert len(backlog) == 0 and backlog.wait("r", 1.0, RATES) == 0.0
    backlog.computed("a", 2.0)


def test_what_was_sent_is_priced_as_it_is_known_now() -> None:
    backlog = Backlog()
    for name in "abc":
        backlog.add(pending(name, 0.0, 1.0))
    slow = tuple(10 * rate for rate in RATES)
    assert backlog.wait("r", 0.0, slow) == pytest.approx(30.0)


def test_those_behind_an_overdue_prompt_are_not_called_overdue() -> None:
    backlog = Backlog()
    backlog.add(pending("head", 0.0, 1.0, foreseen=1.0))
    backlog.add(pending("behind", 0.5, 1.0, foreseen=1.5))
    assert [one.id for one in backlog.overdue(100.0)] == ["head"]
    assert backlog.overdue(250.0) == []
    backlog.computed("head", 260.0)
    assert [one.id for one in backlog.overdue(261.0)] == ["behind"]


def test_a_load_that_is_overdue_is_told_although_others_are_ahead() -> None:
    backlog = Backlog()
    backlog.add(pending("long", 0.0, 60.0, foreseen=60.0))
    backlog.add(pending("load", 1.0, 0.1, foreseen=1.0, loading=1.0))
    assert [one.id for one in backlog.overdue(10.0)] == ["load"]


def test_what_is_under_way_is_the_whole_prompt_however_little_is_left() -> None:
    backlog = Backlog()
    assert backlog.under_way("r", 0.0, RATES) == 0.0
    backlog.add(pending("a", 0.0, 4.0))
    backlog.add(pending("b", 0.0, 9.0))
    assert (
        backlog.under_way("r", 0.0, RATES) == 0.0
    )  # nothing of it is done: its wait is no difference
    assert backlog.under_way("r", 3.9, RATES) == pytest.approx(4.0)
    assert backlog.under_way("r", 12.0, RATES) == pytest.approx(12.0)
    backlog.computed("a", 12.0)
    assert backlog.under_way("r", 12.0, RATES) == 0.0
    assert backlog.under_way("other", 12.0, RATES) == 0.0
