"""Which token ids a request's body stands for."""

import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from kvstrata.router.asking import ask
from kvstrata.router.chat import ChatTemplate
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.prompts import (
    CHATS,
    COMPLETIONS,
    EMBEDDINGS,
    RESPONSES,
    Believed,
    Prompt,
    PromptReader,
)


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    template = ChatTemplate(
        "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", {}
    )
    return PromptReader(IncrementalTokenizer(tokenizer), template)


PLAIN = Believed()


def read(reader: PromptReader, path: str, believed: Believed = PLAIN, **body) -> Prompt:
    request = SimpleNamespace(path=path, headers=(), body=json.dumps(body).encode())
    return reader.read(ask(request, "one"), believed)  # type: ignore[arg-type]


def completion(reader: PromptReader, **body) -> Prompt:
    return read(reader, COMPLETIONS, **body)


def chat(reader: PromptReader, **body) -> Prompt:
    return read(reader, CHATS, **body)


def same(one: Prompt, other: Prompt) -> bool:
    assert one.tokens is not None and other.tokens is not None
    return one.tokens.tolist() == other.tokens.tolist()


def test_ids_are_taken_as_they_are(reader: PromptReader) -> None:
    for prompt in ([5, 6, 7], [[5, 6, 7]]):
        found = completion(reader, prompt=prompt, cache_salt="x")
        assert found.tokens is not None and found.tokens.tolist() == [5, 6, 7]
        assert found.salt == "x" and not found.doubt


def test_a_text_gets_what_the_tokenizer_puts_before_it(reader: PromptReader) -> None:
    for prompt in ("ab", ["ab"]):
        found, bare = (
            completion(reader, prompt=prompt, **more)
            for more in ({}, {"add_special_tokens": False})
        )
        assert found.tokens is not None and bare.tokens is not None
        assert found.tokens.tolist()[1:] == bare.tokens.tolist() and len(bare.tokens) == 2


def test_a_chat_is_rendered_and_its_template_brings_the_special_tokens(
    reader: PromptReader,
) -> None:
    found = chat(reader, messages=[{"role": "user", "content": "ab"}])
    text = completion(reader, prompt="user: ab\n")
    assert found.tokens is not None and text.tokens is not None
    assert found.tokens.tolist() == text.tokens.tolist()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"prompt": ["a", "b"]}, "several prompts"),
        ({"prompt": [[1], [2]]}, "several prompts"),
        ({"prompt": None}, "or none"),
        ({}, "or none"),
        ({"prompt": [1.5]}, "several prompts"),
        ({"prompt": "a", "prompt_embeds": "AAAA"}, "prompt_embeds"),
    ],
)
def test_what_is_not_known_is_said(reader: PromptReader, body, why) -> None:
    found = completion(reader, **body)
    assert found.tokens is None and why in found.doubt


def test_what_comes_before_an_image_is_known(reader: PromptReader) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    talk = [{"role": "user", "content": "ab\n" * 9}, {"role": "user", "content": image}]
    found = chat(reader, messages=talk)
    assert found.tokens is None and "not rendered" in found.doubt and found.question is None
    found = read(reader, CHATS, Believed(form="string"), messages=talk)
    assert found.doubt and found.tokens is not None and not found.question
    whole = completion(reader, prompt="user: " + "ab\n" * 9 + "\nuser: ")
    # The bytes after the last place to cut are not counted, as the image may reach into them.
    assert found.tokens.tolist() == whole.tokens.tolist()[: len(found.tokens)]
    assert len(found.tokens) > 20


def test_without_files_only_ids_are_known() -> None:
    bare = PromptReader()
    assert completion(bare, prompt=[1]).tokens is not None
    assert "tokenizer" in completion(bare, prompt="a").doubt
    assert "template" in chat(bare, messages=[{"role": "user", "content": "a"}]).doubt


