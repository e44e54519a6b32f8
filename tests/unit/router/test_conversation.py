"""Chats become what vLLM's own code makes of them, or are not guessed at."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import parse_chat_messages

from kvstrata.router.conversation import Chat, NotRenderedError, conversation, has_media, tool_list
from lab.models import ensure

text = st.text(alphabet='ab \n{}"', max_size=6) | st.just("x-anthropic-billing-header: 1\nb")
part = st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text"]), "text": text}) | (
    st.sampled_from([{"type": "text"}, {"type": "refusal", "refusal": "a"}, "a", {"text": "a"}])
)
content = text | st.lists(part, max_size=3) | st.none()
call = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {
                "name": st.just("f"),
                "arguments": st.sampled_from(
                    ["", "{}", '{"b": 1, "a": [2.5]}', "[1]", "{", "null"]
                ),
            }
        ),
        "id": st.just("1"),
    },
    optional={"index": st.just(0)},
)
common: dict[str, Any] = {"content": content}
message = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system"]), **common}, optional={"name": text}
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={
            **common,
            "name": text,
            "refusal": st.none() | text,
            "tool_calls": st.lists(call, max_size=2) | st.none(),
        },
    ),
    st.fixed_dictionaries({"role": st.just("tool"), **common, "tool_call_id": st.just("1")}),
    st.fixed_dictionaries({"role": st.sampled_from(["developer", "wizard"]), **common}),
)
name = st.sampled_from(["f", "g"])
tool = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {},
            optional={
                "strict": st.booleans() | st.none(),
                "parameters": st.sampled_from([None, {}, {"type": "object", "b": 1, "a": 2}, []]),
                "description": text | st.none() | st.integers(0, 1),
                "name": name,
                "extra": text,
            },
        )
    },
    optional={"type": st.sampled_from(["function", "web"]), "x": text},
)


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return ModelConfig(model=str(ensure("llama")), dtype="float32")


@settings(max_examples=300)
@given(
    st.lists(message, min_size=1, max_size=4),
    st.none() | st.lists(tool, min_size=1, max_size=2),
    st.sampled_from(["string", "openai"]),
)
def test_what_is_rendered_is_what_vllm_renders(model, messages, tools, form) -> None:
    body = {"model": "m", "messages": messages, **({"tools": tools} if tools else {})}
    wire = json.loads(json.dumps(body))
    try:
        given_tools = tool_list(wire.get("tools"))
        found = conversation(Chat(wire["messages"], given_tools, form=form, calls=True))
    except NotRenderedError:
        return
    try:
        request = ChatCompletionRequest.model_validate(json.loads(json.dumps(body)))
        expected, media, _ = parse_chat_messages(request.messages, model, form)
    except (ValidationError, VLLMValidationError):
        return  # whatever was made of it here, there is nothing to compute
    assert media is None
    # As text: the order of keys shows where a template writes them out.
    assert json.dumps(found) == json.dumps(expected)
    theirs = None if request.tools is None else [one.model_dump() for one in request.tools]
    assert json.dumps(given_tools) == json.dumps(theirs)


@given(st.lists(message, min_size=1, max_size=4), st.sampled_from(["string", "openai"]))
def test_common_chats_are_rendered(messages, form) -> None:
    """The strategy above is not empty: what clients commonly send is not left to the engine."""
    plain = [
        one
        for one in messages
        if one["role"] in ("user", "system") and isinstance(one.get("content"), str)
    ]
    if plain and not any("billing" in one["content"] for one in plain):
        assert len(conversation(Chat(plain, form=form))) == len(plain)


def test_calls_and_parts_are_rendered_when_tried() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
    ]
    assert conversation(Chat(talk, form="string", calls=True))[0]["content"] == "a\nb"
    for tried in (Chat(talk, form="string"), Chat(talk, calls=True)):
        with pytest.raises(NotRenderedError, match="not tried"):
            conversation(tried)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        None,
        ["hello"],
        [{"role": "user"}],
        [{"role": ["user"], "content": "a"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}],
        [{"role": "assistant", "content": "x", "reasoning": "y"}],
        [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
        [{"role": "developer", "content": "x"}],
    ],
)
def test_what_the_engine_may_render_in_another_way_is_left_to_it(messages) -> None:
    for form in ("", "string", "openai"):
        with pytest.raises(NotRenderedError):
            conversation(Chat(messages, form=form, calls=True))


def test_media_are_seen() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert has_media([{"role": "user", "content": [{"type": "text", "text": "a"}, image]}])
    for none in (None, [], ["x"], [{"content": "x"}], [{"content": [{"type": "text"}, "x"]}]):
        assert not has_media(none)


def test_vllm_refuses_what_is_refused_here() -> None:
    """So that a question to the engine is no detour for such a request."""
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate({"messages": "hello"})
