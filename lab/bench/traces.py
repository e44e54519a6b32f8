"""Request traces that stand for everyday traffic; each is the same on every machine.

A prompt is a sequence of *texts* of any length in tokens. What a cache can tell of it are its blocks:
block i is known by everything up to its end, as with vLLM's block hashes, so two prompts share a block when
they share all tokens up to its end.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 128
"""Tokens of a block."""


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens that nothing else equals.

    Attributes:
        name: what tells it from others.
        tokens: how many.
    """

    name: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt.

    Attributes:
        tokens: of the prompt.
        blocks: identity of each complete block.
        shared: tokens that it has in common with an earlier request, whole blocks.
    """

    tokens: int
    blocks: tuple[int, ...]
    shared: int


Prompt = tuple[Text, ...]


@dataclass(slots=True)
class _Blocks:
    """Names blocks by what they hold and what stands before them."""

    known: dict[tuple[int, tuple[tuple[int, int, int], ...]], int] = field(default_factory=dict)
    prompts: dict[Prompt, tuple[int, ...]] = field(default_factory=dict)

    def of(self, prompt: Prompt) -> tuple[int, ...]:
        """Identities of the prompt's complete blocks."""
        blocks: list[int] = []
        before, room = -1, BLOCK
        pieces: list[tuple[int, int, int]] = []
        for text in prompt:
            start = 0
            while start < text.tokens:
                stop = min(start + room, text.tokens)
                pieces.append((text.name, start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    before = self.known.setdefault((before, tuple(pieces)), len(self.known))
                    blocks.append(before)
                    room, pieces = BLOCK, []
        return tuple(blocks)


def trace(prompts: Iterator[Prompt], count: int) -> list[Request]:
    """The first `count` prompts as requests."""
    namer = _Blocks()
    seen: set[int] = set()
    requests = []
    for _, prompt in zip(range(count), prompts, strict=False):
        blocks = namer.of(prompt)
        shared = 0
        while shared < len(blocks) and blocks[shared] in seen:
            shared += 1
        seen.update(blocks)
        requests.append(Request(sum(text.tokens for text in prompt), blocks, shared * BLOCK))
    return requests


class Writer:
    """Makes texts.

    Args:
        seed: of the lengths; also keeps the names of two writers apart.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._next = seed << 32

    def text(self, low: int, high: int) -> Text:
        """A new text of `low` to `high` tokens."""
        self._next += 1
        return Text(self._next, self.random.randint(low, high))


def popular(seed: int) -> Iterator[Prompt]:
    """System prompts and documents with a Zipf popularity, each request with a question of its own."""
    writer = Writer(seed)
    systems = [writer.text(1000, 6000) for _ in range(300)]
    weights = [1 / (rank + 1) for rank in range(len(systems))]
    while True:
        (system,) = writer.random.choices(systems, weights)
        yield (system, writer.text(100, 1500))


def chats(seed: int, together: int = 60) -> Iterator[Prompt]:
    """Conversations, `together` at any time; each turn holds all turns before and their answers."""
    writer = Writer(seed)
    systems = [writer.text(400, 2000) for _ in range(4)]
    open_chats: list[tuple[Prompt, float]] = []
    while True:
        while len(open_chats) < together:
            pace = writer.random.choice((0.2, 1.0, 5.0))  # some answer at once, some hours later
            open_chats.append(((writer.random.choice(systems),), pace))
        paces = [pace for _, pace in open_chats]
        (index,) = writer.random.choices(range(len(open_chats)), paces)
        history, pace = open_chats[index]
        prompt = (*history, writer.text(30, 600))
        yield prompt
        if writer.random.random() < 1 / 7:
            open_chats.pop(index)
        else:
            open_chats[index] = ((*prompt, writer.text(80, 800)), pace)


def _agent(writer: Writer, start: Prompt, steps: int, depth: int) -> Iterator[Prompt]:
    """One agent: a long context that grows a little with each call, and sub-agents that start from it."""
    context = (*start, writer.text(200, 1500))
    for _ in range(steps):
        yield context
        if depth and writer.random.random() < 0.08:
            children = [
                _agent(writer, context, writer.random.randint(3, 8), depth - 1)
                for _ in range(writer.random.randint(2, 4))
            ]
            yield from _together(writer, children)
        context = (*context, writer.text(40, 200), writer.text(50, 900))


def _together(writer: Writer, sources: list[Iterator[Prompt]]) -> Iterator[Prompt]:
    while sources:
        source = writer.random.choice(sources)
        prompt = next(source, None)
        if prompt is None:
            sources.remove(source)
        else:
            yield prompt


def agents(seed: int, together: int = 12) -> Iterator[Prompt]:
    """Agentic loops: three kinds of agents, `together` running at any time."""
    writer = Writer(seed)
    kinds = [writer.text(2000, 5000) for _ in range(3)]

    def start() -> Iterator[Prompt]:
        steps = writer.random.randint(10, 35)
        return _agent(writer, (writer.random.choice(kinds),), steps, 1)

    running = [start() for _ in range(together)]
    while True:
        index = writer.random.randrange(together)
        prompt = next(running[index], None)
        if prompt is None:
            running[index] = start()
        else:
            yield prompt


def scans(seed: int) -> Iterator[Prompt]:
    """Popular system prompts, and every now and then a flood of documents that are read once."""
    writer = Writer(seed)
    base = popular(seed + 1)
    batch_system = writer.text(300, 800)
    while True:
        for _ in range(writer.random.randint(60, 120)):
            yield next(base)
        for _ in range(writer.random.randint(60, 120)):
            yield (batch_system, writer.text(2000, 10000))


def mixture(seed: int) -> Iterator[Prompt]:
    """All of these at once, shares drifting: what a busy server sees over a day."""
    writer = Writer(seed)
    sources = [popular(seed + 10), chats(seed + 20), agents(seed + 30), scans(seed + 40)]
    while True:
        weights = [writer.random.uniform(0.2, 1.0) for _ in sources]
        for _ in range(200):
            yield next(writer.random.choices(sources, weights)[0])


def library(seed: int, documents: int = 150) -> Iterator[Prompt]:
    """Documents that are all read once beforehand, and then asked about, each as likely as the others."""
    writer = Writer(seed)
    shelf = [writer.text(1000, 6000) for _ in range(documents)]
    for document in shelf:
        yield (document,)
    while True:
        yield (writer.random.choice(shelf), writer.text(50, 500))


TRACES: dict[str, Callable[[int], Iterator[Prompt]]] = {
    "popular": popular,
    "chats": chats,
    "agents": agents,
    "scans": scans,
    "mixture": mixture,
}
"""Makers of prompts by name; each takes a seed."""
STORAGE_TRACES = {**TRACES, "library": library}
"""Those that a storage tier is measured with, where what comes again much later counts too."""
