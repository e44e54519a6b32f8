"""What a soak does, round by round, from its seed alone. Pure: no clock, no files, no engines.

In a round each engine is asked a few prompts at once, while the round's faults happen. Faults are of two
sorts: a **window** is on from one round to another, a **strike** happens once. Kinds are dealt from a
shuffled deck, so that none is missing for long. Rounds come in cycles: a storm, then quiet rounds in which
nothing is wrong any more and at whose end leaks are looked for.

The beginning of a longer plan is the shorter plan of the same seed.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

ENGINES = 2
"""Engines, unless more are asked for."""
STORM = 36
"""Rounds of a cycle in which faults may be on."""
QUIET = 4
"""Rounds of a cycle at its end in which none is."""
CYCLE = STORM + QUIET
WARM = 3
"""Rounds before the first cycle, without faults."""
AT_ONCE = 3
"""Windows that may be on at the same time."""
LONGEST = 12
"""Rounds that a window is on at most."""
BATCH = 4
"""Prompts that an engine is asked at once at most."""

WINDOW_CHANCE = 0.3
STRIKE_CHANCE = 0.4
SAME_CHANCE = 0.25
"""Of a round in which all engines are asked the same, so that they store the same chunks at once."""
MID_FLIGHT = 0.4
"""Seconds after the requests were sent within which a fault of the round happens."""

OPENINGS = 8
"""Beginnings that conversations share."""
MAX_TURNS = 5
REMEMBERED = 150
"""Prompts that may be repeated, and conversations that may go on."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Some tokens, see `lab.models.prompt_ids`.

    Attributes:
        tokens: how many.
        seed: of what they are.
    """

    tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to one of its turns; the answers to earlier turns stand between the turns.

    Attributes:
        opening: what other conversations begin with too.
        turns: of the user, at least one.
        max_tokens: length of each answer, tokens.
    """

    opening: Segment
    turns: tuple[Segment, ...]
    max_tokens: int

    @property
    def previous(self) -> "Prompt | None":
        """The conversation one turn earlier."""
        return replace(self, turns=self.turns[:-1]) if len(self.turns) > 1 else None

    @property
    def tokens(self) -> int:
        """Length, if every answer is as long as it may be."""
        between = (len(self.turns) - 1) * self.max_tokens
        return self.opening.tokens + sum(turn.tokens for turn in self.turns) + between


@dataclass(frozen=True, slots=True)
class Window:
    """A fault that lasts.

    Attributes:
        number: counts windows and strikes.
        kind: what it is.
        engine: which engine it is for, where it is not for the directory and so for both.
        begins: round in which it begins.
        ends: round before whose requests it ends.
        after: seconds after the requests of `begins` were sent.
        seed: of what else it chooses.
    """

    number: int
    kind: str
    engine: int
    begins: int
    ends: int
    after: float
    seed: int


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that happens once; attributes as of `Window`."""

    number: int
    kind: str
    engine: int
    after: float
    seed: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Attributes:
        number: counts from 0.
        prompts: for each engine, to be asked at once.
        ends: windows that end before the requests are sent.
        begins: windows that begin.
        strikes: what else happens while the requests are served.
        check: whether leaks are looked for after it; no window is on then.
    """

    number: int
    prompts: tuple[tuple[Prompt, ...], ...]
    ends: tuple[Window, ...]
    begins: tuple[Window, ...]
    strikes: tuple[Strike, ...]
    check: bool


@dataclass(frozen=True, slots=True)
class Kinds:
    """What can be drawn.

    Attributes:
        windows: kinds of windows.
        strikes: kinds of strikes.
        exclusive: groups of windows' kinds of which only one may be on.
        ending: strikes that end all windows with their round: an engine starts only where its directory
            can be used.
    """

    windows: tuple[str, ...]
    strikes: tuple[str, ...]
    exclusive: tuple[frozenset[str], ...] = ()
    ending: frozenset[str] = frozenset()

    def fits(self, kind: str, beside: Sequence[Window]) -> bool:
        """Whether a window of this kind may begin while `beside` are on."""
        on = {window.kind for window in beside}
        return kind not in on and not any(kind in group and group & on for group in self.exclusive)


class Deck:
    """Cards in random order, all of them before one comes again.

    Args:
        cards: what is dealt, at least one.
        random: where the order comes from.
    """

    def __init__(self, cards: Sequence[str], random: random.Random) -> None:
        self._cards = list(cards)
        self._random = random
        self._left: list[str] = []

    def deal(self) -> str:
        """The next card."""
        if not self._left:
            self._left = list(self._cards)
            self._random.shuffle(self._left)
        return self._left.pop()

    def put_back(self, card: str) -> None:
        """A card that could not be used; it comes again as the last of those that are left."""
        self._left.insert(0, card)


