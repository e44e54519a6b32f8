"""Choosing by what the fleet's index says each replica holds of the request's prompt."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from kvstrata.chunks.block_hashes import BlockHasher, KnownPrefixes
from kvstrata.errors import ConfigError
from kvstrata.events.stream import Trust
from kvstrata.fleet import replica as followed
from kvstrata.fleet.discovery import discover, infos
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.hashing import Recipe
from kvstrata.router.asking import Asked
from kvstrata.router.chat import ChatTemplate
from kvstrata.router.chooser import PolicyChooser, Result, candidate
from kvstrata.router.ids import warm
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.prompts import Prompt, PromptReader, read_body
from kvstrata.router.replicas import Replica
from kvstrata.routing.decision import Candidate, Decision, Hashes, Policy, RequestView, Reuse
from kvstrata.routing.fleet_reuse import FleetReuse, ReuseQuery
from kvstrata.routing.shape import ModelShape

log = logging.getLogger(__name__)

BELIEVED = {Trust.SYNCED: 1.0, Trust.CATCHING_UP: 0.5, Trust.STALE: 0.25}
"""How much a policy trusts the index of a replica whose stream is so."""
UNKNOWN = Recipe("sha256", BlockHasher("sha256", 16).none_hash, 16)
"""How prompts are told apart while no engine says how it does."""
_CHATS = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"
_MOST_PENDING = 1 << 14


BY_PROMPT = ("seconds", "tier-weighted", "approximate-prefix")
"""Policies that ask what a request's prompt is."""


