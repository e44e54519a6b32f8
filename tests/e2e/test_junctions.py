"""What a model reuses where prompts part ways, and from one turn of a conversation to the next.

The measure is the engine's own device cache, in one engine without any connector: from files, in engines
that each live for a few requests only, a model is served as much.
"""

import json
from pathlib import Path

import pytest

from lab.models import prompt_ids
from tests.e2e.test_answers import agree

pytestmark = pytest.mark.engine

QUICK = ["gemma3-1to1", "granite-4-h"]
REST = [
    *("gemma3-5to1", "gemma3-w1024", "gpt-oss", "cohere2", "gemma4", "llama4", "qwen3-next"),
    *("qwen3.5", "falcon-h1", "nemotron-h", "zamba2"),
]
HYBRIDS = [*QUICK, *(pytest.param(name, marks=pytest.mark.zoo) for name in REST)]
TURNS = [
    "gemma3-1to1",
    *(pytest.param(n, marks=pytest.mark.zoo) for n in ("llama", *QUICK[1:], *REST)),
]
SHARED = 1920
RESULTS = Path(__file__).resolve().parents[2] / "build" / "reuse"


def branch(seed: int) -> list[int]:
    """The shared beginning and an end of its own, longer than any block."""
    return prompt_ids(SHARED, seed=1) + prompt_ids(500, seed=seed)


def note(model: str, what: str, device: list[int], storage: list[int]) -> None:
    """Leave the figures for whoever wants to see them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    row = {"model": model, "what": what, "device": device, "storage": storage}
    (RESULTS / f"{model}.{what}.json").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize("model", HYBRIDS)
def test_the_third_engine_is_served_the_shared_beginning(model: str, start) -> None:
    """The first leaves no window where the prompts part; the second notices and keeps it for all others."""
    seeds = (11, 12, 13)
    with start(model, {}) as plain:
        device = [plain.ask(branch(seed))[0] for seed in seeds]
    storage = []
    for seed in seeds:
        with start(model) as engine:
            storage.append(engine.ask(branch(seed))[0])
            assert engine.do("idle")
            junctions = engine.do("metrics").get("junctions{reason=shared}", 0)
            assert junctions <= (seed == 12)
    cached = [[answer["cached"] for answer in answers] for answers in (device, storage)]
    note(model, "junction", *cached)
    assert all(agree(one, other) for one, other in zip(storage, device, strict=True))
    assert cached[0][2] > SHARED - 384, "the device cache itself does not serve it"
    assert all(ours >= theirs for theirs, ours in zip(*cached, strict=True))


def test_a_prompt_that_nobody_shares_keeps_nothing_more(start) -> None:
    with start("gemma3-1to1") as engine:
        for seed in (1, 2, 3):
            engine.ask(prompt_ids(1000, seed=seed))
        repeated = engine.ask(prompt_ids(1000, seed=1))[0]
        assert repeated["cached"] == 896
        assert "junctions{reason=shared}" not in engine.do("metrics")


@pytest.mark.parametrize("model", TURNS)
def test_the_next_turn_goes_on_from_the_last(model: str, start) -> None:
    """From the end of the answer, where the device cache alone keeps the windows of the question's end."""
    question, more = prompt_ids(700, seed=1), prompt_ids(60, seed=2)
    with start(model, {}) as plain:
        answer = plain.ask(question, max_tokens=300)[0]
        follow_up = question + answer["tokens"] + more
        device = plain.ask(follow_up)[0]
    with start(model) as engine:
        assert engine.ask(question, max_tokens=300)[0]["tokens"] == answer["tokens"]
        assert engine.do("idle")  # a server steps on by itself
    with start(model) as other:
        storage = other.ask(follow_up)[0]
    note(model, "turn", [device["cached"]], [storage["cached"]])
    assert agree(storage, device)
    assert storage["cached"] >= device["cached"] > 0
    if model in ("llama", "gemma3-1to1"):
        assert storage["cached"] == 896  # whole blocks of 700 + 300 tokens


def test_answers_that_end_while_others_begin_are_kept_true(start) -> None:
    """In a pool so small that blocks of a finished request go to the next one at once."""
    tight = {"engine": {"num_gpu_blocks_override": 84}, "max_model_len": 1280}
    prompts = [prompt_ids(500 + 61 * seed, seed=seed) for seed in range(8)]
    with start("gemma3-5to1", **tight) as engine:
        answers = engine.ask(*prompts, max_tokens=200)
        assert engine.do("idle")
        kept = engine.do("metrics")["junctions{reason=answer}"]
    follow_ups = [
        prompt + answer["tokens"] + prompt_ids(40, seed=9)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    with start("gemma3-5to1", {}) as plain:
        cold = [plain.ask(follow_up)[0] for follow_up in follow_ups]
    with start("gemma3-5to1", **tight) as other:
        served = [other.ask(follow_up)[0] for follow_up in follow_ups]
    assert kept >= 4
    assert all(agree(one, other) for one, other in zip(served, cold, strict=True))
    beyond = [
        answer["cached"] > (len(prompt) - 1) // 128 * 128
        for prompt, answer in zip(prompts, served, strict=True)
    ]
    assert sum(beyond) >= 2
