"""A tokenizer from a file. Nothing else of a router comes with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from kvstrata.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
