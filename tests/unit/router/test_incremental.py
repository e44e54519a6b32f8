"""Remembered beginnings change nothing but the time, for every family of tokenizer."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from kvstrata.router import incremental
from kvstrata.router.incremental import IncrementalTokenizer

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKS = ["<|start|>", "<|end|>", "<s>"]


def bytes_after(pattern: str):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITTERS = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": lambda: bytes_after(CL100K),
    "qwen": lambda: bytes_after(QWEN),
    "o200k": lambda: bytes_after(O200K),
    "unsplit": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "spaced": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    "metaspace": lambda: pre_tokenizers.Metaspace(prepend_scheme="first"),
}
TEXT_IS_CUT = {"gpt2", "llama3", "qwen", "o200k"}


def train(family: str) -> Tokenizer:
    """A small vocabulary that merges words, white space and newlines of our own sources."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=family == "metaspace"))
    tokenizer.pre_tokenizer = SPLITTERS[family]()
    source = sorted(Path(incremental.__file__).parents[1].rglob("*.py"))
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in source[:40]], trainer)
    if family == "spaced":
        tokenizer.normalizer = normalizers.Lowercase()
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=list(SPLITTERS))
def family(request) -> tuple[str, Tokenizer]:
    return request.param, train(request.param)


pieces = st.sampled_from(
    [
        *MARKS,
        *[
            "\n",
            "\n\n",
            " \n",
            "\na",
            "\nThe cat",
            "word ",
            " return",
            "x=1",
            "12345",
            "...",
            "é",
            "中文",
            "\U0001f600",
        ],
        *["\r\n", "\t", "  ", "'s", "I'LL", "\u0301", "ünï", ".\nI", "a\nb", ")\nX"],
    ]
)
texts = st.lists(pieces | st.text(max_size=3), max_size=40).map("".join)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_ids_are_those_of_the_whole_text(family, data) -> None:
    _, tokenizer = family
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incremental, "PIECE", data.draw(st.sampled_from([1, 7, 30])))
        remembering = IncrementalTokenizer(tokenizer, data.draw(st.sampled_from([40, 1 << 20])))
        said = ""
        for _ in range(data.draw(st.integers(1, 5))):
            said = said[: data.draw(st.integers(len(said) // 2, len(said)))] + data.draw(texts)
            for special in (True, False):
                expected = tokenizer.encode(said, add_special_tokens=special).ids
                assert remembering.encode(said, special=special).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(before=texts, after=texts, special=st.booleans())
def test_a_beginning_holds_whatever_follows(family, before, after, special) -> None:
    _, tokenizer = family
    made = IncrementalTokenizer(tokenizer)
    start = made.beginning(before, special=special).tolist()
    whole = tokenizer.encode(before + after, add_special_tokens=special).ids
    assert whole[: len(start)] == start


def test_a_beginning_reaches_to_the_last_mark(family) -> None:
    _, tokenizer = family
    text = conversation(3)
    start = IncrementalTokenizer(tokenizer).beginning(text + "<|start|>user\n", special=False)
    assert start.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def conversation(turns: int) -> str:
    question = "<|start|>user\nTell me more about the cache.\n<|end|>"
    turn = question + "<|start|>assistant\nIt holds blocks.\nMany.<|end|>"
    return "".join(turn.replace("Many", f"Many {number}") for number in range(turns))


def test_the_next_turn_is_the_only_new_text(family) -> None:
    _, tokenizer = family
    remembering = IncrementalTokenizer(tokenizer)
    long = conversation(200)
    remembering.encode(long)
    assert remembering.hits == 0
    remembering.encode(long + conversation(1))
    assert remembering.hits > len(long) - 2 * incremental.PIECE


def test_a_text_without_marks_is_cut_where_the_tokenizer_allows_it(family) -> None:
    name, tokenizer = family
    remembering = IncrementalTokenizer(tokenizer)
    document = "A line of a document.\nAnother one\n" * 1000
    remembering.encode(document)
    remembering.encode(document + "And a question.")
    assert (remembering.hits > 0) == (name in TEXT_IS_CUT)


def test_memory_is_bounded() -> None:
    remembering = IncrementalTokenizer(train("llama3"), capacity=10_000)
    for number in range(50):
        remembering.encode(f"Document {number}\n" + "And a line of it.\n" * 400)
    assert 0 < remembering._pieces.weight <= 10_000


def test_a_mark_that_takes_its_space_along_is_no_place_to_cut() -> None:
    tokenizer = train("spaced")
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    assert not IncrementalTokenizer(tokenizer).cuts_text


def test_marks_that_reach_into_each_other_are_no_place_to_cut() -> None:
    tokenizer = train("metaspace")
    tokenizer.add_special_tokens([AddedToken("<|end|><", special=True)])
    assert not IncrementalTokenizer(tokenizer).cuts_text
