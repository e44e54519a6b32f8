"""Prompts of `lab.bench.router`: ids and texts whose beginnings engines hold, or which are new."""

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lab import report

TOKENIZER = report.BUILD / "bench" / "router-tokenizer"
VOCABULARY = 32_768
"""Of the tokenizer that is made here; large enough to be as slow as a real one."""
IDS = 128_000
"""Token ids are drawn below it, as of a model with a large vocabulary."""
TAIL = 64
"""Tokens of a prompt behind its known beginning."""
CHARACTERS = 32_768
_LEARNT_FROM = 6 << 20

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Held:
    """Token ids that one engine holds, whole blocks of them.

    Attributes:
        engine: its number.
        ids: uint32.
        text: that they are of; None where no text was.
    """

    engine: int
    ids: Ids
    text: str | None = None


def body(prompt: str, most: int, stream: bool = True) -> bytes:
    """A request's body, as the OpenAI client writes it: without spaces.

    Args:
        prompt: JSON.
        most: `max_tokens`.
        stream: whether it is streamed.
    """
    kind = ',"stream":true' if stream else ""
    return f'{{"model":"m","prompt":{prompt},"max_tokens":{most}{kind}}}'.encode()


def listed(ids: Ids) -> str:
    """Token ids as JSON."""
    return json.dumps(ids.tolist(), separators=(",", ":"))


class Prompts:
    """Draws prompts; the same for the same seed.

    Args:
        seed: of the dice.
        tokenizer: directory of one, for texts.
    """

    def __init__(self, seed: int, tokenizer: Path) -> None:
        from tokenizers import Tokenizer

        self._dice = np.random.default_rng(seed)
        self._tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self._text = corpus()

    def held(self, engine: int, tokens: int) -> Held:
        """What an engine holds, so that a prompt of `tokens` ids has `TAIL` behind it."""
        return Held(engine, self._draw(tokens - TAIL))

    def held_text(self, engine: int) -> Held:
        """A text that an engine holds, but for its last line and whole block."""
        text = self.new_text()
        ids = np.array(self._tokenizer.encode(text).ids, np.uint32)
        return Held(engine, ids[: (len(ids) - TAIL) // 16 * 16], text)

    def known(self, held: Held) -> bytes:
        """Body of a request that begins as `held` does and goes on in a new way."""
        if held.text is not None:
            return body(json.dumps(held.text + self._line()), 2)
        return body(f"{listed(held.ids)[:-1]},{listed(self._draw(TAIL))[1:]}", 2)

    def new(self, tokens: int) -> bytes:
        """Body of a request whose prompt nobody has seen."""
        return body(listed(self._draw(tokens)), 2)

    def new_text(self) -> str:
        """`CHARACTERS` of new text: pieces of the corpus, drawn anew, behind a new first line."""
        lines, size = [self._line()], 0
        while size < CHARACTERS:
            low = int(self._dice.integers(0, len(self._text) - 4096))
            lines.append(self._text[low : low + 2048])
            size += 2048
        return "".join(lines)[:CHARACTERS]

    def _line(self) -> str:
        return f"\nquestion {int(self._dice.integers(1 << 40))}: "

    def _draw(self, tokens: int) -> Ids:
        return self._dice.integers(300, IDS, tokens, np.uint32)


def corpus() -> str:
    """Some megabytes of text that every machine with Python has: its library's sources."""
    return "".join(_sources())[:_LEARNT_FROM]


def _sources() -> Iterator[str]:
    size = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        size += len(text)
        yield text
        if size > _LEARNT_FROM:
            return


def ensure_tokenizer(directory: Path = TOKENIZER) -> Path:
    """A byte-level BPE tokenizer with GPT-2's division into words, learnt from `corpus` once; its directory.

    The tiny models' own tokenizer has a token for each byte and nothing to merge: too fast to be measured.
    """
    path = directory / "tokenizer.json"
    if path.exists():
        return directory
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(corpus().splitlines(keepends=True), trainer)
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
    return directory
