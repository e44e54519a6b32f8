"""A chat as the text that the engine tokenizes: the model's chat template, filled in as Hugging Face does.

Only what is surely rendered by the engine in the same way is rendered here: messages whose content is text.
Anything else (images, tool calls, a template of the request's own) is the engine's `/tokenize` to answer.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from kvstrata.errors import ConfigError

_PLAIN = frozenset({"role", "content", "name"})
_ROLES = frozenset({"system", "developer", "user", "assistant"})
_OWN_TEMPLATE = ("chat_template", "chat_template_kwargs", "documents", "reasoning_effort")
_MARKS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class NotRenderedError(ValueError):
    """This chat cannot be rendered here; the message says why."""


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

    def render(self, body: Mapping[str, Any]) -> str:
        """The prompt of a chat completion.

        Args:
            body: of the request, as in OpenAI's API with vLLM's additions.

        Raises:
            NotRenderedError: the engine may render this in another way, or would refuse it.
        """
        import jinja2

        for name in _OWN_TEMPLATE:
            if body.get(name):
                raise NotRenderedError(f"the request has its own {name}")
        if body.get("tools") or body.get("continue_final_message"):
            raise NotRenderedError("the request has tools, or continues its last message")
        try:
            return self._template.render(
                messages=[_plain(message) for message in _messages(body)],
                tools=None,
                documents=None,
                add_generation_prompt=body.get("add_generation_prompt", True) is not False,
                **self._marks,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise NotRenderedError(str(error)) from None


def _messages(body: Mapping[str, Any]) -> Sequence[Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise NotRenderedError("messages is no list of messages")
    return messages


def _plain(message: Any) -> dict[str, str]:
    """A message of text alone, as a template gets it."""
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise NotRenderedError("a message is of another role")
    given = {key: value for key, value in message.items() if value is not None}
    if not given.keys() <= _PLAIN or not all(isinstance(value, str) for value in given.values()):
        raise NotRenderedError("a message has more than text")
    if "content" not in given:
        raise NotRenderedError("a message has no text")
    return given


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
