"""A replica: one engine as a router sees it, and what is known of it besides its blocks.

An engine with data-parallel ranks has a cache for each of them, and each publishes by itself. So a replica
has one `Rank` or more; each is a holder of its own in the index.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kvstrata.errors import ConfigError
from kvstrata.events.connection import Feed
from kvstrata.fleet.findings import Finding
from kvstrata.fleet.hashing import Recipe, find_recipe
from kvstrata.fleet.learned import Learned
from kvstrata.wire.batches import Batch, Stored
from kvstrata.wire.samples import first_block
from kvstrata.wire.snapshot import EngineFacts

LOOKED_AT = 64
"""First batches of a life that are looked at for what they tell, and then every so many."""
SAMPLES = 3
"""First blocks of a life that are hashed anew at the first opportunity."""
SAMPLED = 4096
"""Batches after which another one is; a multiple of `LOOKED_AT`."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica is.

    Attributes:
        name: unique in the fleet.
        events: for each data-parallel rank the addresses of its events and of its replays, or None.
        url: of its API, or "".
        topic: of its events.

    Raises:
        ConfigError: no rank, or an address that nobody can connect to.
    """

    name: str
    events: tuple[tuple[str, str | None], ...]
    url: str = ""
    topic: str = ""

    def __post_init__(self) -> None:
        if not self.events:
            raise ConfigError(f"{self.name}: there is no address for its events")
        self.feeds()

    def feeds(self) -> tuple[Feed, ...]:
        """What is to be followed; a rank beyond the first has its number behind the name."""
        return tuple(
            Feed(f"{self.name}/{rank}" if rank else self.name, events, replay, self.topic)
            for rank, (events, replay) in enumerate(self.events)
        )


@dataclass(eq=False, slots=True)
class Rank:
    """One data-parallel rank.

    Attributes:
        feed: where it publishes.
        number: that stands for it in the index.
        told: what the engine said of itself, or None.
        recipe: of its block hashes, as its own events show it; None while not seen.
        sampled: first blocks whose hash was computed anew.
        unlike: of those, how many came out otherwise.
    """

    feed: Feed
    number: int
    told: EngineFacts | None = None
    recipe: Recipe | None = None
    sampled: int = 0
    unlike: int = 0
    _learned: Learned = field(default_factory=Learned)
    _batches: int = 0
    _looks: int = 0
    _facts: tuple[int, EngineFacts | None] = (-1, None)

    @property
    def facts(self) -> EngineFacts | None:
        """What the engine told, or else what its events tell; None while that is not enough."""
        if self.told is not None:
            return self.told
        # Every request asks, and from another thread than the one that looks: what was made of a batch
        # that came meanwhile bears an earlier number, and is made again.
        looks, (made, facts) = self._looks, self._facts
        if made != looks:
            facts = self._learned.facts(self.recipe)[0]
            self._facts = looks, facts
        return facts

    @property
    def ignorance(self) -> str:
        """Why there are no facts; empty when there are."""
        return "" if self.told else self._learned.facts(self.recipe)[1]

    def restarted(self) -> None:
        """The engine began another life, maybe with other settings."""
        self.told = self.recipe = None
        self.sampled = self.unlike = self._batches = 0
        self._learned = Learned()
        self._looks += 1

    def look(self, batch: Batch, payload: bytes, known: Iterable[Recipe]) -> None:
        """Learn from a batch, if it is its turn.

        Args:
            batch: applied just now.
            payload: what it was read from.
            known: recipes of the rest of the fleet.
        """
        self._batches += 1
        # Events become objects only here: most batches are passed over.
        if self._batches > LOOKED_AT and self._batches % LOOKED_AT:
            return
        if self.told is None:
            self._learned.look(batch)
        due = self.sampled < SAMPLES or self._batches % SAMPLED == 0
        if due and _begins_a_prompt(batch):
            self._sample(payload, known)
        self._looks += 1

    def findings(self) -> Iterable[Finding]:
        """What this rank alone shows to be wrong."""
        name = self.feed.name
        if self.unlike:
            told = (
                f"is not the {self.told.hash_algorithm} that it tells"
                if self.told
                else (
                    "is none of vLLM's with a known beginning: run it with --prefix-caching-hash-algo "
                    "sha256 and PYTHONHASHSEED as the other replicas, or with the kvstrata connector"
                )
            )
            yield Finding(
                "hash-unlike",
                name,
                f"{self.unlike} of {self.sampled} block hashes looked at were made otherwise than can be "
                f"computed: its hash {told}",
            )
        if self._batches and self.ignorance:
            yield Finding("groups-unknown", name, self.ignorance)

    def _sample(self, payload: bytes, known: Iterable[Recipe]) -> None:
        sample = first_block(payload)
        if sample is None:
            return
        self.sampled += 1
        own = Recipe.of(self.told) if self.told else self.recipe
        if own is None or not own.makes(sample):
            found = find_recipe(sample, known)
            self.unlike += found is None or self.told is not None
            own = found or own
        self.recipe = own


@dataclass(eq=False, slots=True)
class Replica:
    """One engine.

    Attributes:
        address: where it is.
        ranks: its data-parallel ranks, in order.
    """

    address: Address
    ranks: tuple[Rank, ...]

    @property
    def name(self) -> str:
        """Unique in the fleet."""
        return self.address.name

    @property
    def facts(self) -> EngineFacts | None:
        """Of the first rank that has any; ranks are alike."""
        for rank in self.ranks:
            facts = rank.facts
            if facts is not None:
                return facts
        return None


def _begins_a_prompt(batch: Batch) -> bool:
    """Whether it may hold a first block whose hash can be computed."""
    return any(
        isinstance(event, Stored)
        and event.parent is None
        and event.tokens > 0
        and event.lora is None
        for event in batch.events
    )
