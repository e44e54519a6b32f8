"""Who may ask for what. Pure."""

import hashlib
import hmac
from collections.abc import Sequence

from kvstrata.router.config import is_loopback
from kvstrata.router.headers import value_of
from kvstrata.router.inbound import Request
from kvstrata.router.refusals import RefusedError


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _shown(request: Request) -> bytes:
    """The bearer token of a request, or nothing."""
    value = value_of(request.headers, b"authorization") or b""
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def check_key(request: Request, keys: Sequence[str]) -> None:
    """Raises RefusedError (401) unless the request shows one of `keys`; without any, all may pass."""
    if not keys:
        return
    shown = _digest(_shown(request))
    # Every key is compared, whichever fits: the time taken says nothing about them.
    if not sum([hmac.compare_digest(shown, _digest(key.encode())) for key in keys]):
        raise RefusedError(
            401,
            "invalid_api_key",
            "The router wants one of its keys: send 'authorization: Bearer KEY'.",
            kind="authentication_error",
        )


def check_admin(request: Request, key: str | None) -> None:
    """Raises RefusedError unless the request may use the admin API.

    With a `key` it has to show it. Without one it has to come from this machine, and not from a web
    page that is open there.
    """
    if key is not None:
        check_key(request, [key])
        return
    from_page = any(
        value_of(request.headers, name) is not None for name in (b"origin", b"sec-fetch-site")
    )
    if from_page or not is_loopback(request.peer):
        raise RefusedError(
            403,
            "admin_forbidden",
            "The admin API has no key, so it is open to programs on the router's machine only; "
            "set admin_key to use it from here.",
            kind="permission_error",
        )
