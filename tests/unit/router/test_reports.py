"""What a policy hears of a request: the first token when it comes, and at the end what was not computed."""

import json

import pytest

from kvstrata.router.chooser import Result
from kvstrata.routing.decision import Outcome
from tests.unit.router.router_lab import Wire, ask, fleet, post, run, until
from tests.unit.router.stub_engine import StubEngine


def heard(router) -> list[Outcome]:
    """What the router's policy is told from now on."""
    policy = router.application.chooser._policy
    told: list[Outcome] = []
    inner = policy.observed

    def observed(outcome: Outcome, now: float) -> None:
        told.append(outcome)
        inner(outcome, now)

    policy.observed = observed
    return told


def test_the_first_token_of_a_stream_is_told_before_its_end() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="seconds") as router:
            told = heard(router)
            wire = await Wire.open(router)
            await wire.send(post({"stream": True, "max_tokens": 3, "pause": 0.3}))
            await until(lambda: told)
            assert not told[0].final and told[0].ttft is not None and told[0].replica == "a"
            await until(lambda: len(told) == 2)
            assert told[1].final and told[1].ttft == told[0].ttft and told[1].id == told[0].id
            wire.close()

    run(go())


def test_an_answer_that_is_no_stream_is_told_once() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="seconds") as router:
            told = heard(router)
            await ask(router, {"max_tokens": 2})
            await until(lambda: told)
            assert len(told) == 1 and told[0].final and told[0].ttft is None

    run(go())


def result(tail: bytes) -> Result:
    return Result("i", "a", 200, 0.1, 0.2, True, tail, False)


@pytest.mark.parametrize(
    ("tail", "cached"),
    [
        (b'{"usage": {"prompt_tokens_details": {"cached_tokens": 128}}}', 128),
        (b'"usage":{"prompt_tokens_details":{"cached_tokens":0}}}\n\ndata: [DONE]\n\n', 0),
        (b'data: {"usage":{"prompt_tokens_details":null}}\n\n', None),
        (b"", None),
        (json.dumps({"text": '"cached_tokens": 7'}).encode(), None),
        (json.dumps({"text": '"cached_tokens": 7', "usage": {"cached_tokens": 3}}).encode(), 3),
    ],
)
def test_cached_tokens_are_read_from_the_usage(tail: bytes, cached: int | None) -> None:
    assert result(tail).cached_tokens == cached
