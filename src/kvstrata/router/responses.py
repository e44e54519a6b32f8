"""A request of the Responses API as the chat that the engine makes of it."""

from typing import Any

from kvstrata.router.conversation import NotRenderedError

_KEYS = frozenset({"type", "role", "content"})


def as_messages(instructions: Any, given: Any) -> list[dict[str, Any]]:
    """The messages of a chat.

    Args:
        instructions: text, or None.
        given: the request's `input`: text, or a list of items.

    Raises:
        NotRenderedError: the engine may make something else of it, or would refuse it.
    """
    found: list[dict[str, Any]] = []
    if instructions:
        if not isinstance(instructions, str):
            raise NotRenderedError("instructions are no text")
        found.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise NotRenderedError("input is neither text nor a list of messages")
    found += [_message(item) for item in given]
    if found[-1]["role"] == "assistant":
        raise NotRenderedError("the last message may be one to be continued")
    return found


def _message(item: Any) -> dict[str, Any]:
    """One item that is a message."""
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise NotRenderedError("an item of the input is no message")
    if not item.keys() <= _KEYS or item.get("role") not in ("system", "user", "assistant"):
        raise NotRenderedError("a message of the input has more than a role and content")
    role, content = item["role"], item.get("content")
    if role == "assistant" and not isinstance(content, str):
        raise NotRenderedError("an assistant's message of the input has parts")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    return {"role": role, "content": content}


def _part(part: Any) -> Any:
    """A part as chats call it."""
    if isinstance(part, dict) and part.get("type") == "input_text":
        return {**part, "type": "text"}
    return part
