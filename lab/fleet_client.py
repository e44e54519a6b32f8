"""Plays a planned load through the official `openai` client, and notes what its users see."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import openai
from openai.types.chat import ChatCompletionMessageParam

from lab.fleet_load import Conversation, Plan

REQUEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its user saw it.

    Attributes:
        conversation: its name.
        turn: 0 for the first.
        at: seconds from the load's beginning.
        ttft: seconds from sending to the first piece of text.
        seconds: from sending to the end of the answer.
        prompt_tokens: as the engine counts them.
        cached_tokens: of those, that the engine says it did not compute.
        answer_tokens: generated.
        replica: that answered, as the router says.
        decision: id of the router's decision.
    """

    conversation: str
    turn: int
    at: float
    ttft: float
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    replica: str
    decision: str

    @property
    def computed_tokens(self) -> int:
        """Tokens of the prompt that the engine computed."""
        return self.prompt_tokens - self.cached_tokens


class LoadError(Exception):
    """A request of the load failed; the message says which and how."""


def play(
    url: str, model: str, load: Plan, told: Callable[[Sample], None] | None = None
) -> tuple[list[Sample], float]:
    """Run a load to its end.

    Args:
        url: of the router, without `/v1`.
        model: its served name.
        load: the conversations.
        told: called with each sample as it comes.

    Returns:
        The samples in the order in which they ended, and the seconds from the first request to the last
        answer's end.

    Raises:
        LoadError: a request failed; the rest is given up.
    """
    return asyncio.run(_Players(url, model, told or (lambda _: None)).play(load))


class _Players:
    def __init__(self, url: str, model: str, told: Callable[[Sample], None]) -> None:
        self._url = url
        self._model = model
        self._told = told
        self._samples: list[Sample] = []
        self._begun = 0.0

    async def play(self, load: Plan) -> tuple[list[Sample], float]:
        async with openai.AsyncOpenAI(
            base_url=f"{self._url}/v1",
            api_key="none",
            timeout=REQUEST_SECONDS,
            max_retries=0,  # a failure is to be seen
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client:
            first = min(one.start for one in load.conversations)
            self._begun = time.perf_counter() - first
            answer_tokens = load.scale.answer_tokens
            try:
                async with asyncio.TaskGroup() as group:
                    for one in load.conversations:
                        group.create_task(self._converse(client, one, answer_tokens))
            except* LoadError as errors:
                raise errors.exceptions[0] from None
            return self._samples, time.perf_counter() - self._begun - first

    async def _converse(
        self, client: openai.AsyncOpenAI, one: Conversation, answer_tokens: int
    ) -> None:
        await asyncio.sleep(max(self._begun + one.start - time.perf_counter(), 0.0))
        messages: list[ChatCompletionMessageParam] = []
        if one.system:
            messages.append({"role": "system", "content": one.system})
        for number, turn in enumerate(one.turns):
            await asyncio.sleep(turn.think)
            messages.append({"role": "user", "content": turn.text})
            try:
                sample, answer = await self._ask(client, one.name, number, messages, answer_tokens)
            except (openai.OpenAIError, httpx2.HTTPError) as error:
                raise LoadError(f"turn {number} of {one.name}: {error!r}") from error
            messages.append({"role": "assistant", "content": answer})
            self._samples.append(sample)
            self._told(sample)

    async def _ask(
        self,
        client: openai.AsyncOpenAI,
        conversation: str,
        turn: int,
        messages: list[ChatCompletionMessageParam],
        answer_tokens: int,
    ) -> tuple[Sample, str]:
        begun = time.perf_counter()
        reply = await client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=messages,
            max_tokens=answer_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        first, usage, pieces = 0.0, None, []
        async for chunk in reply.parse():
            usage = chunk.usage or usage
            for choice in chunk.choices:
                if choice.delta.content:
                    first = first or time.perf_counter()
                    pieces.append(choice.delta.content)
        ended = time.perf_counter()
        if usage is None or not first:
            raise LoadError(f"turn {turn} of {conversation}: an answer without text or usage")
        details = usage.prompt_tokens_details
        sample = Sample(
            conversation=conversation,
            turn=turn,
            at=begun - self._begun,
            ttft=first - begun,
            seconds=ended - begun,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            answer_tokens=usage.completion_tokens,
            replica=reply.headers.get("x-kvstrata-replica", ""),
            decision=reply.headers.get("x-kvstrata-decision", ""),
        )
        return sample, "".join(pieces)
