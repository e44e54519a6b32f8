"""Where master keys come from: a file, or the environment.

Text of one key a line, 64 hexadecimal digits; empty lines and what follows `#` mean nothing. The first key
seals what is written, all open what is there, so a key is replaced by putting a new one before it.
"""

import os
import re
import secrets
import stat
from collections.abc import Mapping

from kvstrata.errors import ConfigError

KEYS_VARIABLE = "KVSTRATA_KEYS"
"""Environment variable that may hold the text instead of a file; lines may be separated by commas."""
KEY_BYTES = 32
_MOST = 1 << 20
_LINE = re.compile(r"[0-9a-fA-F]{64}")


def find_keys(path: str | None, environment: Mapping[str, str]) -> list[bytes]:
    """The keys that an operator gave, 32 bytes each; at least one.

    Args:
        path: of the file; None for the environment's text.
        environment: such as `os.environ`.

    Raises:
        ConfigError: there are none, they cannot be read, or others than owner and group could read or
            change them. No message holds any part of a key.
    """
    if path is not None:
        return parse_keys(_read(path), path)
    text = environment.get(KEYS_VARIABLE)
    if text is None:
        raise ConfigError(
            f"no keys for the option 'seal': name a file of them (option 'keys'; `kvstrata keygen FILE` "
            f"makes one), or put them into {KEYS_VARIABLE}"
        )
    return parse_keys(text.replace(",", "\n"), KEYS_VARIABLE)


def parse_keys(text: str, source: str) -> list[bytes]:
    """Keys in a text, 32 bytes each, in order.

    Args:
        text: see the module.
        source: where it comes from, for messages.

    Raises:
        ConfigError: there is none, one is malformed, or one stands there twice.
    """
    keys: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if not _LINE.fullmatch(word):
            raise ConfigError(
                f"{source}, line {number}: a key is 64 hexadecimal digits; this has {len(word)} "
                f"characters (`kvstrata keygen` makes keys)"
            )
        key = bytes.fromhex(word)
        if key in keys:
            raise ConfigError(f"{source}, line {number}: this key stands there already; remove it")
        keys.append(key)
    if not keys:
        raise ConfigError(f"{source} holds no key; `kvstrata keygen` makes one")
    return keys


def add_key(path: str, key: bytes, note: str, *, first: bool) -> None:
    """Put a key into a file of keys, made for its owner alone where it is missing.

    Args:
        path: of the file.
        key: 32 bytes.
        note: one line that says what key it is.
        first: whether it stands before all others, so that it seals; else behind them, so that it opens.

    Raises:
        ConfigError: the file is there and not fit for keys, see `find_keys`.
        OSError: it cannot be written.
    """
    mode = 0o600
    text = ""
    if os.path.exists(path):
        text = _read(path)
        parse_keys(text, path)
        mode = stat.S_IMODE(os.stat(path).st_mode)
    line = f"# {note}\n{key.hex()}\n"
    text = line + text if first else (text and text.rstrip("\n") + "\n") + line
    path = os.path.realpath(path)
    temporary = f"{path}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"keys: {path} is not a file")
            if status.st_mode & stat.S_IRWXO:
                raise ConfigError(
                    f"keys: others than its owner and group may use {path}; take that right away "
                    f"(chmod o= {path})"
                )
            return file.read(_MOST).decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"keys: {path} is not a text of keys") from None
    except OSError as error:
        raise ConfigError(
            f"keys: {path}: {error.strerror}; give a file that this user may read"
        ) from None
