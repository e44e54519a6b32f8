"""The official `openai` client against the router, with its own calls."""

import asyncio

import openai
import pytest

from kvstrata.router.service import Router
from tests.unit.router.router_lab import fleet, run, until
from tests.unit.router.stub_engine import StubEngine

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
HELLO = [{"role": "user", "content": "hello"}]


def client_of(router: Router, key: str = "k", retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{router.port}/v1", api_key=key, max_retries=retries, timeout=30
    )


def test_the_clients_own_calls_work() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router, client_of(router) as client:
            chat = client.chat.completions
            answer = await chat.create(model="tiny", messages=HELLO, logprobs=True)
            assert answer.choices[0].message.content == "hello"
            assert answer.choices[0].logprobs.content[0].logprob == -0.5
            called = await chat.create(model="tiny", messages=HELLO, tools=[TOOL])
            assert called.choices[0].message.tool_calls[0].function.name == "weather"
            parts = await chat.create(model="tiny", messages=HELLO, stream=True, max_tokens=4)
            text = "".join([part.choices[0].delta.content async for part in parts])
            assert text == " 0 1 2 3"
            plain = await client.completions.create(model="tiny", prompt="x", max_tokens=3)
            assert plain.choices[0].text == "xxx"
            pieces = await client.completions.create(
                model="tiny", prompt="x", stream=True, max_tokens=2
            )
            assert [one.choices[0].text async for one in pieces] == [" 0", " 1"]
            vectors = await client.embeddings.create(
                model="tiny", input="x", encoding_format="float"
            )
            assert vectors.data[0].embedding == [0.5, 0.25]
            assert [one.id async for one in client.models.list()] == ["tiny"]
            assert {one.header("authorization")[0] for one in engine.posts} == {"Bearer k"}

    run(go())


def test_errors_arrive_as_the_clients_own() -> None:
    async def go() -> None:
        async with (
            fleet(StubEngine("a"), api_keys=["right"]) as router,
            client_of(router, "wrong") as stranger,
            client_of(router, "right") as client,
        ):
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
            with pytest.raises(openai.NotFoundError, match="nope"):
                await client.completions.create(model="nope", prompt="x")
            with pytest.raises(openai.BadRequestError, match="a says 400"):
                await client.completions.create(
                    model="tiny", prompt="x", extra_body={"status": 400}
                )
            stream = await client.completions.create(
                model="tiny",
                prompt="x",
                stream=True,
                max_tokens=5,
                extra_body={"fail_after": 2, "pause": 0.01},
            )
            with pytest.raises(openai.APIError, match="incomplete"):
                [one async for one in stream]

    run(go())


def test_closing_a_stream_ends_the_work() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router, client_of(router) as client:
            stream = await client.completions.create(
                model="tiny", prompt="x", stream=True, max_tokens=10**6, extra_body={"pause": 0.01}
            )
            async for _ in stream:
                break
            await stream.close()
            await until(lambda: engine.aborted == 1)

    run(go())


def test_a_full_router_is_tried_again_by_the_client() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with (
            fleet(engine, max_in_flight=1, max_waiting=0, max_wait=2) as router,
            client_of(router, retries=3) as client,
        ):
            ask = client.completions.create
            busy = asyncio.create_task(ask(model="tiny", prompt="x", extra_body={"wait": 0.5}))
            await until(lambda: engine.posts)
            assert (await ask(model="tiny", prompt="x")).choices[0].text == "x"
            await busy

    run(go())
