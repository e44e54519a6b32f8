"""From a request to what an index is asked by: its token ids and their block hashes.

Prompts are read, tokenized and hashed in one thread of their own, so that the loop goes on passing tokens
meanwhile. Only few token ids are read on the loop itself: that takes less than to wake the thread. What the
files at hand do not give, an engine is asked for.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kvstrata.chunks.block_hashes import joined_low_bits
from kvstrata.chunks.known_prefixes import KnownPrefixes
from kvstrata.errors import ConfigError
from kvstrata.fleet.hashing import Recipe
from kvstrata.router.asking import Asked
from kvstrata.router.files import ModelFiles, load_files
from kvstrata.router.health import State
from kvstrata.router.ids import ready
from kvstrata.router.models import Adapter, Models, adapters
from kvstrata.router.prompts import COMPLETIONS, EMBEDDINGS, Prompt, PromptReader
from kvstrata.router.replicas import Replica
from kvstrata.router.tokenizing import EngineTokenizer, UntoldError
from kvstrata.routing.decision import Hashes

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Keys = Callable[..., Hashes]
"""A prompt's block hashes; see `KnownPrefixes.keys`."""

AT_ONCE = 250e-6
"""Seconds for which token ids may hold up the loop."""
_HASH = {"sha256": 0.5e-6, "sha256_cbor": 0.5e-6}
_OTHER_HASH = 2.5e-6
"""Seconds of a block's hash, generously; only the kinds above are compiled."""
_IDS = re.compile(rb"\s*\[\s*[0-9]")
_SHORTEST_ID = 2
"""Bytes of a token id in a body, with its comma."""


@dataclass(frozen=True, slots=True)
class Read:
    """What is known of a request's prompt.

    Attributes:
        prompt: its token ids, or why there are none.
    """

    prompt: Prompt
    _keys: Mapping[tuple[Recipe, Adapter | None], Hashes] = field(default_factory=dict)
    _adapters: Mapping[str, Adapter | None] = field(default_factory=dict)

    def hashes(self, replica: str, recipe: Recipe) -> Hashes | None:
        """The prompt's block hashes as a replica makes them; one object where replicas make equal ones.

        Args:
            replica: its name.
            recipe: of its hashes, one of those that `Reading.read` was asked for.

        Returns:
            uint64 (blocks,), the low 64 bits of each; None where they cannot be known.
        """
        if replica in self._adapters:
            return self._keys.get((recipe, self._adapters[replica]))
        # Not seen yet: it has no adapter of that name only if the name is a model's elsewhere.
        if any(self._adapters.values()):
            return None
        return self._keys.get((recipe, None))

    def some(self) -> tuple[Hashes, int] | None:
        """Any one chain of hashes and the tokens of each; None where there is none."""
        for (recipe, _), hashes in self._keys.items():
            return hashes, recipe.hash_tokens
        return None


