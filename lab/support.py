"""The support table of docs/support.md, made from what the zoo's tests saw."""

from pathlib import Path

from lab.recipes import RECIPES

ROWS = Path(__file__).resolve().parent.parent / "build" / "zoo"
"""One JSON file a model, written by tests/e2e/test_zoo.py."""

ZOO = [name for name in RECIPES if not name.endswith("-bench") and name != "deepseek-mla"]
"""Models whose answers are compared. Of latent attention only the bytes are."""
