"""An engine's answers decide what of a model's files is believed; the engine's own template is the oracle."""

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.utils.chat_template_utils import render_jinja_template

from kvstrata.router.chat import ChatTemplate
from kvstrata.router.conversation import Form
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.prompts import NOTHING, Believed, PromptReader
from kvstrata.router.trials import QUESTIONS, common, judge, question

TEXTS = """{% for m in messages %}[{{ m.role }}] {{ m.content }}{% for c in m.tool_calls or [] %}
{{- c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}
{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[answer]{% endif %}"""
PARTS = TEXTS.replace(
    "{{ m.content }}",
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}<{{ p.text }}>{% endfor %}"
    "{% endif %}",
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEXTS
)
Answer = np.ndarray[Any, Any] | None


def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def reader(source: str | None = TEXTS) -> PromptReader:
    template = None if source is None else ChatTemplate(source, {})
    return PromptReader(IncrementalTokenizer(tokenizer()), template)


def engine(source: str | None, form: Form = "string") -> Callable[[dict[str, Any]], Answer]:
    """Answers as an engine with this template and form would; `transformers` renders."""

    def contents(message: dict[str, Any]) -> dict[str, Any]:
        made = json.loads(json.dumps(message))
        given = made["content"]
        parts = (
            given if isinstance(given, list) else [{"type": "text", "text": given}] if given else []
        )
        whole = form == "openai" and made["role"] != "tool"
        made["content"] = parts if whole else "\n".join(part["text"] for part in parts)
        for call in made.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return made

    def answer(asked: dict[str, Any]) -> Answer:
        if "prompt" in asked:
            text = asked["prompt"]
        elif source is None:
            return None
        else:
            tools = asked.get("tools")
            if tools:
                empty = {"name": "", "description": None, "parameters": None}
                tools = [
                    {"type": "function", "function": {**empty, **t["function"]}} for t in tools
                ]
            try:
                text = render_jinja_template(
                    [[contents(one) for one in asked["messages"]]],
                    chat_template=source,
                    tools=tools,
                    add_generation_prompt=True,
                )[0][0]
            except jinja2.TemplateError:
                return None
        return np.array(tokenizer().encode(text).ids, np.uint32)

    return answer


def answers(of: Callable[[dict[str, Any]], Answer]) -> list[Answer]:
    return [of(json.loads(question(number, "m"))) for number in range(len(QUESTIONS))]


@pytest.mark.parametrize(
    ("files", "source", "form", "expected"),
    [
        (TEXTS, TEXTS, "string", Believed(form="string", calls=True)),
        (PARTS, PARTS, "openai", Believed(form="openai", calls=True)),
        (PARTS, PARTS, "string", Believed(form="string", calls=True)),
        (NO_SYSTEM, NO_SYSTEM, "string", Believed(form="string", calls=True)),
        (
            TEXTS,
            TEXTS.replace("tools | tojson", "tools | length"),
            "string",
            Believed(form="string"),
        ),
        (TEXTS, TEXTS.replace("[answer]", "[think]"), "string", Believed(chat=False)),
        (TEXTS, NO_SYSTEM, "string", Believed(chat=False)),
        (NO_SYSTEM, TEXTS, "string", Believed(chat=False)),
        (TEXTS, None, "string", Believed(chat=False)),
        (None, TEXTS, "string", Believed(chat=False)),
    ],
)
def test_what_comes_out_alike_is_believed(files, source, form, expected) -> None:
    assert judge(reader(files), answers(engine(source, form))) == expected


def test_parts_that_come_out_otherwise_leave_plain_chats() -> None:
    told = answers(engine(TEXTS))
    told[3] = np.array([1], np.uint32)
    assert judge(reader(), told) == Believed()


def test_another_tokenizer_is_not_believed_in_anything() -> None:
    told = answers(engine(TEXTS))
    assert told[0] is not None
    told[0] = told[0] + 1
    assert judge(reader(), told) == NOTHING


def test_a_verdict_for_all_promises_no_more_than_each() -> None:
    forms: tuple[Form, ...] = ("", "string", "openai")
    every = [
        Believed(text, chat, calls, form)
        for text, chat, calls, form in product((True, False), (True, False), (True, False), forms)
    ]
    for one, other in product(every, every):
        both = common([one, other])
        for each in (one, other):
            assert both.text <= each.text and both.chat <= each.chat and both.calls <= each.calls
            assert both.form in ("", each.form)
    assert all(common([one]) == one == common([one, one]) for one in every)
