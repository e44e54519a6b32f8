"""What of a model's files gives the token ids that an engine makes: tried on the engine, then judged. Pure.

An engine may have been started with another tokenizer, with a chat template or arguments of its own, with
another model's files at the same path, or render chats in a way of its own. Its `/tokenize` shows all of
that: it is asked for some prompts, and only what comes out alike here is computed here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.router.conversation import Chat, Form, NotRenderedError, tool_list
from kvstrata.router.prompts import NOTHING, Believed, PromptReader

Tokens = npt.NDArray[np.uint32]
Answers = Sequence[Tokens | None]
"""Token ids for each of `QUESTIONS`; None where the engine refused."""

_TEXT = 'Of 12345 things, "some" are new:\n\n\tdéjà vu, 東京, e.g. foo_bar(x) != 3.14; it\'s  twice.\nNext'
_USER = {"role": "user", "content": "What is 2 + 2?\nBe brief. "}
_TALK = [
    {"role": "system", "content": "You help."},
    _USER,
    {"role": "assistant", "content": " Four.\n"},
    {"role": "user", "content": "And 3 + 3?"},
]
_PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
    }
]
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What it is like",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now", "strict": True}},
]
_CALLS = [
    {"role": "user", "content": "Is it warm in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_abc12",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 2}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_abc12", "content": "Warm."},
    {"role": "user", "content": "Thanks."},
]
_CHATS: tuple[list[dict[str, Any]], ...] = ([_USER], _TALK)
_FORMS: tuple[Form, ...] = ("string", "openai")

QUESTIONS: tuple[dict[str, Any], ...] = (
    {"prompt": _TEXT},
    *({"messages": messages} for messages in _CHATS),
    {"messages": _PARTS},
    {"messages": _CALLS, "tools": _TOOLS},
)
"""What an engine is asked; the model's name goes in front."""


def question(number: int, model: str) -> bytes:
    """The body of a `/tokenize`."""
    return msgspec.json.encode({"model": model, **QUESTIONS[number]})


def judge(reader: PromptReader, answers: Answers) -> Believed:
    """What can be believed of a model's files.

    Args:
        reader: with those files.
        answers: of an engine.
    """
    text, *chats, parts, calls = answers
    if not _same(text, reader.text(_TEXT, special=True)):
        return NOTHING
    if all(chat is None for chat in chats):
        return Believed(chat=False)
    for form in _FORMS:
        found = [_chat(reader, Chat(messages, form=form)) for messages in (*_CHATS, _PARTS)]
        if all(map(_same, (*chats, parts), found)):
            tried = Chat(_CALLS, tool_list(_TOOLS), form=form, calls=True)
            called = calls is not None and _same(calls, _chat(reader, tried))
            return Believed(form=form, calls=called)
    plain = [_chat(reader, Chat(messages)) for messages in _CHATS]
    return Believed(chat=all(map(_same, chats, plain)))


def common(verdicts: Iterable[Believed]) -> Believed:
    """What can be believed for all of several engines; there is at least one."""
    return reduce(_both, verdicts)


def _both(one: Believed, other: Believed) -> Believed:
    if one.form != other.form:
        # Texts alone may still come out alike, but which of the two ways is right differs.
        one = replace(one, form="", calls=False, chat=False)
    return Believed(
        text=one.text and other.text,
        chat=one.chat and other.chat,
        calls=one.calls and other.calls,
        form=one.form,
        harmony=one.harmony or other.harmony,
    )


def _chat(reader: PromptReader, chat: Chat) -> Tokens | None:
    try:
        return reader.chat(chat)
    except NotRenderedError:
        return None


def _same(one: Tokens | None, other: Tokens | None) -> bool:
    """Equal, or refused by both."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
