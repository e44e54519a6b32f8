"""Chats are rendered as Hugging Face's own function renders them."""

import json
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from kvstrata.errors import ConfigError
from kvstrata.router.chat import ChatTemplate
from kvstrata.router.conversation import Chat, NotRenderedError

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
STRICT = """{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}
    {% endgeneration %}{% else %}[INST] {{ message.content }} [/INST]{% endif %}
    {% if loop.index > 6 %}{% break %}{% endif %}
{% endfor %}"""
JSON = "{% for message in messages %}{{ message | tojson(indent=2) }}{{ strftime_now('%Y') }}{% endfor %}"
MARKS = {"bos_token": "<s>", "eos_token": "</s>"}

messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=30)}
    ),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("source", [CHATML, STRICT, JSON])
@given(chat=messages, prompted=st.booleans())
def test_a_chat_is_the_text_that_transformers_makes(source, chat, prompted) -> None:
    body = Chat(chat, prompted=prompted)
    ordered = [{"role": one["role"], "content": one["content"]} for one in chat]
    try:
        expected = render_jinja_template(
            [ordered], chat_template=source, add_generation_prompt=prompted, **MARKS
        )[0][0]
    except jinja2.TemplateError as error:
        with pytest.raises(NotRenderedError, match=str(error)):
            ChatTemplate(source, MARKS).render(body)
        return
    assert ChatTemplate(source, MARKS).render(body) == expected


def test_a_template_cannot_reach_out() -> None:
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(NotRenderedError):
        ChatTemplate(hostile, {}).render(Chat([{"role": "user", "content": "x"}]))


IMAGES = """{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content %}{% if part.type == 'image' %}<img>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{% endfor %}"""


@pytest.mark.parametrize(
    ("form", "start"), [("openai", "<|user|>é\x11<|user|>a"), ("string", "<|user|>é\x11<|user|>")]
)
def test_what_stands_before_an_image_is_known(form, start) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    talk = [
        {"role": "user", "content": "é\x11"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, image, image]},
        {"role": "user", "content": [image]},
    ]
    template = ChatTemplate(IMAGES, {})
    assert template.render_start(Chat(talk, form=form)) == start
    with pytest.raises(NotRenderedError):
        template.render(Chat(talk, form=form))
    with pytest.raises(NotRenderedError, match="was not tried"):
        template.render_start(Chat(talk))


def test_a_broken_template_is_named() -> None:
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate("{% if %}", {})


def test_the_template_is_found_among_the_models_files(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    config = {"chat_template": CHATML, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert "hello" in template.render(Chat([{"role": "user", "content": "hello"}]))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(Chat([{"role": "user", "content": "hello"}])) == "<s>hello"
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="tokenizer"):
        ChatTemplate.load(tmp_path)