class FleetChooser(PolicyChooser):
    """A policy that knows what is where.

    Prompts are read, tokenized and hashed in one thread of their own, so that the loop goes on passing
    tokens meanwhile; a choice is one look at the index, from the loop.

    Args:
        policy: chooses.
        fleet: what is followed.
        reader: makes token ids of requests.
    """

    def __init__(self, policy: Policy, fleet: Fleet, reader: PromptReader) -> None:
        super().__init__(policy)
        self._fleet = fleet
        self._reader = reader
        self._thread = ThreadPoolExecutor(1, "kvstrata-prompts")
        self._hashers: dict[Recipe, KnownPrefixes | None] = {}
        self._keys: OrderedDict[str, Mapping[Recipe, Hashes]] = OrderedDict()
        self._queries: dict[ModelShape, ReuseQuery] = {}
        self._addresses: dict[str, followed.Address] = {}

    def start(self) -> None:
        """Follow engines' events, in a thread. Compiles on a machine's first time; that takes a minute."""
        warm()
        self._fleet.start()

    def close(self) -> None:
        """No more requests."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._fleet.stop()

    # Whom to follow.

    def metrics(self, replica: Replica, text: bytes) -> None:
        """An engine's metrics were read: they say where its events are."""
        try:
            told = infos(text.decode(errors="replace"))
            address = discover(replica.name, replica.config.url, told)
        except ConfigError:
            return  # it publishes nothing: the policy goes by what it sent there
        if self._addresses.get(replica.name) == address:
            return
        self._unfollow(replica.name)
        try:
            self._fleet.add(address)
        except (ConfigError, ValueError) as error:
            log.warning("the events of %s cannot be followed: %s", replica.name, error)
            return
        self._addresses[replica.name] = address

    def forget(self, replica: str) -> None:
        """See `Chooser`; one that comes back is followed anew."""
        super().forget(replica)
        self._unfollow(replica)

    def _unfollow(self, replica: str) -> None:
        if self._addresses.pop(replica, None) is not None:
            self._fleet.remove(replica)

    # Requests.

    async def view(self, asked: Asked) -> RequestView:
        """See `Chooser`."""
        view = await super().view(asked)
        if asked.request.path not in (_CHATS, _COMPLETIONS):
            return view
        recipes = self._recipes() or [UNKNOWN]
        loop = asyncio.get_running_loop()
        prompt, keys = await loop.run_in_executor(self._thread, self._read, asked, recipes)
        if prompt.tokens is None:
            return view
        self._keys[asked.id] = keys
        while len(self._keys) > _MOST_PENDING:
            self._keys.popitem(last=False)
        first = next(iter(keys.items()), None)
        return msgspec.structs.replace(
            view,
            tokens=len(prompt.tokens),
            prefix=first[1] if first else None,
            prefix_tokens=first[0].hash_tokens if first else 16,
        )

    def choose(self, view: RequestView, replicas: Sequence[Replica], now: float) -> Decision:
        """See `Chooser`."""
        keys = self._keys.get(view.id, {})
        return self._policy.decide(view, self._candidates(view, keys, replicas), now)

    def observed(self, result: Result, now: float) -> None:
        """See `Chooser`."""
        super().observed(result, now)
        if not result.failed:
            self._keys.pop(result.id, None)

    def describe(self, now: float) -> Mapping[str, Any]:
        """See `Chooser`."""
        return {**super().describe(now), "fleet": self._fleet.as_dict()}

    # Inner workings.

    def _recipes(self) -> list[Recipe]:
        found: dict[Recipe, None] = {}
        for replica in self._fleet.replicas:
            if replica.facts is not None:
                found[Recipe.of(replica.facts)] = None
        return list(found)

    def _read(self, asked: Asked, recipes: Sequence[Recipe]) -> tuple[Prompt, dict[Recipe, Hashes]]:
        """Token ids and their hashes by recipe; runs in the thread."""
        try:
            body = read_body(asked.request.body)
            if asked.request.path == _CHATS:
                prompt = self._reader.chat(body, msgspec.json.decode(asked.request.body))
            else:
                prompt = self._reader.completion(body)
        except (ValueError, RecursionError) as error:
            return Prompt(None, None, str(error)), {}
        if prompt.tokens is None:
            return prompt, {}
        keys = {}
        for recipe in recipes:
            hasher = self._hasher(recipe)
            if hasher is not None:
                keys[recipe] = hasher.keys(prompt.tokens, salt=prompt.salt)
        return prompt, keys

    def _hasher(self, recipe: Recipe) -> KnownPrefixes | None:
        if recipe not in self._hashers:
            try:
                self._hashers[recipe] = KnownPrefixes(recipe.hasher())
            except ConfigError as error:
                log.warning("prompts cannot be hashed as an engine does: %s", error)
                self._hashers[recipe] = None
        return self._hashers[recipe]

    def _candidates(
        self, view: RequestView, keys: Mapping[Recipe, Hashes], replicas: Sequence[Replica]
    ) -> list[Candidate]:
        answers: dict[tuple[ModelShape, Recipe], FleetReuse] = {}
        found = []
        with self._fleet.reading() as index:
            for replica in replicas:
                plain = candidate(replica)
                shown = self._known(replica.name)
                if shown is None or view.tokens is None:
                    found.append(plain)
                    continue
                known, shape, recipe = shown
                hashes = keys.get(recipe)
                reuse: Reuse | None = None
                if hashes is not None:
                    answer = answers.get((shape, recipe))
                    if answer is None:
                        answer = self._query(shape).ask(
                            index, hashes, view.tokens, load_cap=view.load_cap
                        )
                        answers[shape, recipe] = answer
                    # Which of its ranks takes a request is the engine's to say: the poorest is certain.
                    each = [answer.of(rank.number) for rank in known.ranks]
                    reuse = min(each, key=lambda one: one.storage.tokens)
                trust, _ = self._fleet.trust(replica.name)
                found.append(
                    msgspec.structs.replace(
                        plain,
                        reuse=reuse,
                        trust=BELIEVED[trust],
                        ends_only=any(group.windowed for group in shape.groups),
                    )
                )
        return found

    def _query(self, shape: ModelShape) -> ReuseQuery:
        """The one for a shape, with its working memory."""
        found = self._queries.get(shape)
        if found is None:
            found = self._queries[shape] = ReuseQuery(shape)
        return found

    def _known(self, name: str) -> tuple[followed.Replica, ModelShape, Recipe] | None:
        """A replica that is followed and whose groups are known."""
        try:
            replica = self._fleet.replica(name)
            facts = replica.facts
            return (replica, ModelShape.of(facts), Recipe.of(facts)) if facts else None
        except (KeyError, ValueError):
            return None


def follow(policy: Policy, tokenizer: str | None) -> FleetChooser:
    """A chooser over a fleet of its own.

    Args:
        policy: chooses.
        tokenizer: directory of the model's files, or None: then only prompts of token ids are known.

    Raises:
        ConfigError: the files cannot be read.
    """
    if tokenizer is None:
        return FleetChooser(policy, Fleet(), PromptReader())
    from tokenizers import Tokenizer

    directory = Path(tokenizer)
    if not (directory / "tokenizer.json").is_file():
        raise ConfigError(f"there is no tokenizer.json in {directory}; give the model's directory")
    try:
        made = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001  # boundary: the package raises nothing finer
        raise ConfigError(f"{directory}/tokenizer.json cannot be read: {error}") from None
    reader = PromptReader(IncrementalTokenizer(made), ChatTemplate.load(directory))
    return FleetChooser(policy, Fleet(), reader)
