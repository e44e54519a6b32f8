"""Answers of the router's own that are errors, in the shape of OpenAI's API."""

from dataclasses import dataclass

import msgspec


@dataclass(eq=False)
class RefusedError(Exception):
    """A request that gets an error as its answer, from the router and not from an engine.

    Attributes:
        status: HTTP status.
        code: a word for programs, such as `queue_full`.
        message: a sentence or two for people: what is wrong, and what to do.
        kind: OpenAI's `type` of the error.
        retry_after: seconds, whole, for the header of that name; 0 leaves it out.
        param: the parameter at fault, if there is one.
        close: whether the connection cannot be used further.
        allow: methods, for the header of that name; empty leaves it out.
    """

    status: int
    code: str
    message: str
    kind: str = "invalid_request_error"
    retry_after: int = 0
    param: str | None = None
    close: bool = False
    allow: str = ""

    def body(self) -> bytes:
        """The JSON that a client gets."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers besides the length."""
        found = [(b"content-type", b"application/json")]
        if self.retry_after:
            found.append((b"retry-after", b"%d" % self.retry_after))
        if self.allow:
            found.append((b"allow", self.allow.encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def bad_request(code: str, message: str, *, close: bool = False) -> RefusedError:
    """400: the client has to change something."""
    return RefusedError(400, code, message, close=close)


def too_large(limit: int) -> RefusedError:
    """413: a body of more than `limit` bytes."""
    return RefusedError(
        413,
        "body_too_large",
        f"The body is larger than {limit} bytes, the router's max_body. Shorten the request, or let "
        "the operator raise the limit.",
        close=True,
    )


def unavailable(code: str, message: str, retry_after: int) -> RefusedError:
    """503: nothing wrong with the request; it may be sent again later."""
    return RefusedError(503, code, message, kind="service_unavailable", retry_after=retry_after)


def engine_failed(name: str, why: str) -> RefusedError:
    """502: a replica took the request and gave no whole answer."""
    return RefusedError(
        502,
        "replica_failed",
        f"Replica {name} {why}, and no other one took the request. It was not answered; send it again.",
        kind="server_error",
        retry_after=1,
    )


def broken_stream(name: str, why: str) -> bytes:
    """A server-sent event that ends a stream whose replica failed half way."""
    refusal = RefusedError(
        502,
        "replica_failed_mid_stream",
        f"Replica {name} {why} while it was answering. What came before this is incomplete.",
        kind="server_error",
    )
    return b"\n\ndata: " + refusal.body() + b"\n\n"
