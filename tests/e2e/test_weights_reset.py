"""Weights that change in place: the answers are a fresh engine's, and nothing old is found in any tier."""

from dataclasses import replace
from pathlib import Path

import pytest

from lab.checkpoint import write_checkpoint
from lab.models import RECIPES, ensure, prompt_ids
from tests.e2e.test_answers import agree

pytestmark = pytest.mark.engine

MODEL = "gemma3-1to1"
PROMPT = prompt_ids(700, seed=3)
SERVED = 640


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shapes and other weights."""
    place = tmp_path_factory.mktemp("checkpoint") / "other"
    place.mkdir()
    write_checkpoint(replace(RECIPES[MODEL], seed=77), place)
    return place


def settings(place: Path) -> dict[str, object]:
    """An engine that serves a checkpoint in a directory as `MODEL` is served."""
    return {"engine": RECIPES[MODEL].engine}


def test_reloaded_weights_share_with_engines_that_began_with_them(other: Path, start) -> None:
    begun_with_a = str(ensure(MODEL))
    with start(str(other), **settings(other)) as fresh:
        expected = fresh.ask(PROMPT)[0]
        assert expected["cached"] == 0 and fresh.do("idle")
        named_b = fresh.do("namespace").rpartition("-")[2]
    with start(MODEL) as engine:
        named_a = engine.do("namespace").rpartition("-")[2]
        assert named_a != named_b
        old = engine.ask(PROMPT)[0]
        assert old["cached"] == 0 and not agree(old, expected)
        assert engine.ask(PROMPT)[0]["cached"] == SERVED  # the device has it, and so has memory
        assert engine.do("idle")

        engine.do("call_workers", method="reload_weights", weights_path=str(other))
        assert engine.do("namespace").rpartition("-")[2] == named_b
        answer = engine.ask(PROMPT)[0]
        assert agree(answer, expected)
        assert answer["cached"] == SERVED, "what the fresh engine stored"
        assert engine.do("metrics")["tokens{tier=filesystem}"] == SERVED

        engine.do("call_workers", method="reload_weights", weights_path=begun_with_a)
        assert engine.do("namespace").rpartition("-")[2] == named_a
        answer = engine.ask(PROMPT)[0]
        assert agree(answer, old) and answer["cached"] == SERVED


def test_weights_that_something_else_changed_are_told_by_what_they_are(start) -> None:
    with start(MODEL) as engine:
        first = engine.do("namespace")
        old = engine.ask(PROMPT)[0]
        assert engine.do("idle")
        engine.do("change_some_weights")
        changed = engine.do("namespace")
        assert changed != first
        new = engine.ask(PROMPT)[0]
        assert new["cached"] == 0 and not agree(new, old)
        assert engine.do("idle")
        # vLLM empties all caches when it sleeps; awake, the weights are what they were.
        engine.do("sleep_and_wake", level=1)
        assert engine.do("namespace") == changed
        again = engine.ask(PROMPT)[0]
        assert again["cached"] == SERVED and agree(again, new)
        # What is called and changes nothing, known to us or not, costs no chunk.
        engine.do("call_workers", method="check_health")
        engine.do("call_workers", method="get_model")
        assert engine.do("namespace") == changed and engine.ask(PROMPT)[0]["cached"] == SERVED
    with start(MODEL) as replica:  # given the same weights in the same way
        assert replica.do("namespace") == first
        replica.do("change_some_weights")
        assert replica.do("namespace") == changed
        shared = replica.ask(PROMPT)[0]
        assert shared["cached"] == SERVED and agree(shared, new)


def test_a_request_in_flight_goes_on_with_the_new_weights(other: Path, start) -> None:
    with start(MODEL) as engine:
        namespace = engine.do("namespace")
        so_far = engine.do("begin", prompt=PROMPT, max_tokens=40, steps=12)
        assert 0 < so_far < 40
        engine.do("call_workers", method="reload_weights", weights_path=str(other))
        tokens = engine.do("finish")
        assert len(tokens) == 40
        assert engine.do("idle") and engine.do("namespace") != namespace
        # What it left in the cache is all of the new weights: the answer's chunks serve the next turn.
        turn = [*PROMPT, *tokens, *prompt_ids(100, seed=9)]
        warm = engine.ask(turn)[0]
        assert warm["cached"] >= SERVED
    with start(str(other), {"memory": "96MiB"}, **settings(other)) as fresh:
        # With the new weights, behind the tokens that had been given, the same goes on.
        behind = fresh.ask([*PROMPT, *tokens[:so_far]], max_tokens=40 - so_far)[0]
        assert behind["tokens"] == tokens[so_far:]
        assert agree(fresh.ask(turn)[0], warm)
