"""`kvstrata keygen`: make a key for the option `seal`."""

import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from kvstrata.cli import console
from kvstrata.cli.seals import id_of
from kvstrata.fileio.key_file import KEY_BYTES, add_key


def keygen(
    path: Annotated[
        Path | None, typer.Argument(help="File of keys to put it into; printed without one.")
    ] = None,
    first: Annotated[
        bool,
        typer.Option(
            "--first", help="Before all others: it seals from the engines' next start on."
        ),
    ] = False,
) -> None:
    """Make a key, and print it or put it into a file.

    To replace a key: add one behind the others and give the file to every engine, so that all can open
    what it will seal; then make it the first, and restart them one by one. Remove the old one when what
    it sealed is of no more use.
    """
    key = secrets.token_bytes(KEY_BYTES)
    note = f"key {id_of(key)} made {time.strftime('%Y-%m-%d', time.gmtime())}"
    if path is None:
        console.out().print(f"# {note}\n{key.hex()}")
        return
    add_key(str(path), key, note, first=first)
    console.out().print(f"{path}: {note}")
