"""Token ids of what a request asks the engine to read, where they can be known here; else why they cannot."""

import json
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.router.asking import Asked, Fields
from kvstrata.router.chat import ChatTemplate
from kvstrata.router.conversation import Chat, Form, NotRenderedError, has_media, tool_list
from kvstrata.router.ids import parse_ids
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.responses import as_messages

Tokens = npt.NDArray[np.uint32]

CHATS = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
_NOTHING = frozenset({"/tokenize", "/detokenize"})


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of one request.

    Attributes:
        tokens: uint32, one-dimensional; None where they are not known.
        salt: the request's cache salt, which enters its block hashes.
        doubt: why the tokens are not known, or may be others than the engine's; empty when they are the
            engine's.
        cached: whether the engine looks into its caches for it.
        question: body of a `/tokenize` that tells the tokens which are not known; None where none does.
    """

    tokens: Tokens | None
    salt: str | None = None
    doubt: str = ""
    cached: bool = True
    question: bytes | None = None


@dataclass(frozen=True, slots=True)
class Believed:
    """In what the model's files give the engine's own token ids.

    Attributes:
        text: for a text.
        chat: for a chat of texts.
        calls: for one with tools.
        form: of contents that chats are rendered with; see `Chat`.
        harmony: the engine renders chats in a way of its own, that neither files nor `/tokenize` tell.
    """

    text: bool = True
    chat: bool = True
    calls: bool = False
    form: Form = ""
    harmony: bool = False


NOTHING = Believed(text=False, chat=False)


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

    def read(self, asked: Asked, believed: Believed = Believed()) -> Prompt:
        """The prompt of a request.

        Args:
            asked: the request.
            believed: what of the model's files can be used.
        """
        fields = asked.fields
        salt = fields.cache_salt if isinstance(fields.cache_salt, str) else None
        try:
            prompt = self._read(asked, believed)
        except (ValueError, RecursionError) as error:
            return Prompt(None, salt, f"the request is not understood: {error}")
        cached = not _asks_of_the_prompt(fields)
        if salt is None and cached:
            return prompt
        return replace(prompt, salt=salt, cached=cached)

    def text(self, text: str, *, special: bool) -> Tokens | None:
        """Token ids of a text; None without a tokenizer."""
        return None if self._tokenizer is None else self._tokenizer.encode(text, special=special)

    def chat(self, chat: Chat, *, special: bool = False) -> Tokens | None:
        """Token ids of a chat; None without a tokenizer or a template.

        Raises:
            NotRenderedError: see `ChatTemplate.render`.
        """
        if self._template is None or self._tokenizer is None:
            return None
        return self._tokenizer.encode(self._template.render(chat), special=special)

    # Inner workings.

    def _read(self, asked: Asked, believed: Believed) -> Prompt:
        path, fields = asked.request.path, asked.fields
        if path in _NOTHING:
            return Prompt(None, doubt="nothing is computed for it")
        if path not in (CHATS, COMPLETIONS, RESPONSES, EMBEDDINGS):
            return Prompt(None, doubt=f"prompts of {path} are not read")
        odd = fields.gives("truncate_prompt_tokens", "suffix", "prompt_embeds", "documents")
        if odd:
            return Prompt(None, doubt=f"the request has {odd}, and what the engine makes of it")
        if isinstance(fields.kv_transfer_params, dict) and (
            "prompt_token_ids" in fields.kv_transfer_params
        ):
            return Prompt(None, doubt="the request has prompt_token_ids for its transfer")
        if path == COMPLETIONS:
            return self._plain(asked, fields.prompt, believed)
        if path == EMBEDDINGS:
            return self._plain(asked, fields.input, believed)
        if believed.harmony:
            return Prompt(None, doubt="the engine renders chats of gpt-oss in its own way")
        if path == RESPONSES:
            return self._response(fields, believed)
        return self._chat(fields, believed)

    def _plain(self, asked: Asked, raw: msgspec.Raw, believed: Believed) -> Prompt:
        """A prompt of ids, or of a text."""
        if asked.ids is not None:
            return Prompt(asked.ids)
        text = bytes(raw)
        tokens = parse_ids(text)
        if tokens is not None and len(tokens):
            return Prompt(tokens)
        prompt = msgspec.json.decode(text) if text else None
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if isinstance(prompt, list):
            tokens = parse_ids(msgspec.json.encode(prompt))
            if tokens is not None and len(tokens):
                return Prompt(tokens)
        if not isinstance(prompt, str):
            return Prompt(None, doubt="the request has several prompts, or none")
        special = asked.fields.add_special_tokens is not False
        tokens = self.text(prompt, special=special) if believed.text else None
        if tokens is not None:
            return Prompt(tokens)
        question = {"prompt": prompt, "add_special_tokens": special}
        return _left(asked.fields, "the model's tokenizer is not at hand", question)

    def _chat(self, fields: Fields, believed: Believed) -> Prompt:
        messages = _json(fields.messages)
        special = fields.add_special_tokens is True
        tools = None if fields.gives("tools") == "" else json.loads(bytes(fields.tools))
        doubt = ""
        if tools and bytes(fields.tool_choice) == b'"none"':
            doubt = "the engine may leave out tools where none is to be chosen"
        question = {
            "messages": messages,
            "add_special_tokens": special,
            "add_generation_prompt": fields.add_generation_prompt is not False,
            **_given(fields, "tools", "chat_template"),
            **_template_arguments(fields),
        }
        if fields.continue_final_message is True:
            question["continue_final_message"] = True
        own = fields.gives("chat_template", "chat_template_kwargs", "reasoning_effort")
        if own or fields.continue_final_message is True:
            why = f"it has its own {own}" if own else "it continues its last message"
            return self._unrendered(fields, messages, question, why)
        prompted = fields.add_generation_prompt is not False
        try:
            chat = Chat(messages, tool_list(tools), prompted, believed.form, believed.calls)
            found = self._rendered(fields, chat, special, believed, question)
            return replace(found, doubt=found.doubt or doubt)
        except NotRenderedError as error:
            return self._unrendered(fields, messages, question, str(error))

    def _response(self, fields: Fields, believed: Believed) -> Prompt:
        odd = fields.gives("previous_response_id", "previous_input_messages", "tools", "reasoning")
        odd = odd or fields.gives("chat_template_kwargs", "reasoning_effort")
        if odd or fields.truncation not in (None, "disabled"):
            return Prompt(None, doubt=f"the response has its own {odd or 'truncation'}")
        try:
            messages = as_messages(_json(fields.instructions), _json(fields.input))
        except NotRenderedError as error:
            return Prompt(None, doubt=str(error))
        question = {"messages": messages, "add_generation_prompt": True}
        try:
            chat = Chat(messages, form=believed.form)
            return self._rendered(fields, chat, False, believed, question)
        except NotRenderedError as error:
            return self._unrendered(fields, messages, question, str(error))

    def _rendered(
        self, fields: Fields, chat: Chat, special: bool, believed: Believed, question: Any
    ) -> Prompt:
        """A chat as the template makes it. Raises NotRenderedError."""
        if self._template is None or self._tokenizer is None or not believed.chat:
            why = "the model's chat template is not at hand"
            return self._unrendered(fields, chat.messages, question, why)
        if not has_media(chat.messages):
            return Prompt(self.chat(chat, special=special))
        start = self._template.render_start(chat)
        tokens = self._tokenizer.beginning(start, special=special)
        doubt = "what follows the first image or sound is not known here"
        return Prompt(tokens if len(tokens) else None, doubt=doubt)

    def _unrendered(self, fields: Fields, messages: Any, question: Any, why: str) -> Prompt:
        """A chat that is left to the engine, if it is not work for it."""
        doubt = f"the chat is not rendered here: {why}"
        if has_media(messages):
            return Prompt(None, doubt=doubt)  # it would load the images twice
        return _left(fields, doubt, question)


def _left(fields: Fields, doubt: str, question: dict[str, Any]) -> Prompt:
    """A prompt that the engine may be asked for."""
    named = {} if fields.model is None else {"model": fields.model}
    return Prompt(None, doubt=doubt, question=msgspec.json.encode({**named, **question}))


def _json(raw: msgspec.Raw) -> Any:
    text = bytes(raw)
    return msgspec.json.decode(text) if text else None


def _given(fields: Fields, *names: str) -> dict[str, msgspec.Raw]:
    """Those raw parts that are there, as they are."""
    return {name: getattr(fields, name) for name in names if fields.gives(name)}


def _template_arguments(fields: Fields) -> dict[str, Any]:
    """What the request gives its template, as `/tokenize` takes it."""
    found = _json(fields.chat_template_kwargs)
    arguments = found if isinstance(found, dict) else {}
    effort = _json(fields.reasoning_effort)
    if effort:
        arguments = {"enable_thinking": effort != "none", **arguments, "reasoning_effort": effort}
    return {"chat_template_kwargs": arguments} if arguments else {}


def _asks_of_the_prompt(fields: Fields) -> bool:
    """Whether probabilities of the prompt's own tokens are wanted, for which all of it is computed."""
    nothing = (b"", b"null")
    if bytes(fields.prompt_logprobs) not in nothing:
        return True
    # An echo has the prompt's probabilities too: in a chat always, else where any are wanted.
    chat = bytes(fields.messages) not in nothing
    return fields.echo is True and (chat or bytes(fields.logprobs) not in nothing)
