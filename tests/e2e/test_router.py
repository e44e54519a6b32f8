"""Two real engines behind `kvstrata route`, asked by the `openai` client's own calls.

The oracles are the engines themselves: asked without the router they answer the same, and their word on
cached tokens is what was foreseen.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lab.fleet_stack import Engines, Fleet, RouterProcess, engines
from lab.models import prompt_ids

pytestmark = pytest.mark.engine

MODEL = "gemma3-5to1"
SECONDS = 30.0
LONG = 300
"""Tokens of an answer that is still under way when something happens."""
HELLO = [{"role": "user", "content": "What is a cache? Answer in one word. " * 20}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "seed": 1}


class Stack:
    """Engines, a router, and the client.

    Args:
        fleet: the engines.
        router: in front of them.
    """

    def __init__(self, fleet: Fleet, router: RouterProcess) -> None:
        self.fleet, self.router = fleet, router
        self.client = openai.OpenAI(
            base_url=f"{router.url}/v1", api_key="k", max_retries=0, timeout=60
        )

    def direct(self, name: str) -> openai.OpenAI:
        """The client of one engine."""
        url = f"http://127.0.0.1:{self.fleet.servers[name].port}/v1"
        return openai.OpenAI(base_url=url, api_key="k", max_retries=0, timeout=60)

    def complete(self, prompt: list[int], **more: Any) -> tuple[Any, dict[str, Any]]:
        """An answer, and what the router foresaw and saw of it."""
        raw = self.client.completions.with_raw_response.create(
            prompt=prompt, max_tokens=4, **GREEDY, **more
        )
        path = f"/v1/route/decisions/{raw.headers['x-kvstrata-decision']}"
        until(lambda: self.router.get(path)["outcome"])
        record = self.router.get(path)
        assert record["outcome"]["replica"] == raw.headers["x-kvstrata-replica"]
        return raw.parse(), record

    def reach(self, prompt: list[int], tier: str = "storage") -> dict[str, int]:
        """Tokens of a prompt that each replica is said to have in a tier or in those above it."""
        reply = self.client.post(
            "/route/explain", cast_to=object, body={"model": MODEL, "prompt": prompt}
        )
        record: Any = reply
        return {one["replica"]: one["reuse"][tier]["tokens"] for one in record["considered"]}


def until(true: Callable[[], Any]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cached(answer: Any) -> int:
    details = answer.usage.prompt_tokens_details
    return (details and details.cached_tokens) or 0


def foreseen(record: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in record["considered"] if one["replica"] == record["chosen"])


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    what = Engines(MODEL, replicas=2, memory="32MiB", max_model_len=4096)
    with tempfile.TemporaryDirectory(prefix="kv") as name:
        directory = Path(name)
        with (
            engines(what, directory) as fleet,
            RouterProcess("seconds", fleet, MODEL, directory) as router,
        ):
            yield Stack(fleet, router)


def test_the_clients_own_calls_are_answered_as_by_an_engine(stack: Stack) -> None:
    client, direct = stack.client, stack.direct("a")
    assert [one.id for one in client.models.list()] == [MODEL]
    prompt = prompt_ids(300, seed=1)

    def ask(of: openai.OpenAI) -> list[Any]:
        plain = of.completions.create(prompt=prompt, max_tokens=6, logprobs=1, **GREEDY)
        pieces = of.completions.create(prompt=prompt, max_tokens=6, stream=True, **GREEDY)
        chat = of.chat.completions.create(messages=HELLO, max_tokens=6, logprobs=True, **GREEDY)
        parts = of.chat.completions.create(messages=HELLO, max_tokens=6, stream=True, **GREEDY)
        tools = of.chat.completions.create(
            messages=HELLO, max_tokens=6, tools=[TOOL], tool_choice="none", **GREEDY
        )
        return [
            plain.choices[0].text,
            "".join(one.choices[0].text for one in pieces if one.choices),
            plain.choices[0].logprobs.tokens,
            chat.choices[0].message.content,
            "".join(one.choices[0].delta.content or "" for one in parts if one.choices),
            [one.token for one in chat.choices[0].logprobs.content],
            tools.choices[0].message.content,
            plain.usage.prompt_tokens,
            chat.usage.prompt_tokens,
        ]

    through = ask(client)
    assert through[0] and through[3]
    assert through == ask(direct)
    with pytest.raises(openai.NotFoundError, match="nope"):
        client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=-1)


def test_of_a_repeated_prompt_as_much_is_cached_as_was_foreseen(stack: Stack) -> None:
    prompts = [prompt_ids(1200, seed=seed) for seed in range(10, 14)]
    for prompt in prompts:
        answer, record = stack.complete(prompt)
        assert cached(answer) == 0 == foreseen(record)["reuse"]["storage"]["tokens"]
    for prompt in prompts:
        until(lambda prompt=prompt: min(stack.reach(prompt).values()) > 0)
        answer, record = stack.complete(prompt)
        # The other one may load it from the storage that both share.
        home = record["chosen"]
        assert record["outcome"]["tries"] == 1
        shown = foreseen(record)
        assert cached(answer) == shown["tokens"] == record["outcome"]["cached_tokens"] > 1000
        assert (
            answer.choices[0].text
            == stack.direct(home)
            .completions.create(prompt=prompt, max_tokens=4, **GREEDY)
            .choices[0]
            .text
        )


def test_a_load_cap_reaches_the_engine_and_is_obeyed(stack: Stack) -> None:
    prompt = prompt_ids(1200, seed=20)
    before, _ = stack.complete(prompt)
    for cap in (0, 256, None):
        stack.fleet.empty_devices()
        until(lambda: min(stack.reach(prompt).values()) > 0)
        params = None if cap is None else {"kv_transfer_params": {"max_load_tokens": cap}}
        answer, _ = stack.complete(prompt, extra_body=params)
        assert answer.choices[0].text == before.choices[0].text
        assert cached(answer) > 1000 if cap is None else cached(answer) <= cap


def test_the_router_itself_keeps_an_engine_from_a_load_that_costs_more_than_computing(
    stack: Stack, tmp_path: Path
) -> None:
    slow = {"memory_bytes_per_s": 1e4, "storage_bytes_per_s": 1e4, "prefill_tokens_per_s": 1e5}
    prompt = prompt_ids(1200, seed=25)
    before, _ = stack.complete(prompt)
    stack.fleet.empty_devices()
    for name in stack.fleet.names:  # an engine's next step tells what was forgotten
        stack.direct(name).completions.create(
            prompt=prompt_ids(20, seed=26), max_tokens=1, **GREEDY
        )
    until(lambda: max(stack.reach(prompt, "device").values()) == 0)
    until(lambda: min(stack.reach(prompt).values()) > 1000)
    with RouterProcess("seconds", stack.fleet, MODEL, tmp_path, {"profile": slow}) as router:
        other = Stack(stack.fleet, router)
        until(lambda: min(other.reach(prompt).values()) > 1000)
        answer, record = other.complete(prompt)
    assert record["load_cap"] == 0
    assert cached(answer) == 0 == record["outcome"]["cached_tokens"]
    assert answer.choices[0].text == before.choices[0].text


def test_an_engine_that_is_killed_costs_its_streams_and_nothing_else(stack: Stack) -> None:
    prompts = [prompt_ids(200, seed=seed) for seed in range(30, 34)]
    streams, names = [], []
    for prompt in prompts:
        raw = stack.client.completions.with_raw_response.create(
            prompt=prompt, max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}, **GREEDY
        )
        streams.append(raw.parse())
        names.append(raw.headers["x-kvstrata-replica"])
    firsts = [next(stream).choices[0].text for stream in streams]
    victim = names[0]
    stack.fleet.servers[victim].kill()
    for prompt, name, first, stream in zip(prompts, names, firsts, streams, strict=True):
        if name == victim:
            with pytest.raises(openai.APIError, match="incomplete"):
                for _ in stream:
                    pass
        else:
            text = first + "".join(one.choices[0].text for one in stream if one.choices)
            direct = stack.direct(name).completions.create(
                prompt=prompt, max_tokens=LONG, extra_body={"ignore_eos": True}, **GREEDY
            )
            assert text == direct.choices[0].text
    for seed in range(40, 46):
        answer, record = stack.complete(prompt_ids(100, seed=seed))
        assert answer.choices[0].text and record["chosen"] != victim
    until(lambda: [one["state"] for one in stack.router.get("/admin/state")["replicas"]
                   if one["name"] == victim] == ["down"])  # fmt: skip
