"""Which headers go to an engine and which come back. Pure."""

from collections.abc import Iterable, Sequence

from kvstrata.router.config import ReplicaConfig

Headers = list[tuple[bytes, bytes]]
"""Lower-case names and values, in the order in which they came."""

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_OURS_TO_ENGINE = frozenset({b"host", b"content-length", b"expect", b"x-kvstrata-router"})
_OURS_TO_CLIENT = frozenset({b"content-length", b"x-kvstrata-decision", b"x-kvstrata-replica"})
_KEPT_ALWAYS = frozenset({b"authorization", b"content-type", b"host"})


def value_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of the header `name`, which is in lower case."""
    for one, value in headers:
        if one == name:
            return value
    return None


def _named_by_connection(headers: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that are meant for the next hop only, because `connection` says so.

    A client must not have the router strip what guards an engine, so those are never in it.
    """
    named: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            named.update(one.strip().lower() for one in value.split(b","))
    return frozenset(named - _KEPT_ALWAYS)


def to_engine(
    headers: Sequence[tuple[bytes, bytes]],
    replica: ReplicaConfig,
    router_id: bytes,
    *,
    keep_authorization: bool,
) -> bytes:
    """The header lines for an engine, each ended, without the body's length and the blank line.

    Args:
        headers: as the client sent them.
        replica: where they go.
        router_id: lets a router recognise a request that comes back to itself.
        keep_authorization: whether the client's own key goes to the engine; a replica's own key
            always takes its place.
    """
    dropped = _HOP_BY_HOP | _OURS_TO_ENGINE | _named_by_connection(headers)
    if replica.api_key is not None or not keep_authorization:
        dropped |= {b"authorization"}
    lines = [b"host: " + replica.authority.encode(), b"x-kvstrata-router: " + router_id]
    lines += [b"%b: %b" % pair for pair in headers if pair[0] not in dropped]
    if replica.api_key is not None:
        lines.append(b"authorization: Bearer " + replica.api_key.encode())
    return joined(lines)


def joined(lines: list[bytes]) -> bytes:
    """Header lines, each ended.

    Raises:
        ValueError: a value would end its line early. The parser lets no such value through; this
            makes sure that nothing else brings one in.
    """
    text = b"\r\n".join(lines)
    ends = len(lines) - 1
    if text.count(b"\n") != ends or text.count(b"\r") != ends or b"\0" in text:
        raise ValueError("a header's value contains a line's end")
    return text + b"\r\n"


def to_client(
    headers: Sequence[tuple[bytes, bytes]], decision: bytes, replica: bytes
) -> list[bytes]:
    """The header lines of an engine's answer for the client, without those that frame the body."""
    dropped = _HOP_BY_HOP | _OURS_TO_CLIENT | _named_by_connection(headers)
    lines = [b"%b: %b" % pair for pair in headers if pair[0] not in dropped]
    lines.append(b"x-kvstrata-decision: " + decision)
    lines.append(b"x-kvstrata-replica: " + replica)
    return lines
