"""Naming a place where files lie, so that all who mount it call it the same."""

import contextlib
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

from kvstrata.fileio.beneath import read_small
from kvstrata.fileio.publish import TEMPORARY
from kvstrata.fileio.sharing import Sharing
from kvstrata.fileio.transfer import write_at

PLACE_FILE = ".kvstrata-place"
"""In the root: one place, whatever namespaces it holds and whoever clears them."""
_NAME = re.compile(rb"([0-9a-f]{32})\n")
_ATTEMPTS = 20
_SECONDS = 0.05


def find_place(root: Path, *, read_only: bool, sharing: Sharing = Sharing.USER) -> tuple[str, bool]:
    """The name of the place at `root`, drawn at random by whoever came first and kept in a file there.

    Any number of processes on any number of machines may ask at once; all get the same answer. Where
    nothing may be written and nobody has, the name is derived from this host's name and the path: engines
    on other machines then call the same place otherwise.

    Args:
        root: an existing directory.
        read_only: never write.
        sharing: who may read the file.

    Returns:
        The name, and whether it is the place's own; False when it was derived.
    """
    path = root / PLACE_FILE
    if not read_only:
        with contextlib.suppress(OSError):
            if not path.exists():
                _claim(path, sharing)
    name = _read(path)
    if name is not None:
        return name, True
    text = f"{socket.gethostname()}\0{os.path.realpath(root)}"
    return "host-" + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:27], False


def _claim(path: Path, sharing: Sharing) -> None:
    """Make the file with a name of our own unless it is there; it appears whole, where links are known."""
    name = f"{secrets.token_hex(16)}\n".encode()
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
    try:
        _write_new(temporary, name, sharing)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:
            _write_new(path, name, sharing)
    finally:
        temporary.unlink(missing_ok=True)


def _write_new(path: Path, name: bytes, sharing: Sharing) -> None:
    """Readers may see the file before its line is there, and wait."""
    try:
        fd = sharing.make_file(str(path))
    except FileExistsError:
        return
    try:
        write_at(fd, [memoryview(name)], 0)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


def _read(path: Path) -> str | None:
    for _ in range(_ATTEMPTS):
        try:
            found = read_small(str(path), 64)
        except OSError:
            return None
        match = _NAME.fullmatch(found)
        if match is not None:
            return match[1].decode()
        if len(found) > 32:
            return None
        time.sleep(_SECONDS)  # somebody is about to write it
    return None
