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
from dataclasses import asdict
from pathlib import Path

from lab.recipes import RECIPES, Recipe

__all__ = ["MODELS_ROOT", "PRINTABLE", "RECIPES", "VOCAB_SIZE", "Recipe", "ensure", "prompt_ids"]

MODELS_ROOT = Path(__file__).resolve().parent.parent / "build" / "models"
RECIPE_FILE = "recipe.json"

VOCAB_SIZE = 264
"""256 bytes (the token id is the byte), then the special tokens, then one unused id."""

PRINTABLE = range(0x20, 0x7F)
"""Token ids that a model may generate and that prompts are made of: printable ASCII bytes."""


def prompt_ids(n_tokens: int, seed: int) -> list[int]:
    """A prompt of `n_tokens` random printable bytes as token ids; the same for the same seed.

    Two prompts of one seed and different lengths share their beginning. Different seeds differ in
    (almost surely) every block. The ids are also the bytes of an ASCII text, so
    `bytes(prompt_ids(n, seed)).decode()` is the same prompt as text.
    """
    return random.Random(seed).choices(PRINTABLE, k=n_tokens)


def recipe_digest(recipe: Recipe) -> str:
    """What `ensure` compares: a hash of the recipe and of the code that turns it into files."""
    here = Path(__file__).parent
    sources = [here / "checkpoint.py", *sorted((here / "families").glob("*.py"))]
    parts = [json.dumps(asdict(recipe), sort_keys=True).encode()]
    parts += [source.read_bytes() for source in sources]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


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
