"""Requests about decisions: `/v1/route/explain` and `/v1/route/decisions/ID`. Pure."""

import dataclasses
from urllib.parse import parse_qs

from kvstrata.router.asking import Asked, ask
from kvstrata.router.inbound import Request
from kvstrata.router.refusals import bad_request

EXPLAIN = "/v1/route/explain"
DECISIONS = "/v1/route/decisions/"


def asked_about(request: Request, identity: str, paths: frozenset[str]) -> Asked:
    """The request that `request`, a POST to `EXPLAIN`, asks about.

    Its path is what the query says as `path`; else it is guessed from the body.

    Args:
        request: with the body of the other.
        identity: for its decision.
        paths: that may be asked about.

    Raises:
        RefusedError: the body is none, or the path is none of `paths`.
    """
    asked = ask(request, identity)
    named = parse_qs(request.query.decode("latin-1")).get("path")
    if named is not None:
        path = named[-1]
        if path not in paths:
            known = ", ".join(sorted(paths))
            raise bad_request("invalid_path", f"path is {path!r:.200}; it may be {known}.")
    elif asked.fields.messages:
        path = "/v1/chat/completions"
    elif asked.fields.prompt:
        path = "/v1/completions"
    elif asked.fields.input:
        path = "/v1/responses"
    else:
        text = "The body has no messages, prompt or input: say which path it is for with ?path=."
        raise bad_request("invalid_path", text)
    return dataclasses.replace(asked, request=dataclasses.replace(request, path=path, query=b""))
