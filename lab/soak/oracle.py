"""Known answers: each prompt is asked once of an engine that has no offload, and remembered."""

from collections.abc import Iterable
from typing import Any

from lab.models import prompt_ids
from lab.soak.engines import Engine
from lab.soak.plan import BATCH, Prompt, Segment

ANSWER_SECONDS = 300.0


class Oracle:
    """What each prompt is, as token ids, and how it must be answered.

    Args:
        engine: without any tier but the device's own cache.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._answers: dict[Prompt, list[int]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def pid(self) -> int:
        """Of its engine's process."""
        return self._engine.pid

    def learn(self, prompts: Iterable[Prompt]) -> None:
        """Get the answers that are not known yet, earlier turns first.

        Raises:
            EngineError: its engine failed.
        """
        wanted = {prompt for prompt in prompts if prompt not in self._answers}
        while wanted:
            missing = {
                one for prompt in wanted for one in _lineage(prompt) if one not in self._answers
            }
            ready = [one for one in missing if one.previous is None or self.knows(one.previous)]
            batch = sorted(ready, key=repr)[:BATCH]
            self._engine.ask([self.tokens(p) for p in batch], [p.max_tokens for p in batch])
            found: list[dict[str, Any]] = self._engine.answer(ANSWER_SECONDS)
            for prompt, answer in zip(batch, found, strict=True):
                self._answers[prompt] = answer["tokens"]
            wanted = {prompt for prompt in wanted if prompt not in self._answers}

    def knows(self, prompt: Prompt) -> bool:
        """Whether the answer is known."""
        return prompt in self._answers

    def answer(self, prompt: Prompt) -> list[int]:
        """Token ids of the answer, which must be known."""
        return self._answers[prompt]

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; the answer to its previous turn must be known."""
        previous = prompt.previous
        if previous is None:
            return _ids(prompt.opening) + _ids(prompt.turns[0])
        return self.tokens(previous) + self.answer(previous) + _ids(prompt.turns[-1])


def _lineage(prompt: Prompt | None) -> Iterable[Prompt]:
    while prompt is not None:
        yield prompt
        prompt = prompt.previous


def _ids(segment: Segment) -> list[int]:
    return prompt_ids(segment.tokens, segment.seed)