class Reading:
    """Reads prompts. Its methods are called from the event loop's thread.

    Args:
        files: of the one model of all replicas; None to find each model's own, where an engine's `root` is a
            directory of this machine too.
        engine: asks engines for what files do not give.
    """

    def __init__(
        self, files: ModelFiles | None = None, engine: EngineTokenizer | None = None
    ) -> None:
        self._thread = ThreadPoolExecutor(1, "kvstrata-prompts")
        self._known = _Hashers(lambda recipe: KnownPrefixes(recipe.hasher()).keys)
        self._at_once = _Hashers(_plain_keys)
        self._replicas: dict[str, Replica] = {}
        self._engine = engine or EngineTokenizer()
        self._models = Models(files, self._engine, self._run)
        self._plain = PromptReader()

    # Whom there is to ask.

    def saw(self, replica: Replica) -> None:
        """A replica was looked at and is well."""
        self._replicas[replica.name] = replica
        self._models.saw(replica)

    def forget(self, replica: str) -> None:
        """It is not asked any more, until it is seen again."""
        self._replicas.pop(replica, None)
        self._models.forget(replica)

    def close(self) -> None:
        """Nothing more is read."""
        self._models.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # Requests.

    async def read(self, asked: Asked, recipes: Sequence[Recipe]) -> Read:
        """The prompt of a request. Never fails: what cannot be known is said in `Prompt.doubt`.

        Args:
            asked: the request.
            recipes: by which its hashes are wanted.
        """
        replicas = list(self._replicas.values())
        known = adapters(asked.fields.model, replicas)
        if self._few(asked, recipes, len(set(known.values()))):
            prompt = self._plain.read(asked)
            return Read(prompt, _hashed(prompt, recipes, known, self._at_once), known)
        files, believed = self._models.of(asked.fields.model, replicas)
        reader = files.reader if files is not None else self._plain

        def read() -> Read:
            prompt = reader.read(asked, believed)
            return Read(prompt, _hashed(prompt, recipes, known, self._known), known)

        found = await self._run(read)
        if found.prompt.question is None:
            return found
        prompt = await self._ask(asked, found.prompt, found.prompt.question)
        if prompt.tokens is None:
            return Read(prompt)
        return await self._run(
            lambda: Read(prompt, _hashed(prompt, recipes, known, self._known), known)
        )

    async def _ask(self, asked: Asked, prompt: Prompt, question: bytes) -> Prompt:
        """The prompt as an engine tells it."""
        model = asked.fields.model
        up = [
            one
            for one in self._replicas.values()
            if one.health.state is State.UP and one.serves(model)
        ]
        if not up:
            return prompt
        try:
            tokens = await self._engine.ask(min(up, key=lambda one: one.in_flight), question)
        except UntoldError as error:
            return replace(prompt, doubt=f"{prompt.doubt}; {error}")
        return replace(prompt, tokens=tokens, doubt="")

    async def _run(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    @staticmethod
    def _few(asked: Asked, recipes: Sequence[Recipe], meanings: int) -> bool:
        """Whether it has token ids, and so few that they are read on the loop, whatever they are.

        Args:
            asked: the request.
            recipes: by which its hashes are wanted.
            meanings: what its model's name means at replicas: each has hashes of its own.
        """
        if asked.ids is not None or not ready():
            return False
        path, fields = asked.request.path, asked.fields
        if path not in (COMPLETIONS, EMBEDDINGS):
            return False
        if not _IDS.match(memoryview(fields.prompt if path == COMPLETIONS else fields.input)):
            return False
        each = 0.0
        for recipe in recipes:
            each += _HASH.get(recipe.algorithm, _OTHER_HASH) / max(recipe.hash_tokens, 1)
        most = len(asked.request.body) / _SHORTEST_ID
        return most * each * max(meanings, 1) <= AT_ONCE


class _Hashers:
    """By recipe, what makes hashes so. For one thread at a time.

    Args:
        make: it; raises ConfigError where nobody can.
    """

    def __init__(self, make: Callable[[Recipe], Keys]) -> None:
        self._make = make
        self._made: dict[Recipe, Keys | None] = {}

    def of(self, recipe: Recipe) -> Keys | None:
        """None where hashes cannot be made so."""
        if recipe not in self._made:
            try:
                self._made[recipe] = self._make(recipe)
            except ConfigError as error:
                log.warning("prompts cannot be hashed as an engine does: %s", error)
                self._made[recipe] = None
        return self._made[recipe]


def _plain_keys(recipe: Recipe) -> Keys:
    """Without a memory: to look into it takes as long as to hash a few blocks."""
    hasher = recipe.hasher()
    return lambda tokens, **extra: joined_low_bits(hasher.joined(tokens, **extra), hasher.size)


def _hashed(
    prompt: Prompt,
    recipes: Sequence[Recipe],
    known: Mapping[str, Adapter | None],
    hashers: _Hashers,
) -> dict[tuple[Recipe, Adapter | None], Hashes]:
    keys: dict[tuple[Recipe, Adapter | None], Hashes] = {}
    if prompt.tokens is None or not prompt.cached:
        return keys
    for recipe in recipes:
        make = hashers.of(recipe)
        for adapter in dict.fromkeys(known.values()) if known else (None,):
            if make is not None:
                keys[recipe, adapter] = make(prompt.tokens, lora=adapter, salt=prompt.salt)
    return keys


def reading_of(tokenizer: str | None) -> Reading:
    """Reading with a model's own files.

    Args:
        tokenizer: directory of the model's files, or None to go by what engines say.

    Raises:
        ConfigError: the files cannot be read.
    """
    return Reading() if tokenizer is None else Reading(load_files(Path(tokenizer)))
