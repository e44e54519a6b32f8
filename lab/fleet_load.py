"""A load of conversations, planned from a seed: who begins when, says what, and thinks for how long.

Some applications each have a system prompt of their own, and bursts of users who begin within seconds of
each other. A user says something, reads the answer, thinks, and says more; every request carries the whole
conversation, as OpenAI's clients send it. Now and then somebody brings a long document that nobody has seen
and nobody asks for again. Pure: the same seed gives the same plan on every machine.
"""

import random
from dataclasses import dataclass, replace

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a load is. Pairs are the least and the most that is drawn, both included.

    Seconds are those of a plan as it is drawn; see `paced`.

    Attributes:
        applications: system prompts.
        users: conversations of each.
        system_tokens: length of a system prompt.
        turns: requests of a conversation.
        message_tokens: length of what a user says.
        answer_tokens: generated for each request.
        think_seconds: from the end of an answer to the user's next request.
        burst_seconds: within which all users of an application begin.
        apart_seconds: between the beginnings of two applications' bursts.
        documents: requests that stand alone.
        document_tokens: length of each.
    """

    applications: int = 5
    users: int = 6
    system_tokens: tuple[int, int] = (1500, 2000)
    turns: tuple[int, int] = (2, 4)
    message_tokens: tuple[int, int] = (130, 300)
    answer_tokens: int = 12
    think_seconds: tuple[float, float] = (0.3, 4.0)
    burst_seconds: float = 2.0
    apart_seconds: float = 8.0
    documents: int = 4
    document_tokens: tuple[int, int] = (3500, 4500)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request.

    Attributes:
        text: what the user says; ASCII, one token a character for the models of `lab.models`.
        think: seconds that the user waits before it.
    """

    text: str
    think: float


@dataclass(frozen=True, slots=True)
class Conversation:
    """One user's requests, one after the other.

    Attributes:
        name: unique in its plan.
        start: seconds from the load's beginning.
        system: the application's system prompt; empty for none.
        turns: at least one.
    """

    name: str
    start: float
    system: str
    turns: tuple[Turn, ...]

    @property
    def document(self) -> bool:
        """Whether it is a document that stands alone."""
        return not self.system


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a load.

    Attributes:
        seed: that it was drawn from.
        scale: its size.
        conversations: by the time that they begin.
    """

    seed: int
    scale: Scale
    conversations: tuple[Conversation, ...]

    @property
    def requests(self) -> int:
        """How many there will be."""
        return sum(len(one.turns) for one in self.conversations)

    @property
    def distinct_tokens(self) -> int:
        """Tokens that any fleet has to compute at least once, answers aside."""
        systems = {one.system for one in self.conversations}
        said = sum(len(turn.text) for one in self.conversations for turn in one.turns)
        return said + sum(map(len, systems))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, answers and the template's own aside."""
        total = 0
        for one in self.conversations:
            length = len(one.system)
            for turn in one.turns:
                length += len(turn.text)
                total += length
        return total


def plan(seed: int, scale: Scale | None = None) -> Plan:
    """The load of a seed."""
    scale = scale or Scale()
    drawn = random.Random(seed)
    found = []
    for application in range(scale.applications):
        system = _text(drawn, drawn.randint(*scale.system_tokens))
        for user in range(scale.users):
            start = application * scale.apart_seconds + drawn.uniform(0, scale.burst_seconds)
            turns = tuple(
                Turn(
                    _text(drawn, drawn.randint(*scale.message_tokens)),
                    drawn.uniform(*scale.think_seconds) if number else 0.0,
                )
                for number in range(drawn.randint(*scale.turns))
            )
            found.append(Conversation(f"{application}.{user}", start, system, turns))
    # Documents come while there are conversations that they are in the way of.
    every = scale.apart_seconds * scale.applications / max(scale.documents, 1)
    for number in range(scale.documents):
        text = _text(drawn, drawn.randint(*scale.document_tokens))
        start = (number + drawn.random()) * every
        found.append(Conversation(f"document.{number}", start, "", (Turn(text, 0.0),)))
    return Plan(seed, scale, tuple(sorted(found, key=lambda one: one.start)))


def paced(load: Plan, factor: float) -> Plan:
    """The same load, with all times `factor` times as long: a machine as much slower is as busy with it."""

    def slower(one: Conversation) -> Conversation:
        turns = tuple(replace(turn, think=turn.think * factor) for turn in one.turns)
        return replace(one, start=one.start * factor, turns=turns)

    return replace(load, conversations=tuple(slower(one) for one in load.conversations))


def renamed(load: Plan, mark: int) -> Plan:
    """The same load, token for token as long and at the same times, in a text that shares no block with it.

    What engines hold of one is worth nothing for the other: so a fleet is cold again without a restart.

    Args:
        load: that is to be met again.
        mark: another text for each; 0 is the plan itself.
    """
    if not mark:
        return load
    order = list(LETTERS)
    random.Random(mark).shuffle(order)
    table = str.maketrans(LETTERS, "".join(order))

    def other(text: str) -> str:
        return f"{mark:06d}{text.translate(table)}"[: len(text)]

    return replace(
        load,
        conversations=tuple(
            replace(
                one,
                system=other(one.system),
                turns=tuple(replace(turn, text=other(turn.text)) for turn in one.turns),
            )
            for one in load.conversations
        ),
    )


def _text(drawn: random.Random, length: int) -> str:
    """Words of random letters, `length` characters in all, which are as many tokens."""
    words: list[str] = []
    size = 0
    while size < length:
        words.append("".join(drawn.choices(LETTERS, k=drawn.randint(2, 9))))
        size += len(words[-1]) + 1
    return " ".join(words)[:length].ljust(length, "x")
