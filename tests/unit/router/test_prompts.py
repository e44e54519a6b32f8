"""Which token ids a request's body stands for."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from kvstrata.router.chat import ChatTemplate
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.prompts import PromptReader, read_body


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


def completion(reader: PromptReader, **body):
    return reader.completion(read_body(json.dumps(body).encode()))


def chat(reader: PromptReader, **body):
    return reader.chat(read_body(json.dumps(body).encode()), body)


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
        ({"prompt": "a", "prompt_embeds": "AAAA"}, "embeddings"),
    ],
)
def test_what_is_not_known_is_said(reader: PromptReader, body, why) -> None:
    found = completion(reader, **body)
    assert found.tokens is None and why in found.doubt


def test_a_chat_with_an_image_is_not_guessed(reader: PromptReader) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    found = chat(reader, messages=[{"role": "user", "content": image}])
    assert found.tokens is None and "not rendered" in found.doubt


def test_without_files_only_ids_are_known() -> None:
    bare = PromptReader()
    assert completion(bare, prompt=[1]).tokens is not None
    assert "tokenizer" in completion(bare, prompt="a").doubt
    assert "template" in chat(bare, messages=[{"role": "user", "content": "a"}]).doubt


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"model": 1}', b'{"stream": "yes"}', b"\xff"])
def test_another_body_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read_body(data)
