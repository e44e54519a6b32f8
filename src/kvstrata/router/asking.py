"""What the router reads of a request's body. The rest stays as it is, unparsed."""

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from kvstrata.router.headers import value_of
from kvstrata.router.inbound import Request
from kvstrata.router.refusals import bad_request

_ABSENT = msgspec.Raw(b"")


class Fields(msgspec.Struct, frozen=True):
    """The parts of a body that matter to where it goes.

    `msgspec.Raw` parts are JSON text, checked and not parsed; empty when they are not there.
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


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an engine, as far as the router understands it.

    Attributes:
        id: of the request and of its decision.
        request: as it came.
        fields: of its body.
        session: names the conversation or the user, if something does.
    """

    id: str
    request: Request
    fields: Fields
    session: str | None


_fields = msgspec.json.Decoder(Fields)
_EMPTY = re.compile(rb"\s*\{\s*\}\s*")


def ask(request: Request, identity: str) -> Asked:
    """Read `request`.

    Raises:
        RefusedError: its body is no JSON object in UTF-8, or its model is not text.
    """
    coding = value_of(request.headers, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise bad_request("content_encoding", "Send the body without a content-encoding.")
    try:
        request.body.decode()  # the parser looks only into the strings that are asked for
        fields = _fields.decode(request.body)
    except UnicodeDecodeError as error:
        raise bad_request(
            "invalid_utf8", f"The body is not UTF-8 text: byte {error.start} is wrong."
        ) from None
    except msgspec.ValidationError as error:
        raise bad_request("invalid_body", f"The body does not fit: {error}.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request("invalid_json", f"The body is not valid JSON: {error}.") from None
    return Asked(identity, request, fields, _session(request, fields))


def _session(request: Request, fields: Fields) -> str | None:
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
