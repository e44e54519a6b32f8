"""Where an engine's events are, from what its metrics say. Pure."""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from kvstrata.errors import ConfigError
from kvstrata.fleet.exposition import samples
from kvstrata.fleet.replica import Address

METRICS = ("vllm:kvstrata_endpoints", "vllm:kvstrata_info")
"""Metrics whose labels `events` and `snapshots` name the endpoints; value 1 while it holds. The first tells
them as configured, the second, after the engine's first step, as they are."""
_ANYWHERE = ("*", "0.0.0.0", "[::]", "::")


def infos(metrics: str) -> list[Mapping[str, str]]:
    """Labels of the samples of `METRICS` that hold, in their order, from an engine's whole metrics."""
    told = [one for one in samples(metrics) if one.name in METRICS and one.value]
    return [one.labels for name in METRICS for one in told if one.name == name]


def discover(name: str, url: str, told: Iterable[Mapping[str, str]]) -> Address:
    """The address of the engine at `url`.

    Args:
        name: for the replica.
        url: of its API.
        told: see `infos`; of all data-parallel ranks.

    Raises:
        ConfigError: the engine does not say where its events are.
    """
    ranks: dict[str, tuple[str, str | None]] = {}
    for labels in told:
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