def test_a_response_is_a_chat(reader: PromptReader) -> None:
    user = {"role": "user", "content": "ab"}
    for body, messages in (
        ({"input": "ab"}, [user]),
        ({"input": "ab", "instructions": "c"}, [{"role": "system", "content": "c"}, user]),
        ({"input": [user, {"type": "message", "role": "assistant", "content": "d"}, user]},
         [user, {"role": "assistant", "content": "d"}, user]),
    ):  # fmt: skip
        assert same(read(reader, RESPONSES, **body), chat(reader, messages=messages))


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "x"},
        {"tools": [{"type": "function", "name": "f"}]},
        {"truncation": "auto"},
        {"reasoning": {"effort": "low"}},
        {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
        {"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"input": []},
        {"instructions": 5},
    ],
)
def test_a_response_that_is_more_is_not_guessed(reader: PromptReader, more) -> None:
    found = read(reader, RESPONSES, **{"input": "ab", **more})
    assert found.tokens is None and found.doubt and found.question is None


def test_what_is_embedded_is_read(reader: PromptReader) -> None:
    assert same(read(reader, EMBEDDINGS, input="ab"), completion(reader, prompt="ab"))
    found = read(reader, EMBEDDINGS, input=[3, 4])
    assert found.tokens is not None and found.tokens.tolist() == [3, 4]
    assert read(reader, EMBEDDINGS, input=["a", "b"]).tokens is None


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/messages", "/v1/score"])
def test_other_requests_are_routed_without(reader: PromptReader, path: str) -> None:
    found = read(reader, path, prompt="ab", input="ab")
    assert found.tokens is None and found.doubt and found.question is None


TALK = [{"role": "user", "content": "ab"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"tools": TOOLS}, {"tools": TOOLS}),
        ({"chat_template": "{{ 1 }}"}, {"chat_template": "{{ 1 }}"}),
        ({"chat_template_kwargs": {"x": 1}}, {"chat_template_kwargs": {"x": 1}}),
        (
            {"reasoning_effort": "low"},
            {"chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": True}},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"reasoning_effort": "none", "enable_thinking": True}},
        ),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_the_engine_can_be_asked_for_the_rest(reader: PromptReader, body, asked) -> None:
    found = chat(reader, model="m", messages=TALK, **body)
    assert found.tokens is None and found.question is not None
    expected = {"model": "m", "messages": TALK, "add_special_tokens": False}
    assert json.loads(found.question) == {**expected, "add_generation_prompt": True, **asked}


def test_a_text_without_a_tokenizer_is_asked_for() -> None:
    found = completion(PromptReader(), prompt="ab", add_special_tokens=False, cache_salt="s")
    assert found.question is not None and found.salt == "s"
    assert json.loads(found.question) == {"prompt": "ab", "add_special_tokens": False}


@pytest.mark.parametrize(
    "more",
    [
        {"truncate_prompt_tokens": 5},
        {"suffix": "x"},
        {"documents": [{"a": "b"}]},
        {"kv_transfer_params": {"prompt_token_ids": [1]}},
    ],
)
def test_what_changes_the_prompt_in_the_engine_is_said(reader: PromptReader, more) -> None:
    for path, body in ((COMPLETIONS, {"prompt": "ab"}), (CHATS, {"messages": TALK})):
        found = read(reader, path, **body, **more)
        assert found.tokens is None and found.doubt and found.question is None


def test_chats_of_gpt_oss_are_the_engines(reader: PromptReader) -> None:
    for path, body in ((CHATS, {"messages": TALK}), (RESPONSES, {"input": "ab"})):
        found = read(reader, path, Believed(harmony=True), **body)
        assert found.tokens is None and "gpt-oss" in found.doubt and found.question is None
    assert read(reader, COMPLETIONS, Believed(harmony=True), prompt="ab").tokens is not None


@pytest.mark.parametrize(
    ("more", "cached"),
    [
        ({}, True),
        ({"logprobs": 1}, True),
        ({"echo": True}, True),
        ({"echo": True, "logprobs": 1}, False),
        ({"prompt_logprobs": 0}, False),
        ({"prompt_logprobs": None}, True),
    ],
)
def test_who_asks_of_the_prompt_gets_it_computed(reader: PromptReader, more, cached) -> None:
    assert completion(reader, prompt="ab", **more).cached is cached
    if "echo" not in more:
        assert chat(reader, messages=TALK, **more).cached is cached


def test_tools_that_may_be_left_out_are_a_doubt(reader: PromptReader) -> None:
    believed = Believed(form="string", calls=True)
    sure, unsure = (
        read(reader, CHATS, believed, messages=TALK, tools=TOOLS, **more)
        for more in ({}, {"tool_choice": "none"})
    )
    assert not sure.doubt and unsure.doubt and same(sure, unsure)
