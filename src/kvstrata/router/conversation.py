"""A chat's messages as vLLM hands them to a chat template.

vLLM does not pass on what a client sent: content becomes one text or a list of parts, as the template wants
it; the arguments of tool calls become objects; what it does not know is left out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["", "string", "openai"]
"""How a template wants contents: as one text, as parts, or not known."""

TEXTS = ("text", "input_text")
_PART = frozenset({"type", "text"})
_KEYS = {
    "system": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "tool_calls"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
_REMOVED = "x-anthropic-billing-header"
"""How a system message begins of which vLLM drops a line."""


class NotRenderedError(ValueError):
    """This chat cannot be rendered here; the message says why."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat template is filled with.

    Attributes:
        messages: as the client sent them.
        tools: see `tool_list`; None without any.
        prompted: whether the model is to answer now (`add_generation_prompt`).
        form: of contents. While it is not known, only those that are texts are rendered.
        calls: whether tools and their calls are rendered.
    """

    messages: Any
    tools: list[dict[str, Any]] | None = None
    prompted: bool = True
    form: Form = ""
    calls: bool = False


def conversation(chat: Chat, before: str = "") -> list[dict[str, Any]]:
    """The messages for the template.

    Args:
        chat: all of it.
        before: a text that is put right before the first part that is not text; only where there is one.

    Raises:
        NotRenderedError: vLLM may make something else of it, or would refuse it.
    """
    messages = chat.messages
    if not isinstance(messages, list) or not messages:
        raise NotRenderedError("messages is no list of messages")
    if chat.tools is not None and not chat.calls:
        raise NotRenderedError("the request has tools, and how they are rendered was not tried")
    marks = iter([before] if before else [])
    return [_message(message, chat, marks if before else None) for message in messages]


def has_media(messages: Any) -> bool:
    """Whether a message holds a part that is not text."""
    if not isinstance(messages, list):
        return False
    contents = [one.get("content") for one in messages if isinstance(one, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(_is_media(part) for part in parts)


def tool_list(tools: Any) -> list[dict[str, Any]] | None:
    """The request's tools as vLLM hands them on.

    Raises:
        NotRenderedError: vLLM would refuse them.
    """
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools):
        raise NotRenderedError("tools is no list of tools")
    return [_tool(one) for one in tools]


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    function = given.get("function")
    if given.get("type", "function") != "function" or not isinstance(function, dict):
        raise NotRenderedError("a tool is no function")
    if given.get("defer_loading") is not None or function.get("defer_loading") is not None:
        raise NotRenderedError("a tool is loaded later")
    name, description = function.get("name"), function.get("description")
    parameters, strict = function.get("parameters"), function.get("strict")
    if not isinstance(name, str) or not isinstance(description, str | None):
        raise NotRenderedError("a tool's name or description is no text")
    if not isinstance(parameters, dict | None) or not isinstance(strict, bool | None):
        raise NotRenderedError("a tool's parameters are no object")
    found: dict[str, Any] = {
        "name": name,
        "description": description,
        "parameters": parameters,
    }
    if strict is not None:
        found["strict"] = strict
    return {"type": "function", "function": found}


def _message(message: Any, chat: Chat, marks: Iterator[str] | None) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _KEYS:
        raise NotRenderedError("a message is of another role")
    given = {key: value for key, value in message.items() if value is not None}
    if not given.keys() <= _KEYS[role]:
        raise NotRenderedError("a message has more than text")
    if "content" not in given and not given.get("tool_calls"):
        raise NotRenderedError("a message has no text")
    if role == "tool" and not chat.calls:
        raise NotRenderedError("a tool answers, and how that is rendered was not tried")
    made = {"role": role, "content": _content(given.get("content", []), role, chat, marks)}
    if given.get("tool_calls"):
        made["tool_calls"] = _calls(given["tool_calls"], chat)
    for key in ("tool_call_id", "name"):
        if key in given:
            if not isinstance(given[key], str):
                raise NotRenderedError(f"a message's {key} is no text")
            made[key] = given[key]
    return made


def _content(content: Any, role: str, chat: Chat, marks: Iterator[str] | None) -> Any:
    plain = isinstance(content, str)
    parts = [{"type": "text", "text": content}] if plain else content
    if not isinstance(parts, list):
        raise NotRenderedError("a message's content is neither text nor parts")
    if role == "system" and any(_text(part).startswith(_REMOVED) for part in parts):
        raise NotRenderedError("a system message begins with a header that is taken out")
    if not chat.form and not plain:
        raise NotRenderedError("a message has parts, and how they are rendered was not tried")
    media = [number for number, part in enumerate(parts) if _is_media(part)]
    if media and marks is None:
        raise NotRenderedError("a message has more than text")
    if not all(_is_text(part) or _is_media(part) for part in parts):
        raise NotRenderedError("a message has parts of an unknown kind")
    mark = next(marks, "") if media and marks is not None else ""
    if chat.form == "openai" and role != "tool":
        made = [
            {"type": "text", "text": _text(part)} if _is_text(part) else _medium(part)
            for part in parts
        ]
        if mark:
            made.insert(media[0], {"type": "text", "text": mark})
        return made
    if media:
        # The engine puts its own words for media at the beginning of this text.
        return mark or "\n".join(filter(None, map(_text, parts)))
    texts = [_text(part) for part in parts]
    return "\n".join(texts if role == "tool" and chat.form == "openai" else filter(None, texts))


def _calls(calls: Any, chat: Chat) -> list[dict[str, Any]]:
    if not chat.calls:
        raise NotRenderedError("a message calls tools, and how that is rendered was not tried")
    if not isinstance(calls, list):
        raise NotRenderedError("a message's tool calls are no list")
    return [_call(one) for one in calls]


def _call(given: Any) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or given.get("type") != "function":
        raise NotRenderedError("a tool call is no call of a function")
    identity, name, arguments = given.get("id"), function.get("name"), function.get("arguments")
    if given.keys() != {"id", "type", "function"} or function.keys() != {"name", "arguments"}:
        raise NotRenderedError("a tool call has other fields")
    if not (isinstance(identity, str) and isinstance(name, str) and isinstance(arguments, str)):
        raise NotRenderedError("a field of a tool call is no text")
    # vLLM's parser of requests puts them in this order, which a template may show.
    return {
        "id": identity,
        "function": {"arguments": _object(arguments), "name": name},
        "type": "function",
    }


def _object(arguments: str) -> dict[str, Any]:
    try:
        found = json.loads(arguments) if arguments else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") in TEXTS
        and part.keys() <= _PART
        and isinstance(part.get("text"), str)
    )


def _text(part: Any) -> str:
    return str(part["text"]) if _is_text(part) else ""


def _is_media(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in _MEDIA


def _medium(part: dict[str, Any]) -> dict[str, str]:
    return {"type": _MEDIA[part["type"]]}


_MEDIA = {
    "image_url": "image",
    "input_image": "image",
    "audio_url": "audio",
    "input_audio": "audio",
    "video_url": "video",
}
"""Kinds of parts that are not text, and how a template gets them."""
