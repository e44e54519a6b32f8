"""Who may ask for what. Pure."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence

from kvstrata.router.config import is_loopback
from kvstrata.router.headers import value_of
from kvstrata.router.inbound import Request
from kvstrata.router.refusals import RefusedError

_PORT = re.compile(r":[0-9]*$")


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

    With a `key` it has to show it. Without one it has to come from this machine. A web page that is open
    there comes from this machine too: the router's own may read, and no other may do anything.
    """
    if key is not None:
        check_key(request, [key])
        return
    if not is_loopback(request.peer) or not _from_no_other_page(request):
        raise RefusedError(
            403,
            "admin_forbidden",
            "The admin API has no key, so it is open to programs on the router's machine only; "
            "set admin_key to use it from here.",
            kind="permission_error",
        )


def _from_no_other_page(request: Request) -> bool:
    """Whether no browser sent it, or one did for the router's own page, which reads.

    A page whose name was made to point to this machine looks to its browser as if it were ours, and sends
    neither `origin` nor `sec-fetch-site`: only the name tells, and names of pages elsewhere have dots.
    """
    if not _is_near(value_of(request.headers, b"host") or b""):
        return False
    if value_of(request.headers, b"origin") is not None:
        return False
    site = value_of(request.headers, b"sec-fetch-site")
    return site is None or (request.method == "GET" and site == b"same-origin")


def _is_near(host: bytes) -> bool:
    """Whether a Host header is an address, or a name that nobody elsewhere can own."""
    name = _PORT.sub("", host.decode("latin-1").lower())
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
