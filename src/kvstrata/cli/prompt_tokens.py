"""The prompt that a command is about: token ids from a file."""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstrata.errors import ConfigError
from kvstrata.router.tokenizers import load_tokenizer

Tokens = npt.NDArray[np.uint32]


def read_prompt(path: Path, tokenizer: Path | None) -> Tokens:
    """Token ids (uint32[n]) of a file: a JSON array of them, or text for the tokenizer.

    Args:
        path: of the file; "-" is the standard input.
        tokenizer: its tokenizer.json, or the model's directory.

    Raises:
        ConfigError: neither.
        OSError: it cannot be read.
    """
    data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        if tokenizer is not None:
            return np.array(load_tokenizer(tokenizer).encode(data.decode()).ids, np.uint32)
        ids = json.loads(data)
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            raise ValueError("it holds something else")
        if any(not 0 <= one < 1 << 31 for one in ids):
            raise ValueError("token ids lie between 0 and 2147483647")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no JSON array of token ids ({error}); for text give --tokenizer with the "
            f"directory of the model"
        ) from None
    return np.array(ids, np.uint32)
