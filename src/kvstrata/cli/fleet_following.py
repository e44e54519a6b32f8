"""What the commands of `kvstrata fleet` do."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.live import Live

from kvstrata.chunks.block_hashes import low_bits
from kvstrata.cli import console, fleet_view
from kvstrata.cli.fleet_places import addresses
from kvstrata.cli.prompt_tokens import Tokens
from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet, warm
from kvstrata.fleet.hashing import Recipe
from kvstrata.fleet.membership import held_of
from kvstrata.fleet.replica import Rank
from kvstrata.routing.reuse import explain as explained
from kvstrata.routing.reuse import find_reuse
from kvstrata.routing.shape import Holdings, ModelShape

REFRESH_SECONDS = 0.5
__all__ = ["all_synced", "explanations", "following", "settle", "show"]


@contextmanager
def following(replicas: Sequence[str], urls: Sequence[str], topic: str) -> Iterator[Fleet]:
    """A fleet that follows what was named; see `addresses`."""
    warm()
    followed = Fleet()
    try:
        for address in addresses(replicas, urls, topic):
            followed.add(address)
        yield followed
    finally:
        followed.stop()


def settle(followed: Fleet, seconds: float) -> None:
    """Follow until all are caught up with, at most so long."""
    deadline = time.monotonic() + seconds
    while not followed.settled and time.monotonic() < deadline:
        followed.poll(0.05)


def all_synced(followed: Fleet) -> bool:
    """Whether every replica can be believed."""
    return all(followed.trust(one.name)[0] is Trust.SYNCED for one in followed.replicas)


def show(followed: Fleet, seconds: float | None) -> None:
    """A live view, until so many seconds have passed or Ctrl-C."""
    rates = fleet_view.Rates()
    end = float("inf") if seconds is None else time.monotonic() + seconds
    followed.start()
    told = followed.as_dict()
    try:
        with Live(fleet_view.fleet(told), console=console.out(), auto_refresh=False) as live:
            while time.monotonic() < end:
                told = followed.as_dict()
                now = time.monotonic()
                live.update(fleet_view.fleet(told, rates.of(told, now)), refresh=True)
                time.sleep(max(min(REFRESH_SECONDS, end - now), 0.0))
    except KeyboardInterrupt:
        pass  # the way to end it


def explanations(followed: Fleet, tokens: Tokens, salt: str | None) -> list[dict[str, Any]]:
    """What each rank could reuse of a prompt, as plain data."""
    return [
        _explain(followed, rank, tokens, salt) for one in followed.replicas for rank in one.ranks
    ]


def _explain(followed: Fleet, rank: Rank, tokens: Tokens, salt: str | None) -> dict[str, Any]:
    status = followed.status(rank)
    told = {"replica": rank.feed.name, "trust": status.trust.value, "reason": status.reason}
    facts = rank.facts
    if facts is None:
        return {**told, "unknown": rank.ignorance or status.reason}
    notes = [status.reason] if status.reason else []
    recipe = Recipe.of(facts)
    if not facts.hash_algorithm:
        recipe = Recipe.default(facts.hash_tokens)
        notes.append("how it makes block hashes was not seen; vLLM's default is assumed")
    hashes = low_bits(recipe.hasher().hashes(tokens, salt=salt))
    try:
        shape = ModelShape.of(facts)
    except ValueError as error:
        return {**told, "unknown": str(error)}
    with followed.reading() as index:
        held = held_of(index, rank.number, hashes)
    found = find_reuse(shape, hashes, len(tokens), Holdings.of(held))
    return {**told, "notes": notes, "reuse": explained(found)}
