"""What engines say of the models they serve: where the files are, and which names are adapters'."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from kvstrata.errors import ConfigError
from kvstrata.router.files import ModelFiles, load_files, named_harmony
from kvstrata.router.prompts import NOTHING, Believed
from kvstrata.router.replicas import Replica, Served
from kvstrata.router.tokenizing import EngineTokenizer, Tokens, UntoldError
from kvstrata.router.trials import QUESTIONS, common, judge, question

log = logging.getLogger(__name__)

Adapter = tuple[str, str]
"""An adapter's name and the path that its engine has it from: both enter every block hash."""
Result = TypeVar("Result")

_MOST_FILES = 8
"""Models whose files are kept in memory."""
_TRIES = 30
"""Failed trials of one engine, after which it is not tried again in this life."""


class Run(Protocol):
    """Runs a function in the thread that reads prompts."""

    def __call__(self, function: Callable[[], Result]) -> Awaitable[Result]:
        """What the function gives, once it has run."""
        ...


def adapters(model: str | None, replicas: Iterable[Replica]) -> dict[str, Adapter | None]:
    """What a name means at each replica that serves it: an adapter, or None for a model.

    Args:
        model: as requests name it; None is the replica's own model.
        replicas: all of them; those that have not said what they serve are left out.
    """
    found: dict[str, Adapter | None] = {}
    for replica in replicas:
        if model is None:
            found[replica.name] = None
        elif model in replica.served:
            served = replica.served[model]
            adapter = served.parent is not None and served.root is not None
            found[replica.name] = (served.id, str(served.root)) if adapter else None
    return found


def base_of(model: str | None, served: Mapping[str, Served]) -> Served | None:
    """The model behind a name: itself, or that which an adapter belongs to."""
    bases = [one for one in served.values() if one.parent is None]
    if model is None:
        return bases[0] if bases else None
    found = served.get(model)
    if found is None or found.parent is None:
        return found
    parent = served.get(found.parent)
    # Adapters may name their model by its path.
    return parent or (bases[0] if bases else None)


@dataclass(eq=False, slots=True)
class _Source:
    """A model's files, and what replicas' answers say of them."""

    files: ModelFiles
    given: bool
    verdicts: dict[str, Believed] = field(default_factory=dict)

    @property
    def believed(self) -> Believed:
        found = Believed() if self.given else NOTHING
        if self.verdicts:
            found = common(self.verdicts.values())
        return replace(found, harmony=self.files.harmony)


class Models:
    """Models' files, each believed as far as its engines were seen to do the same.

    Args:
        given: files of the one model of all replicas; None to find them by what engines say.
        engine: asks engines.
        run: in the thread of the files' readers.
    """

    def __init__(self, given: ModelFiles | None, engine: EngineTokenizer, run: Run) -> None:
        self._given = None if given is None else _Source(given, given=True)
        self._engine = engine
        self._run = run
        self._found: dict[str, _Source | None] = {}
        self._failures: dict[str, int] = {}
        self._tried: set[str] = set()
        self._trials: dict[str, asyncio.Task[None]] = {}

    def of(
        self, model: str | None, replicas: Iterable[Replica]
    ) -> tuple[ModelFiles | None, Believed]:
        """The files for requests to a model, and what of them can be used."""
        if self._given is not None:
            return self._given.files, self._given.believed
        harmony = False
        for replica in replicas:
            base = base_of(model, replica.served)
            source = self._found.get(base.root) if base and base.root else None
            if source is not None:
                return source.files, source.believed
            harmony |= base is not None and named_harmony(base.root or base.id)
        return None, replace(NOTHING, harmony=harmony)

    def saw(self, replica: Replica) -> None:
        """A replica is well: compare what it makes of some prompts with what its model's files give."""
        name = replica.name
        if name in self._tried or name in self._trials or not replica.served:
            return
        task = asyncio.get_running_loop().create_task(self._try(replica))
        self._trials[name] = task
        task.add_done_callback(lambda done: self._over(name, done))

    def forget(self, replica: str) -> None:
        """It is gone, or may come back with other settings."""
        self._tried.discard(replica)
        self._failures.pop(replica, None)
        trial = self._trials.pop(replica, None)
        if trial is not None:
            trial.cancel()
        self._engine.forget()
        for source in (self._given, *self._found.values()):
            if source is not None:
                source.verdicts.pop(replica, None)

    def _over(self, replica: str, trial: asyncio.Task[None]) -> None:
        if self._trials.get(replica) is trial:
            del self._trials[replica]

    def close(self) -> None:
        """Nothing more is tried."""
        for trial in list(self._trials.values()):
            trial.cancel()

    async def _try(self, replica: Replica) -> None:
        base = base_of(None, replica.served)
        if base is None:
            return
        try:
            source = self._given or await self._load(base.root)
            if source is not None:
                answers = [await self._answer(replica, base.id, n) for n in range(len(QUESTIONS))]
                reader = source.files.reader
                verdict = await self._run(lambda: judge(reader, answers))
                source.verdicts[replica.name] = verdict
                _tell(replica.name, verdict, source.given)
            self._tried.add(replica.name)
        except UntoldError as error:
            failures = self._failures[replica.name] = self._failures.get(replica.name, 0) + 1
            if failures == _TRIES:
                self._tried.add(replica.name)
                log.warning("what %s makes of texts could not be tried: %s", replica.name, error)

    async def _answer(self, replica: Replica, model: str, number: int) -> Tokens | None:
        try:
            return await self._engine.ask(replica, question(number, model), anew=True)
        except UntoldError as error:
            if number and error.refused:
                return None  # it has no chat template, or one that refuses this chat
            raise

    async def _load(self, root: str | None) -> _Source | None:
        """The files at an engine's `root`, if that is a directory here; None where it is not."""
        if root is None or not Path(root).is_absolute():
            return None
        if root not in self._found and len(self._found) < _MOST_FILES:
            try:
                loaded = _Source(await asyncio.to_thread(load_files, Path(root)), given=False)
            except ConfigError:
                loaded = None
            # Another replica's trial may have been quicker.
            return self._found.setdefault(root, loaded)
        return self._found.get(root)


def _tell(replica: str, verdict: Believed, given: bool) -> None:
    if verdict.text:
        log.info("%s: the model's files give its token ids (%s)", replica, _words(verdict))
    elif given:
        log.warning("%s makes other token ids than the tokenizer that was given", replica)
    else:
        log.warning("%s makes other token ids than its model's files here", replica)


def _words(verdict: Believed) -> str:
    words = {"texts": verdict.text, "chats": verdict.chat, "tools": verdict.calls}
    return ", ".join(word for word, holds in words.items() if holds)
