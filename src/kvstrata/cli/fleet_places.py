"""Where the replicas of a `kvstrata fleet` command are."""

from collections.abc import Sequence

from kvstrata.cli.scrape import fetch_metrics
from kvstrata.errors import ConfigError
from kvstrata.fleet.discovery import discover, infos
from kvstrata.fleet.replica import Address


def addresses(replicas: Sequence[str], urls: Sequence[str], topic: str) -> list[Address]:
    """All that were named.

    Args:
        replicas: `NAME=EVENTS[,REPLAY]`; of one name, one for each data-parallel rank in order.
        urls: of engines that say themselves where their events are.
        topic: of the events of `replicas`.

    Raises:
        ConfigError: one that cannot be understood or found, or none at all.
    """
    ranks: dict[str, list[tuple[str, str | None]]] = {}
    for text in replicas:
        name, equals, where = text.partition("=")
        events, _, replay = where.partition(",")
        if not (name and equals and events):
            raise ConfigError(
                f"--replica takes NAME=EVENTS[,REPLAY], such as "
                f"a=tcp://127.0.0.1:5557,tcp://127.0.0.1:5558; got {text!r}"
            )
        ranks.setdefault(name, []).append((events, replay or None))
    found = [Address(name, tuple(ends), topic=topic) for name, ends in ranks.items()]
    for url in urls:
        found.append(discover(url.partition("://")[2] or url, url, infos(fetch_metrics(url))))
    if not found:
        raise ConfigError("name at least one engine: --replica NAME=EVENTS[,REPLAY] or --url URL")
    return found
