"""From a request to what an index is asked by: its token ids and their block hashes.

Prompts are read, tokenized and hashed in one thread of their own, so that the loop goes on passing tokens
meanwhile.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kvstrata.chunks.block_hashes import KnownPrefixes
from kvstrata.errors import ConfigError
from kvstrata.fleet.hashing import Recipe
from kvstrata.router.asking import Asked
from kvstrata.router.chat import ChatTemplate
from kvstrata.router.ids import warm
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.prompts import Prompt, PromptReader, read_body
from kvstrata.router.replicas import Replica
from kvstrata.routing.decision import Hashes

log = logging.getLogger(__name__)

CHATS = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_NOT_READ = "what the request asks the engine to read is not known here"


@dataclass(frozen=True, slots=True)
class Read:
    """What is known of a request's prompt.

    Attributes:
        prompt: its token ids, or why there are none.
    """

    prompt: Prompt
    _keys: Mapping[Recipe, Hashes] = field(default_factory=dict)

    def hashes(self, replica: str, recipe: Recipe) -> Hashes | None:
        """The prompt's block hashes as a replica makes them; one object where replicas make equal ones.

        Args:
            replica: its name.
            recipe: of its hashes, one of those that `Reading.read` was asked for.

        Returns:
            uint64 (blocks,), the low 64 bits of each; None where they cannot be known.
        """
        return self._keys.get(recipe)

    def some(self) -> tuple[Hashes, int] | None:
        """Any one chain of hashes and the tokens of each; None where there is none."""
        for recipe, hashes in self._keys.items():
            return hashes, recipe.hash_tokens
        return None


class Reading:
    """Reads prompts. Its methods are called from the event loop's thread.

    Args:
        reader: makes token ids of requests.
    """

    def __init__(self, reader: PromptReader | None = None) -> None:
        self._reader = reader or PromptReader()
        self._thread = ThreadPoolExecutor(1, "kvstrata-prompts")
        self._hashers: dict[Recipe, KnownPrefixes | None] = {}
        self._replicas: dict[str, Replica] = {}

    def saw(self, replica: Replica) -> None:
        """A replica was looked at and is well."""
        self._replicas[replica.name] = replica

    def forget(self, replica: str) -> None:
        """It is not asked any more, until it is seen again."""
        self._replicas.pop(replica, None)

    @staticmethod
    def warm() -> None:
        """Compile what reading needs; not for the event loop, it takes seconds on a machine's first time."""
        warm()

    def close(self) -> None:
        """Nothing more is read."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def read(self, asked: Asked, recipes: Sequence[Recipe]) -> Read:
        """The prompt of a request. Never fails: what cannot be known is said in `Prompt.doubt`.

        Args:
            asked: the request.
            recipes: by which its hashes are wanted.
        """
        if asked.request.path not in (CHATS, COMPLETIONS):
            return Read(Prompt(None, None, _NOT_READ))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._read, asked, recipes)

    # In the thread.

    def _read(self, asked: Asked, recipes: Sequence[Recipe]) -> Read:
        try:
            body = read_body(asked.request.body)
            if asked.request.path == CHATS:
                prompt = self._reader.chat(body, msgspec.json.decode(asked.request.body))
            else:
                prompt = self._reader.completion(body)
        except (ValueError, RecursionError) as error:
            return Read(Prompt(None, None, str(error)))
        if prompt.tokens is None:
            return Read(prompt)
        keys = {}
        for recipe in recipes:
            hasher = self._hasher(recipe)
            if hasher is not None:
                keys[recipe] = hasher.keys(prompt.tokens, salt=prompt.salt)
        return Read(prompt, keys)

    def _hasher(self, recipe: Recipe) -> KnownPrefixes | None:
        if recipe not in self._hashers:
            try:
                self._hashers[recipe] = KnownPrefixes(recipe.hasher())
            except ConfigError as error:
                log.warning("prompts cannot be hashed as an engine does: %s", error)
                self._hashers[recipe] = None
        return self._hashers[recipe]


def reading_of(tokenizer: str | None) -> Reading:
    """Reading with a model's own files.

    Args:
        tokenizer: directory of the model's files, or None: then only prompts of token ids are known.

    Raises:
        ConfigError: the files cannot be read.
    """
    if tokenizer is None:
        return Reading()
    from tokenizers import Tokenizer

    directory = Path(tokenizer)
    if not (directory / "tokenizer.json").is_file():
        raise ConfigError(f"there is no tokenizer.json in {directory}; give the model's directory")
    try:
        made = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001  # boundary: the package raises nothing finer
        raise ConfigError(f"{directory}/tokenizer.json cannot be read: {error}") from None
    return Reading(PromptReader(IncrementalTokenizer(made), ChatTemplate.load(directory)))
