"""The keyring that the options ask for."""

import os
from typing import TYPE_CHECKING

from kvstrata.chunks.sealing import SealKind
from kvstrata.chunks.tenants import name_key
from kvstrata.errors import ConfigError
from kvstrata.fileio.key_file import find_keys
from kvstrata.options import Options

if TYPE_CHECKING:
    from kvstrata.chunks.keyring import Keyring


def tenants_key(options: Options) -> bytes:
    """What tenants' names are hashed with: follows from the key that seals; nothing where nothing is sealed.

    Raises:
        ConfigError: there are no keys, or they cannot be used; says the remedy.
    """
    if options.seal not in _KINDS:
        return b""
    return name_key(find_keys(options.keys, os.environ)[0])


_KINDS = {"authenticate": SealKind.AUTHENTICATED, "encrypt": SealKind.ENCRYPTED}


def open_keyring(options: Options) -> "Keyring | None":
    """Keys to seal and open the files of an engine; None where they are not sealed.

    Raises:
        ConfigError: there are no keys, or they cannot be used; says the remedy.
    """
    kind = _KINDS.get(options.seal)
    if kind is None:
        if options.keys is not None:
            raise ConfigError(
                "option 'keys' is given, but nothing is sealed; give 'seal' too "
                '("authenticate" or "encrypt"), or remove it'
            )
        return None
    try:
        from kvstrata.chunks.keyring import Keyring  # what does not seal need not have the package
    except ImportError as error:
        raise ConfigError(
            f"option 'seal' needs the package cryptography, which vLLM's installation brings: {error}"
        ) from None
    return Keyring(find_keys(options.keys, os.environ), kind)
