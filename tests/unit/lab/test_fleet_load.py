"""A planned load is the same for a seed, and its copies differ in nothing but text and pace."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.fleet_load import LETTERS, Plan, Scale, paced, plan, renamed

SMALL = Scale(applications=2, users=3, documents=2)
BLOCK = 128


def texts(load: Plan) -> list[str]:
    return [
        text for one in load.conversations for text in (one.system, *(t.text for t in one.turns))
    ]


def times(load: Plan) -> list[float]:
    return [
        when for one in load.conversations for when in (one.start, *(t.think for t in one.turns))
    ]


def test_a_seed_is_a_load() -> None:
    assert plan(3, SMALL) == plan(3, SMALL)
    assert texts(plan(3, SMALL)) != texts(plan(4, SMALL))


@given(st.integers(0, 50))
def test_what_is_drawn_keeps_to_the_scale(seed: int) -> None:
    load = plan(seed, SMALL)
    chats = [one for one in load.conversations if not one.document]
    documents = [one for one in load.conversations if one.document]
    assert len(chats) == SMALL.applications * SMALL.users
    assert len(documents) == SMALL.documents
    assert len({one.system for one in chats}) == SMALL.applications
    assert len({one.name for one in load.conversations}) == len(load.conversations)
    for one in chats:
        assert SMALL.system_tokens[0] <= len(one.system) <= SMALL.system_tokens[1]
        assert SMALL.turns[0] <= len(one.turns) <= SMALL.turns[1]
        assert one.turns[0].think == 0
        for turn in one.turns:
            assert SMALL.message_tokens[0] <= len(turn.text) <= SMALL.message_tokens[1]
        for turn in one.turns[1:]:
            assert SMALL.think_seconds[0] <= turn.think <= SMALL.think_seconds[1]
    for one in documents:
        assert len(one.turns) == 1
        assert SMALL.document_tokens[0] <= len(one.turns[0].text) <= SMALL.document_tokens[1]
    assert all(a.start <= b.start for a, b in pairwise(load.conversations))
    # One token a character: no other characters than those that are one byte.
    assert all(set(text) <= {*LETTERS, " "} for text in texts(load))


def test_tokens_are_counted_as_they_are_sent() -> None:
    scale = Scale(
        applications=1,
        users=2,
        system_tokens=(10, 10),
        turns=(2, 2),
        message_tokens=(3, 3),
        documents=1,
        document_tokens=(50, 50),
    )
    load = plan(1, scale)
    assert load.requests == 5
    assert load.distinct_tokens == 10 + 4 * 3 + 50
    assert load.prompt_tokens == 2 * (13 + 16) + 50


@given(st.integers(0, 20), st.integers(1, 999), st.integers(1, 999))
def test_a_renamed_load_shares_no_block_with_another(seed: int, one: int, other: int) -> None:
    load = plan(seed, SMALL)
    a, b = renamed(load, one), renamed(load, other)
    assert [len(text) for text in texts(a)] == [len(text) for text in texts(load)]
    assert times(a) == times(load)
    assert (a == b) == (one == other)
    if one != other:
        begun = {text[:BLOCK] for text in texts(a) if text}
        assert begun.isdisjoint(text[:BLOCK] for text in texts(b) if text)
        assert begun.isdisjoint(text[:BLOCK] for text in texts(load) if text)


def test_a_renamed_load_shares_what_the_load_shares() -> None:
    load = renamed(plan(1, SMALL), 5)
    assert len({one.system for one in load.conversations if one.system}) == SMALL.applications
    assert renamed(load, 0) == load


def test_pace_changes_times_and_nothing_else() -> None:
    load = plan(2, SMALL)
    slow = paced(load, 2.5)
    assert texts(slow) == texts(load)
    assert times(slow) == pytest.approx([2.5 * when for when in times(load)])
