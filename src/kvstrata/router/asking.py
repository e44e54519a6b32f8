"""What the router reads of a request's body. The rest stays as it is, unparsed."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from kvstrata.router import ids as token_ids
from kvstrata.router.headers import value_of
from kvstrata.router.refusals import bad_request

if TYPE_CHECKING:
    from kvstrata.router.inbound import Request  # the web stack comes with it

_ABSENT = msgspec.Raw(b"")
_FALSY = frozenset({b"", b"null", b"false", b"0", b'""', b"[]", b"{}"})
_LONG = 1 << 14
"""Bytes of a body in which an array of token ids is looked for before all else."""
_HEAD = 1 << 12
"""Bytes at its beginning in which it is looked for: clients put it before what they add."""
_KEYS = (b'"prompt"', b'"input"')
_ARRAY = re.compile(rb"\s*:\s*(?:\[\s*)?\[")
_TAKEN = b"[0.%d]" % secrets.randbits(100)
"""Stands where token ids were; no client can know it."""
_ALL_TAKEN = re.compile(rb"(?:\[\s*)?%b(?:\s*\])?" % re.escape(_TAKEN))


class Fields(msgspec.Struct, frozen=True):
    """The parts of a body that matter to where it goes, read once.

    `msgspec.Raw` parts are JSON text, checked and not parsed; empty when they are not there. All that is
    not for the router to judge is left so, or of any type.
    """

    model: str | None = None
    stream: Any = None
    prompt: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    user: Any = None
    kv_transfer_params: Any = None
    # What else decides which token ids the engine reads, and how it hashes them.
    cache_salt: Any = None
    add_special_tokens: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None
    echo: Any = None
    truncation: Any = None
    tools: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    tool_choice: msgspec.Raw = _ABSENT
    logprobs: msgspec.Raw = _ABSENT
    prompt_logprobs: msgspec.Raw = _ABSENT
    prompt_embeds: msgspec.Raw = _ABSENT
    suffix: msgspec.Raw = _ABSENT
    truncate_prompt_tokens: msgspec.Raw = _ABSENT
    previous_response_id: msgspec.Raw = _ABSENT
    previous_input_messages: msgspec.Raw = _ABSENT
    chat_template: msgspec.Raw = _ABSENT
    chat_template_kwargs: msgspec.Raw = _ABSENT
    documents: msgspec.Raw = _ABSENT
    reasoning: msgspec.Raw = _ABSENT
    reasoning_effort: msgspec.Raw = _ABSENT

    def gives(self, *names: str) -> str:
        """The first of some raw parts that is there and not empty; "" where none is."""
        return next((name for name in names if bytes(getattr(self, name)) not in _FALSY), "")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an engine, as far as the router understands it.

    Attributes:
        id: of the request and of its decision.
        request: as it came.
        fields: of its body.
        session: names the conversation or the user, if something does.
        ids: uint32 (n,), a long array of token ids out of `prompt` or `input`, which then is not in
            `fields`; None where there is none, or it was not taken out.
    """

    id: str
    request: "Request"
    fields: Fields
    session: str | None
    ids: token_ids.Tokens | None = None


_fields = msgspec.json.Decoder(Fields)
_EMPTY = re.compile(rb"\s*\{\s*\}\s*")


def ask(request: "Request", identity: str) -> Asked:
    """Read `request`.

    Raises:
        RefusedError: its body is no JSON object in UTF-8, or its model is not text.
    """
    coding = value_of(request.headers, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise bad_request("content_encoding", "Send the body without a content-encoding.")
    try:
        fields, taken = _read(request.body)
    except UnicodeDecodeError as error:
        raise bad_request(
            "invalid_utf8", f"The body is not UTF-8 text: byte {error.start} is wrong."
        ) from None
    except msgspec.ValidationError as error:
        raise bad_request("invalid_body", f"The body does not fit: {error}.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request("invalid_json", f"The body is not valid JSON: {error}.") from None
    return Asked(identity, request, fields, _session(request, fields), taken)


def read_fields(body: bytes) -> Fields:
    """The fields of a body.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        msgspec.DecodeError: it is no JSON object, or one of the fields has another type.
        RecursionError: it is nested too deeply.
    """
    if not body.isascii():
        body.decode()  # the parser looks only into the strings that are asked for
    return _fields.decode(body)


def _read(body: bytes) -> tuple[Fields, token_ids.Tokens | None]:
    """The fields, and a long array of token ids that is taken out before the rest is parsed."""
    for shorter, taken in _without_ids(body):
        try:
            fields = read_fields(shorter)
        except (ValueError, RecursionError):
            break  # what is wrong is said of the body as it came
        if any(_ALL_TAKEN.fullmatch(bytes(raw)) for raw in (fields.prompt, fields.input)):
            return fields, taken
    return read_fields(body), None


def _without_ids(body: bytes) -> Iterator[tuple[bytes, token_ids.Tokens]]:
    """The body with an array of token ids replaced, and those ids: at most once for each key.

    In valid JSON, an unescaped `"prompt"` before a colon is a key: inside a string its quote would be
    escaped, and behind one it would be out of place. So the shorter text is JSON exactly if the whole is,
    as the array was read as strictly as a parser does. Whether the key is the body's own, and its last of
    this name, only the parser can tell; so the replacement is something that nobody else can write.
    """
    if len(body) < _LONG or not token_ids.ready():
        return
    for key in _KEYS:
        at = body.find(key, 0, _HEAD)
        if at > 0 and body[at - 1 : at] != b"\\":
            match = _ARRAY.match(body, at + len(key))
            found = match and token_ids.find_ids(body, match.end())
            if match and found:
                yield body[: match.end() - 1] + _TAKEN + body[found[1] :], found[0]


def _session(request: "Request", fields: Fields) -> str | None:
    header = value_of(request.headers, b"x-session-id")
    if header:
        return header.decode("latin-1")
    for one in (fields.prompt_cache_key, fields.safety_identifier, fields.user):
        if isinstance(one, str) and one:
            return one
    return None


def with_load_cap(asked: Asked, cap: int) -> bytes:
    """The body with `kv_transfer_params.max_load_tokens` set to `cap` tokens."""
    body = asked.request.body
    if b'"kv_transfer_params"' not in body and not _EMPTY.fullmatch(body):
        # Written in front, so that a body of a megabyte need not be parsed.
        start = body.index(b"{") + 1
        added = b'"kv_transfer_params":{"max_load_tokens":%d},' % cap
        return body[:start] + added + body[start:]
    whole = msgspec.json.decode(body)
    params = whole.get("kv_transfer_params")
    whole["kv_transfer_params"] = {
        **(params if isinstance(params, dict) else {}),
        "max_load_tokens": cap,
    }
    return msgspec.json.encode(whole)
