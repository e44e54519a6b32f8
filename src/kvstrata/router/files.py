"""A model's own files: its tokenizer, its chat template, and what kind of model it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvstrata.errors import ConfigError
from kvstrata.router.chat import ChatTemplate
from kvstrata.router.incremental import IncrementalTokenizer
from kvstrata.router.prompts import PromptReader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def load_tokenizer(path: Path) -> "Tokenizer":
    """A tokenizer.

    Args:
        path: of its tokenizer.json, or of the model's directory.

    Raises:
        ConfigError: there is none, it cannot be read, or the package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError("reading a tokenizer needs the package tokenizers") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        where = path if path.is_dir() else path.parent
        raise ConfigError(f"there is no {file.name} in {where}; give the model's directory")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  # boundary: the package raises nothing finer
        raise ConfigError(f"{file} cannot be read: {error}") from None


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
