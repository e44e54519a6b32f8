"""The soak's plan is its seed's alone, every fault in it ends, and what is found wrong is told."""

import itertools
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lab.soak import calls, files, plan
from lab.soak.faults import KILL, OF_ENGINES, RESTART
from lab.soak.plan import CYCLE, LONGEST, WARM, Kinds, Prompt, Segment, rounds
from lab.soak.report import save
from lab.soak.run import SETTINGS
from lab.soak.tally import TIERS, Leaks, Tally

KINDS = Kinds(
    windows=(*files.WINDOWS, *calls.RULES),
    strikes=(*files.STRIKES, *OF_ENGINES),
    exclusive=files.EXCLUSIVE,
    ending=frozenset({KILL, RESTART}),
)
SEEDS = st.integers(0, 1 << 32)


def first(seed: int, count: int, kinds: Kinds = KINDS) -> list[plan.Round]:
    return list(itertools.islice(rounds(seed, kinds), count))


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 150))
def test_a_seed_is_one_plan_and_a_shorter_one_is_its_beginning(seed: int, count: int) -> None:
    assert first(seed, 150)[:count] == first(seed, count)


def test_another_seed_is_another_plan() -> None:
    assert first(1, 60) != first(2, 60)


def test_prompts_do_not_depend_on_the_kinds_of_faults() -> None:
    few = Kinds(windows=("disk full",), strikes=())
    assert [one.prompts for one in first(3, 60)] == [one.prompts for one in first(3, 60, few)]


@settings(max_examples=30)
@given(SEEDS)
def test_every_window_ends_and_none_is_on_at_a_check(seed: int) -> None:
    on: dict[int, plan.Window] = {}
    for one in first(seed, WARM + 3 * (CYCLE)):
        for window in one.ends:
            assert on.pop(window.number).begins < one.number
        for window in on.values():
            assert one.number - window.begins < LONGEST
        for window in one.begins:
            assert KINDS.fits(window.kind, list(on.values()))
            on[window.number] = window
        assert len(on) <= plan.AT_ONCE
        if one.check:
            assert not on and not one.strikes
    assert not on


@settings(max_examples=30)
@given(SEEDS)
def test_an_engine_that_is_started_again_finds_no_window(seed: int) -> None:
    told = first(seed, 4 * CYCLE)
    on: set[int] = set()
    for one, after in itertools.pairwise(told):
        on |= {window.number for window in one.begins}
        on -= {window.number for window in one.ends}
        if any(strike.kind in KINDS.ending for strike in one.strikes):
            assert on == {window.number for window in after.ends}


@settings(max_examples=10)
@given(SEEDS)
def test_no_kind_is_missing_for_long(seed: int) -> None:
    told = first(seed, 10 * CYCLE)
    seen = {happening.kind for one in told for happening in (*one.begins, *one.strikes)}
    assert seen == {*KINDS.windows, *KINDS.strikes}


@settings(max_examples=10)
@given(SEEDS)
def test_prompts_fit_the_engine_and_come_again(seed: int) -> None:
    asked = [prompt for one in first(seed, 200) for prompts in one.prompts for prompt in prompts]
    longest = max(prompt.tokens + prompt.max_tokens for prompt in asked)
    assert longest <= SETTINGS["max_model_len"]
    assert len(set(asked)) < 0.75 * len(asked)
    assert any(len(prompt.turns) > 2 for prompt in asked)


def test_engines_are_sometimes_asked_the_same_at_once() -> None:
    same = [one.prompts[0] == one.prompts[1] for one in first(1, 100)]
    assert 10 < sum(same) < 50


def passed() -> Tally:
    """What a soak without any complaint has found."""
    tally = Tally(taken_back=True, left=Leaks(0, 0, 3, 0))
    tally.counters.update({f"tokens{{tier={tier}}}": 1 for tier in TIERS})
    return tally


def test_a_wrong_token_is_counted_and_fails_the_soak() -> None:
    tally = passed()
    tally.judge(7, 1, [[1, 2], [3, 4]], [{"tokens": [1, 2]}, {"tokens": [3, 4]}])
    assert tally.requests == 2 and not tally.faults()
    tally.judge(8, 1, [[1, 2], [3, 4]], [{"tokens": [1, 2]}, {"tokens": [3, 5]}])
    assert tally.wrong == 1 and tally.faults() == ["1 wrong answers"]
    assert tally.wrong_examples == [
        {"round": 8, "engine": 1, "place": 1, "expected": [3, 4], "tokens": [3, 5]}
    ]


def test_whatever_is_left_hangs_or_dies_fails_the_soak() -> None:
    spoils = (
        lambda tally: tally.hangs.append("no answer"),
        lambda tally: tally.crashes.append("died"),
        lambda tally: tally.leaks.append("a descriptor"),
        lambda tally: tally.tracebacks.append("an I/O job failed"),
        lambda tally: setattr(tally, "taken_back", False),
        lambda tally: setattr(tally, "left", None),
        lambda tally: setattr(tally, "left", Leaks(1, 0, 0, 0)),
        lambda tally: setattr(tally, "left", Leaks(0, 1, 0, 0)),
        lambda tally: setattr(tally, "left", Leaks(0, 0, 1, 1)),
        lambda tally: tally.counters.pop("tokens{tier=filesystem}"),
    )
    for spoil in spoils:
        tally = passed()
        spoil(tally)
        assert len(tally.faults()) == 1


def test_the_report_holds_what_was_found(tmp_path: Path) -> None:
    tally = passed()
    tally.planned["damage"] += 2
    tally.done["damage"] += 1
    tally.stormy.extend([0.5, 1.5])
    found = json.loads(save(tally, {"seed": 1}, tmp_path).read_text())
    assert (
        found["failed"] == [] and found["planned"] == {"damage": 2} and found["run"] == {"seed": 1}
    )
    assert found["left"]["temporary"] == 3 and found["counters"]["tokens{tier=memory}"] == 1
    text = (tmp_path / "report.md").read_text()
    assert "| damage | 2 | 1 |" in text and "| wrong answers | 0 |" in text


def test_a_turn_holds_the_answer_to_the_one_before() -> None:
    two = Prompt(Segment(10, 1), (Segment(5, 2), Segment(6, 3)), 4)
    assert two.tokens == 10 + 5 + 4 + 6
    assert two.previous == Prompt(Segment(10, 1), (Segment(5, 2),), 4)
    assert two.previous.previous is None
