"""Naming a place where files lie, so that all who mount it call it the same."""

import contextlib
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

from kvstrata.fileio.publish import TEMPORARY

PLACE_FILE = ".kvstrata-place"
"""In the root: one place, whatever namespaces it holds and whoever clears them."""
_NAME = re.compile(rb"([0-9a-f]{32})\n")
_ATTEMPTS = 20
_SECONDS = 0.05


def find_place(root: Path, *, read_only: bool) -> tuple[str, bool]:
    """The name of the place at `root`, drawn at random by whoever came first and kept in a file there.

    Any number of processes on any number of machines may ask at once; all get the same answer. Where
    nothing may be written and nobody has, the name is derived from this host's name and the path: engines
    on other machines then call the same place otherwise.

    Args:
        root: an existing directory.
        read_only: never write.

    Returns:
        The name, and whether it is the place's own; False when it was derived.
    """
    path = root / PLACE_FILE
    if not read_only:
        with contextlib.suppress(OSError):
            if not path.exists():
                _claim(path)
    name = _read(path)
    if name is not None:
        return name, True
    text = f"{socket.gethostname()}\0{os.path.realpath(root)}"
    return "host-" + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:27], False


def _claim(path: Path) -> None:
    """Make the file with a name of our own unless it is there; it appears whole, where links are known."""
    name = f"{secrets.token_hex(16)}\n".encode()
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(name)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:
            _write_new(path, name)
    finally:
        temporary.unlink(missing_ok=True)


def _write_new(path: Path, name: bytes) -> None:
    """For file systems without links: readers may see the file before its line is there, and wait."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return
    try:
        with file:
            file.write(name)
    except OSError:
        path.unlink()
        raise


def _read(path: Path) -> str | None:
    for _ in range(_ATTEMPTS):
        try:
            found = path.read_bytes()
        except OSError:
            return None
        match = _NAME.fullmatch(found)
        if match is not None:
            return match[1].decode()
        if len(found) > 32:
            return None
        time.sleep(_SECONDS)  # somebody is about to write it
    return None
