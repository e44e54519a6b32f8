"""Token ids of a text whose beginning was tokenized before: only what is new is tokenized.

A text is cut at places where tokenizing the two sides apart gives the same ids as tokenizing the whole, and
each piece is remembered (see `Beginnings`). Where such places are depends on the
tokenizer:

- before a special token: a tokenizer takes those out first and tokenizes what is between them apart;
- between a newline and a letter, with a visible character before the newline, where the text is split by an
  expression and then made of bytes (GPT-2, Llama 3, Qwen, gpt-oss): no alternative of these expressions
  crosses that place, and none looks further than one character ahead. That a tokenizer behaves so is tried
  on it before it is believed.

A tokenizer that allows neither is asked for whole texts.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvstrata.chunks.beginnings import Beginnings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tokens = npt.NDArray[np.uint32]

PIECE = 2048
"""Characters; a piece ends at the first possible place after so many."""
_ENTRY = 200
"""Bytes that remembering a piece takes besides its ids, about."""
_NEWLINE = re.compile(r"(?<=\S\n)[A-Za-z]")
_BEFORE = (
    "a",
    "Zz",
    "7",
    "12345",
    ".",
    ").",
    "...",
    "é",
    "中",
    "'s",
    "_",
    "\U0001f600",
    " a",
    "\na",
    "x ;",
)
_AFTER = ("a", "Apple", "the end", "I'm", "s", "x1", "Zebra\n", "b\n\nc", "A.B")


class IncrementalTokenizer:
    """A tokenizer that remembers beginnings. Not for use by several threads at once.

    Args:
        tokenizer: of the Hugging Face `tokenizers` package.
        capacity: bytes of token ids that are remembered; what was not used for longest goes first.

    Attributes:
        hits: characters of texts that were known.
        asked: characters of all texts.
    """

    def __init__(self, tokenizer: "Tokenizer", capacity: int = 64 << 20) -> None:
        self._tokenizer = tokenizer
        self._pieces: Beginnings[Tokens] = Beginnings(capacity, lambda ids: ids.nbytes + _ENTRY)
        self._cut = _cuts(tokenizer)
        self._head, self._tail = _frame(tokenizer)
        self.hits = 0
        self.asked = 0

    @property
    def cuts_text(self) -> bool:
        """Whether anything can be remembered of this tokenizer's texts."""
        return self._cut is not None

    def encode(self, text: str, *, special: bool = True) -> Tokens:
        """Token ids of `text`, equal to the tokenizer's own.

        Args:
            text: of any length.
            special: whether the tokens that the tokenizer puts around a text are wanted (vLLM's
                `add_special_tokens`).

        Returns:
            uint32, one-dimensional.
        """
        self.asked += len(text)
        found: list[Tokens] = [self._head] if special else []
        ends = list(self._ends(text))
        running = self._pieces.digest()
        names = []
        for low, high in pairwise([0, *ends]):
            running.update(text[low:high].encode("utf-8", "surrogatepass"))
            names.append(running.digest())
        held = self._pieces.known(names)
        found += held
        known = len(held)
        begun = ends[known - 1] if known else 0
        self.hits += begun
        rest = [text[low:high] for low, high in pairwise([begun, *ends[known:], len(text)])]
        encoded = self._tokenizer.encode_batch_fast(rest, add_special_tokens=False)
        for number, piece in enumerate(encoded, known):
            ids = np.array(piece.ids, np.uint32)
            found.append(ids)
            if number < len(names):  # what follows the last place to cut may go on in another way
                self._pieces.remember(names[number], ids)
        if special:
            found.append(self._tail)
        return np.concatenate(found)

    def beginning(self, text: str, *, special: bool = True) -> Tokens:
        """Token ids with which every text begins that begins with `text`: up to its last place to cut.

        Args and returns as for `encode`; empty where there is no such place.
        """
        last = 0
        if self._cut is not None:
            for match in self._cut.finditer(text):
                last = match.start()
        if not last:
            return np.empty(0, np.uint32)
        found = self.encode(text[:last], special=special)
        return found[: len(found) - len(self._tail)] if special else found

    def _ends(self, text: str) -> Iterator[int]:
        """Where the pieces end, but for the last; the same for all texts that go on in another way."""
        if self._cut is None:
            return
        low = 0
        while len(text) - low > PIECE:
            match = self._cut.search(text, low + PIECE)
            if match is None:
                return
            low = match.start()
            yield low


def _cuts(tokenizer: "Tokenizer") -> re.Pattern[str] | None:
    """Matches where a piece may begin."""
    form = json.loads(tokenizer.to_str())
    specials = _special_tokens(form)
    kinds = [re.escape(text) for text in specials]
    if _splits_to_bytes(form) and _newline_divides(tokenizer):
        kinds.append(_NEWLINE.pattern)
    return re.compile("|".join(kinds)) if kinds else None


def _special_tokens(form: dict[str, Any]) -> list[str]:
    """Special tokens before which a text can be cut: those that nothing else can reach into."""
    added = form.get("added_tokens") or []
    texts = [str(token["content"]) for token in added]
    if any(token.get("lstrip") or token.get("single_word") for token in added):
        return []
    if any(_overlap(one, other) for one, other in product(texts, texts)):
        return []
    return [t["content"] for t in added if t.get("special") and not t.get("normalized")]


def _overlap(one: str, other: str) -> bool:
    """Whether an end of `one` begins `other`, or `other` lies inside `one`."""
    inside = one != other and other in one
    return inside or any(other.startswith(one[-n:]) for n in range(1, min(len(one), len(other))))


def _splits_to_bytes(form: dict[str, Any]) -> bool:
    """No normaliser, and an expression that splits before bytes are made; no space put in front."""
    if form.get("normalizer") is not None or form.get("truncation") or form.get("padding"):
        return False
    steps = form.get("pre_tokenizer") or {}
    parts: Sequence[dict[str, Any]] = steps.get("pretokenizers") or [steps]
    if any(part.get("type") not in ("Split", "ByteLevel", "Digits") for part in parts):
        return False
    last = parts[-1]
    split = len(parts) > 1 or last.get("use_regex") or not form["model"].get("merges")
    return last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and bool(split)


def _newline_divides(tokenizer: "Tokenizer") -> bool:
    """Whether a newline between a visible character and a letter divides, in every trial."""
    pairs = [(f"{before}\n", after) for before, after in product(_BEFORE, _AFTER)]
    encode = tokenizer.encode_batch_fast
    wholes = encode([left + right for left, right in pairs], add_special_tokens=False)
    lefts = encode([left for left, _ in pairs], add_special_tokens=False)
    rights = encode([right for _, right in pairs], add_special_tokens=False)
    return all(
        whole.ids == left.ids + right.ids
        for whole, left, right in zip(wholes, lefts, rights, strict=True)
    )


def _frame(tokenizer: "Tokenizer") -> tuple[Tokens, Tokens]:
    """Ids that the tokenizer puts before and behind a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a", add_special_tokens=True).ids
    for at in range(len(framed) - len(bare) + 1):
        if framed[at : at + len(bare)] == bare:
            tail = framed[at + len(bare) :]
            return np.array(framed[:at], np.uint32), np.array(tail, np.uint32)
    assert not framed
    return np.empty(0, np.uint32), np.empty(0, np.uint32)
