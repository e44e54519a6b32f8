"""A model's own files: its tokenizer, its chat template, and what kind of model it is."""

import json
from dataclasses import dataclass
from pathlib import Path

from kvstrata.router.chat import ChatTemplate
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.prompts import PromptReader
from kvstrata.router.tokenizers import load_tokenizer

_HARMONY = "gpt_oss"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's directory gives.

    Attributes:
        reader: makes token ids of requests.
        harmony: see `Believed.harmony`.
    """

    reader: PromptReader
    harmony: bool = False


def load_files(directory: Path) -> ModelFiles:
    """All that a model's directory gives.

    Raises:
        ConfigError: it has no tokenizer.json, or a file cannot be read.
    """
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    reader = PromptReader(IncrementalTokenizer(tokenizer), ChatTemplate.load(directory))
    return ModelFiles(reader, named_harmony(directory) or _kind(directory) == _HARMONY)


def named_harmony(root: str | Path) -> bool:
    """Whether a model's name says that it is of the kind whose chats are rendered by harmony."""
    name = str(root).rpartition("/")[2].lower().replace("-", "_")
    return _HARMONY in name


def _kind(directory: Path) -> str:
    try:
        config = json.loads((directory / "config.json").read_text())
        return str(config.get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