class Talk:
    """Draws prompts: new conversations, next turns, repetitions.

    Args:
        random: where everything comes from.
    """

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._openings = [Segment(random.randrange(40, 420), 1_000 + n) for n in range(OPENINGS)]
        self._known: list[Prompt] = []
        self._seed = 10_000

    def prompt(self) -> Prompt:
        """The next prompt; at least a quarter of all were asked before."""
        draw = self._random.random()
        if not self._known or draw < 0.15:
            return self._remember(
                Prompt(
                    self._random.choice(self._openings),
                    (self._segment(30, 300),),
                    self._random.randrange(4, 9),
                )
            )
        # Of two draws the later: what was asked last is asked more often.
        picks = [self._random.randrange(len(self._known)) for _ in range(2)]
        found = self._known[max(picks)]
        if draw < 0.4 and len(found.turns) < MAX_TURNS:
            return self._remember(replace(found, turns=(*found.turns, self._segment(10, 150))))
        return found

    def _segment(self, least: int, most: int) -> Segment:
        self._seed += 1
        return Segment(self._random.randrange(least, most), self._seed)

    def _remember(self, prompt: Prompt) -> Prompt:
        self._known.append(prompt)
        del self._known[:-REMEMBERED]
        return prompt


def rounds(seed: int, kinds: Kinds, engines: int = ENGINES) -> Iterator[Round]:
    """The plan, without end; stop wherever you like after a round with `check`.

    Args:
        seed: of everything.
        kinds: what can be drawn. Other kinds are another plan, as is another number of engines.
        engines: that are asked.
    """
    return _Planner(seed, kinds, engines).rounds()


class _Planner:
    def __init__(self, seed: int, kinds: Kinds, engines: int) -> None:
        # Prompts have a source of their own: they stay the same when kinds of faults are added.
        self._talk = Talk(random.Random(f"prompts {seed}"))
        self._sizes = random.Random(f"batches {seed}")
        self._random = random.Random(f"faults {seed}")
        self._kinds = kinds
        self._engines = engines
        self._windows = Deck(kinds.windows, self._random) if kinds.windows else None
        self._strikes = Deck(kinds.strikes, self._random) if kinds.strikes else None
        self._on: list[Window] = []
        self._number = 0

    def rounds(self) -> Iterator[Round]:
        number = 0
        while True:
            place = (number - WARM) % CYCLE if number >= WARM else STORM
            storm = place < STORM
            check = number == WARM - 1 or place == CYCLE - 1
            ends = [w for w in self._on if w.ends <= number or not storm]
            self._on = [w for w in self._on if w not in ends]
            begins = self._begin(number, STORM - place) if storm else []
            strikes = self._strike() if storm else []
            if any(strike.kind in self._kinds.ending for strike in strikes):
                # They end before the next round in any case; see `Kinds.ending`.
                self._on = [replace(w, ends=number + 1) for w in self._on]
                begins = [replace(w, ends=number + 1) for w in begins]
            if self._sizes.random() < SAME_CHANCE:
                prompts = (self._prompts(),) * self._engines
            else:
                prompts = tuple(self._prompts() for _ in range(self._engines))
            yield Round(number, prompts, tuple(ends), tuple(begins), tuple(strikes), check)
            number += 1

    def _prompts(self) -> tuple[Prompt, ...]:
        return tuple(self._talk.prompt() for _ in range(self._sizes.randrange(1, BATCH + 1)))

    def _begin(self, number: int, left: int) -> list[Window]:
        if self._windows is None or self._random.random() >= WINDOW_CHANCE:
            return []
        kind = self._windows.deal()
        lasts = min(self._random.randrange(1, LONGEST + 1), left)
        engine, after, seed = self._draws()
        if len(self._on) >= AT_ONCE or not self._kinds.fits(kind, self._on):
            self._windows.put_back(kind)
            return []
        window = Window(self._count(), kind, engine, number, number + lasts, after, seed)
        self._on.append(window)
        return [window]

    def _strike(self) -> list[Strike]:
        if self._strikes is None or self._random.random() >= STRIKE_CHANCE:
            return []
        kind = self._strikes.deal()
        engine, after, seed = self._draws()
        return [Strike(self._count(), kind, engine, after, seed)]

    def _draws(self) -> tuple[int, float, int]:
        draw = self._random
        return draw.randrange(self._engines), draw.random() * MID_FLIGHT, draw.randrange(1 << 32)

    def _count(self) -> int:
        self._number += 1
        return self._number
