"""Where an engine's events are, from what its metrics say. Pure."""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from kvstrata.errors import ConfigError
from kvstrata.fleet.replica import Address

METRICS = ("vllm:kvstrata_endpoints", "vllm:kvstrata_info")
"""Metrics whose labels `events` and `snapshots` name the endpoints; value 1 while it holds. The first tells
them as configured, the second, after the engine's first step, as they are."""
_ANYWHERE = ("*", "0.0.0.0", "[::]", "::")


def discover(name: str, url: str, infos: Iterable[Mapping[str, str]]) -> Address:
    """The address of the engine at `url`.

    Args:
        name: for the replica.
        url: of its API.
        infos: labels of the samples of `METRICS` whose value is 1, in that order, of all ranks.

    Raises:
        ConfigError: the engine does not say where its events are.
    """
    ranks: dict[str, tuple[str, str | None]] = {}
    for labels in infos:
        if labels.get("events"):
            snapshots = labels.get("snapshots")
            ranks[labels.get("engine", "0")] = (
                reachable(labels["events"], url),
                reachable(snapshots, url) if snapshots else None,
            )
    if not ranks:
        raise ConfigError(
            f"{url} does not say where its KV events are: run it with the kvstrata connector and "
            f"--kv-events-config, or give --replica NAME=EVENTS,REPLAY with its endpoints"
        )
    ordered = sorted(ranks, key=lambda rank: (len(rank), rank))
    return Address(name, tuple(ranks[rank] for rank in ordered), url)


def reachable(endpoint: str, url: str) -> str:
    """An endpoint as the engine binds it, turned into one to connect to: on the host of its API."""
    scheme, _, rest = endpoint.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not colon or host not in _ANYWHERE:
        return endpoint
    there = urlsplit(url).hostname or "127.0.0.1"
    return f"tcp://[{there}]:{port}" if ":" in there else f"tcp://{there}:{port}"
