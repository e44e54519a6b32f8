"""Token ids of what a request asks the engine to read, where they can be known here; else why they cannot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.router.chat import ChatTemplate, NotRenderedError
from kvstrata.router.ids import parse_ids
from kvstrata.router.incremental import IncrementalTokenizer

Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of one request.

    Attributes:
        tokens: uint32, one-dimensional; None where they are not known.
        salt: the request's cache salt, which enters its block hashes.
        doubt: why the tokens are not known, or may be others than the engine's; empty when they are the
            engine's.
    """

    tokens: Tokens | None
    salt: str | None = None
    doubt: str = ""


class Body(msgspec.Struct, frozen=True):
    """The fields of a request's body that decide where it goes; all others are the engine's.

    The prompt is left as JSON: most of a long body, and most often an array of token ids.
    """

    model: str | None = None
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    stream: bool | None = None
    cache_salt: str | None = None
    add_special_tokens: bool | None = None
    prompt_embeds: msgspec.Raw = msgspec.Raw()


_BODY = msgspec.json.Decoder(Body)


def read_body(data: bytes) -> Body:
    """The fields of a body that matter here.

    Raises:
        ValueError: it is no JSON object, or one of these fields has another type; the message says which.
    """
    return _BODY.decode(data)


class PromptReader:
    """Makes token ids of requests to one model. Not for use by several threads at once.

    Args:
        tokenizer: of the model, or None where its files are not at hand.
        template: its chat template, or None.
    """

    def __init__(
        self, tokenizer: IncrementalTokenizer | None = None, template: ChatTemplate | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def completion(self, body: Body) -> Prompt:
        """The prompt of `/v1/completions`."""
        if bytes(body.prompt_embeds) not in (b"", b"null"):
            return Prompt(
                None, body.cache_salt, "the prompt is embeddings, which are not hashed here"
            )
        raw = bytes(body.prompt)
        tokens = parse_ids(raw)
        if tokens is not None:
            return Prompt(tokens, body.cache_salt)
        prompt = _only(_json(raw))
        if isinstance(prompt, list):
            tokens = parse_ids(msgspec.json.encode(prompt))
            if tokens is not None:
                return Prompt(tokens, body.cache_salt)
        if isinstance(prompt, str):
            return self._text(body, prompt, body.add_special_tokens is not False)
        return Prompt(None, body.cache_salt, "the request has several prompts, or none")

    def chat(self, body: Body, whole: Mapping[str, Any]) -> Prompt:
        """The prompt of `/v1/chat/completions`.

        Args:
            body: see `read_body`.
            whole: the same body with all its fields.
        """
        if self._template is None:
            return Prompt(None, body.cache_salt, "the model's chat template is not at hand")
        try:
            text = self._template.render(whole)
        except NotRenderedError as error:
            return Prompt(None, body.cache_salt, f"the chat is not rendered here: {error}")
        return self._text(body, text, body.add_special_tokens is True)

    def _text(self, body: Body, text: str, special: bool) -> Prompt:
        if self._tokenizer is None:
            return Prompt(None, body.cache_salt, "the model's tokenizer is not at hand")
        return Prompt(self._tokenizer.encode(text, special=special), body.cache_salt)


def _only(prompt: Any) -> Any:
    """The prompt of a list that holds one."""
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


def _json(raw: bytes) -> Any:
    return msgspec.json.decode(raw) if raw else None
