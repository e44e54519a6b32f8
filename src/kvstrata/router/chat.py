"""A chat as the text that the engine tokenizes: the model's chat template, filled in as Hugging Face does.

What is rendered here is what the engine was seen to render in the same way (see `trials`). Anything else,
such as a template of the request's own, is the engine's `/tokenize` to answer.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from kvstrata.errors import ConfigError
from kvstrata.router.conversation import Chat, NotRenderedError, conversation

_BEFORE_MEDIA = ("\x11", "\x12")
_MARKS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class ChatTemplate:
    """A model's chat template.

    Args:
        source: in Jinja.
        marks: texts of the special tokens that the template may name, such as `bos_token`.

    Raises:
        ConfigError: the template cannot be compiled.
    """

    def __init__(self, source: str, marks: Mapping[str, str]) -> None:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(jinja2.ext.Extension):
            """`{% generation %}` marks what the model says; nothing is made of it here."""

            tags = {"generation"}  # noqa: RUF012 - as its base class declares it

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the model's chat template cannot be compiled: {error}") from None
        self._marks = dict(marks)

    @classmethod
    def load(cls, directory: Path) -> "ChatTemplate | None":
        """The template among a model's files; None where there is none, or several to choose from.

        Raises:
            ConfigError: a file cannot be read, or the template cannot be compiled.
        """
        try:
            config = json.loads((directory / "tokenizer_config.json").read_text())
            own = directory / "chat_template.jinja"
            source = own.read_text() if own.is_file() else config.get("chat_template")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the tokenizer's files in {directory} cannot be read: {error}"
            ) from None
        if not isinstance(source, str):
            return None
        marks = {name: _mark(config[name]) for name in _MARKS if config.get(name) is not None}
        return cls(source, marks)

    def render(self, chat: Chat) -> str:
        """The prompt of a chat completion.

        Raises:
            NotRenderedError: the engine may render this in another way, or would refuse it.
        """
        return self._fill(chat, conversation(chat))

    def render_start(self, chat: Chat) -> str:
        """What stands before the first part that is not text, such as an image; "" where nothing does.

        Raises:
            NotRenderedError: as for `render`.
        """
        # Where that part stands shows when something else is put right before it: twice, as the text may
        # have one of these letters by itself.
        mark, second = _BEFORE_MEDIA
        one = self._fill(chat, conversation(chat, before=mark))
        other = self._fill(chat, conversation(chat, before=second))
        at = one.find(mark)
        while at >= 0 and other[at : at + 1] != second:
            at = one.find(mark, at + 1)
        return one[:at] if at > 0 and one[:at] == other[:at] else ""

    def _fill(self, chat: Chat, messages: list[dict[str, Any]]) -> str:
        import jinja2

        try:
            return self._template.render(
                messages=messages,
                tools=chat.tools,
                documents=None,
                add_generation_prompt=chat.prompted,
                **self._marks,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise NotRenderedError(str(error)) from None


def _mark(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise NotRenderedError(message)
