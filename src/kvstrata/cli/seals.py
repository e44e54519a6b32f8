"""Keys for commands that look into sealed files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvstrata.errors import ConfigError
from kvstrata.fileio.key_file import KEYS_VARIABLE, find_keys

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import Keyring

_MISSING = "sealed files need the package cryptography; install it"


def id_of(key: bytes) -> str:
    """The name of a key, hexadecimal.

    Raises:
        ConfigError: the package cryptography is missing.
    """
    try:
        from kvstrata.chunks.keyring import key_id  # what does not look into them need not have it
    except ImportError:
        raise ConfigError(_MISSING) from None
    return key_id(key).hex()


def given_keys(path: Path | None) -> "Keyring | None":
    """The keys in a file, else those in the environment; None where neither is given.

    Raises:
        ConfigError: they cannot be used, or the package cryptography is missing.
    """
    if path is None and KEYS_VARIABLE not in os.environ:
        return None
    keys = find_keys(None if path is None else str(path), os.environ)
    try:
        from kvstrata.chunks.keyring import Keyring
    except ImportError:
        raise ConfigError(_MISSING) from None
    return Keyring(keys)
