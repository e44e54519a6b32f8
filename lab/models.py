"""Tiny random-weight models that a real engine serves in seconds.

`ensure(name)` makes a model once under `build/models/<name>` and returns that directory;
`python -m lab.models [NAME ...]` makes the named ones (all, without a name). `prompt_ids` makes
deterministic prompts for them. The weights are random, but not careless: see `lab.checkpoint` for
why their output depends on the whole context, without which no identity test could fail.
"""

import argparse
import fcntl
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

MODELS_ROOT = Path(__file__).resolve().parent.parent / "build" / "models"
RECIPE_FILE = "recipe.json"

VOCAB_SIZE = 264
"""256 bytes (the token id is the byte), then the special tokens, then one unused id."""

PRINTABLE = range(0x20, 0x7F)
"""Token ids that a model may generate and that prompts are made of: printable ASCII bytes."""

Family = Literal["llama", "gemma3", "gpt_oss"]


@dataclass(frozen=True)
class Recipe:
    """What one tiny model is made of.

    Sizes are in elements, `window` and `max_position` in tokens. `full_every` is the layer pattern:
    1 means that each layer has full attention, n > 1 that every n-th layer has it and the layers
    between see only the last `window` tokens. `query_key_gain` is the standard deviation that the
    attention logits of unrelated tokens have: e**(gain**2) is about the factor by which attention
    is more peaked than a plain mean. `experts` > 0 makes the MLP a mixture with `experts_per_token`
    active. `seed` is the only source of randomness.
    """

    family: Family
    purpose: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    full_every: int = 1
    window: int = 0
    max_position: int = 40960
    query_key_gain: float = 3.0
    experts: int = 0
    experts_per_token: int = 0
    seed: int = 1

    @property
    def layer_types(self) -> list[str]:
        """Attention kind of each layer, by the names that model configurations use."""
        return [
            "full_attention" if (layer + 1) % self.full_every == 0 else "sliding_attention"
            for layer in range(self.layers)
        ]


# The two for benchmarks have one key-value head and few query heads: where a CPU has no AVX-512,
# attention runs at some 20 GFLOP/s a core, and 32K tokens have to be recomputed in two minutes.
RECIPES: dict[str, Recipe] = {
    "llama": Recipe(
        family="llama",
        purpose="full attention only, one KV cache group: the plain case of the tests",
        layers=4,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
    ),
    "llama-bench": Recipe(
        family="llama",
        purpose="full attention for TTFT up to 32K tokens: 4 KiB of cache a token, few query heads",
        layers=8,
        hidden=512,
        intermediate=1536,
        heads=2,
        key_value_heads=1,
        head_size=64,
    ),
    "gemma3-1to1": Recipe(
        family="gemma3",
        purpose="window of 128 alternating with full attention: one windowed group, one full",
        layers=6,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=2,
        window=128,
    ),
    "gemma3-5to1": Recipe(
        family="gemma3",
        purpose="five windowed layers (128) to one full: several windowed groups",
        layers=12,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=6,
        window=128,
    ),
    "gemma3-w1024": Recipe(
        family="gemma3",
        purpose="a window of several blocks (1024), five to one, one layer a group",
        layers=6,
        hidden=256,
        intermediate=512,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=6,
        window=1024,
    ),
    "gemma3-bench": Recipe(
        family="gemma3",
        purpose="hybrid five to one, window 1024, for the demo and the benchmarks",
        layers=12,
        hidden=512,
        intermediate=1024,
        heads=4,
        key_value_heads=1,
        head_size=64,
        full_every=6,
        window=1024,
    ),
    "gpt-oss": Recipe(
        family="gpt_oss",
        purpose="window of 128 alternating with full attention, sinks and a small mixture",
        layers=4,
        hidden=256,
        intermediate=256,
        heads=4,
        key_value_heads=2,
        head_size=64,
        full_every=2,
        window=128,
        experts=4,
        experts_per_token=2,
    ),
}
"""Every tiny model, by name."""


def prompt_ids(n_tokens: int, seed: int) -> list[int]:
    """A prompt of `n_tokens` random printable bytes as token ids; the same for the same seed.

    Two prompts of one seed and different lengths share their beginning. Different seeds differ in
    (almost surely) every block. The ids are also the bytes of an ASCII text, so
    `bytes(prompt_ids(n, seed)).decode()` is the same prompt as text.
    """
    return random.Random(seed).choices(PRINTABLE, k=n_tokens)


def recipe_digest(recipe: Recipe) -> str:
    """What `ensure` compares: a hash of the recipe and of the code that turns it into files."""
    builder = Path(__file__).with_name("checkpoint.py").read_bytes()
    parts = json.dumps(asdict(recipe), sort_keys=True).encode() + b"\0" + builder
    return hashlib.sha256(parts).hexdigest()


def ensure(name: str, root: Path = MODELS_ROOT) -> Path:
    """The directory of the model `name`, made now if it is missing or its recipe changed.

    Safe to call from several processes at once: one builds, the others wait. The directory appears
    whole or not at all. Raises KeyError, which names the known models, for an unknown `name`.
    """
    if name not in RECIPES:
        raise KeyError(f"no model called {name!r}; known: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    digest = recipe_digest(recipe)
    target = root / name
    if _digest_of(target) == digest:
        return target
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f".{name}.lock"):
        # Another process may have built it while this one waited for the lock.
        if _digest_of(target) != digest:
            _build(recipe, digest, target)
    return target


def _digest_of(model: Path) -> str | None:
    try:
        recorded = json.loads((model / RECIPE_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    digest = recorded.get("digest") if isinstance(recorded, dict) else None
    return digest if isinstance(digest, str) else None


def _build(recipe: Recipe, digest: str, target: Path) -> None:
    # Imported here, because it pulls in torch: prompts and paths must stay cheap to import.
    from lab.checkpoint import write_checkpoint

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        write_checkpoint(recipe, fresh)
        record = {"digest": digest, "recipe": asdict(recipe)}
        (fresh / RECIPE_FILE).write_text(json.dumps(record, indent=2) + "\n")
        if target.exists():
            # rename() does not replace a directory with content; the old one leaves with scratch.
            target.rename(Path(scratch) / "old")
        fresh.rename(target)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the models named on the command line, all of them without a name; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m lab.models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(RECIPES)}")
    parser.add_argument("--clean", action="store_true", help="remove what is there first")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in RECIPES]
    if unknown:
        parser.error(f"no model called {unknown[0]!r}; known: {', '.join(RECIPES)}")
    for name in options.names or RECIPES:
        if options.clean:
            shutil.rmtree(MODELS_ROOT / name, ignore_errors=True)
        started = time.monotonic()
        path = ensure(name)
        size = sum(file.stat().st_size for file in path.iterdir())
        took = time.monotonic() - started
        print(f"{name:14} {size / 2**20:7.1f} MiB  {took:5.1f} s  {RECIPES[name].purpose}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
