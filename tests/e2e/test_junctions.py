"""What a hybrid reuses where prompts part ways, and from one turn of a conversation to the next."""

import pytest
from test_answers import agree

from lab.models import prompt_ids

pytestmark = pytest.mark.engine

HYBRIDS = ["gemma3-1to1", "gemma3-5to1", "gemma3-w1024", "gpt-oss"]
SHARED = 1920


def branch(seed: int) -> list[int]:
    """The shared beginning and an end of its own."""
    return prompt_ids(SHARED, seed=1) + prompt_ids(200, seed=seed)


@pytest.mark.parametrize("model", HYBRIDS)
def test_the_third_engine_is_served_the_shared_beginning(model: str, start) -> None:
    """The first leaves no window where the prompts part; the second notices and keeps it for all others."""
    served = []
    for seed in (11, 12, 13):
        with start(model) as engine:
            served.append(engine.ask(branch(seed))[0])
            counted = engine.do("metrics").get("junctions{reason=shared}", 0)
            assert counted == (seed == 12)
    with start(model, {"memory": "96MiB"}) as plain:
        cold = [plain.ask(branch(seed))[0] for seed in (11, 12, 13)]
    assert all(agree(one, other) for one, other in zip(served, cold, strict=True))
    assert [answer["cached"] for answer in served] == [0, 0, SHARED]


def test_a_prompt_that_nobody_shares_keeps_nothing_more(start) -> None:
    with start("gemma3-1to1") as engine:
        for seed in (1, 2, 3):
            engine.ask(prompt_ids(1000, seed=seed))
        repeated = engine.ask(prompt_ids(1000, seed=1))[0]
        assert repeated["cached"] == 896
        assert "junctions{reason=shared}" not in engine.do("metrics")


@pytest.mark.parametrize("model", ["llama", *HYBRIDS])
def test_the_next_turn_goes_on_from_the_end_of_the_answer(model: str, start) -> None:
    question = prompt_ids(700, seed=1)
    with start(model) as engine:
        answer = engine.ask(question, max_tokens=300)[0]
        assert len(answer["tokens"]) == 300
        assert engine.do("idle")  # a server steps on by itself
    follow_up = question + answer["tokens"] + prompt_ids(60, seed=2)
    with start(model) as other:
        second = other.ask(follow_up)[0]
    with start(model, {"memory": "96MiB"}) as plain:
        assert agree(second, plain.ask(follow_up)[0])
    assert second["cached"] == 896  # whole blocks of 700 + 300 tokens
