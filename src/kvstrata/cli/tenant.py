"""`kvstrata tenant`: the name of whoever sends requests with a salt."""

import os
import sys
from typing import Annotated

import typer

from kvstrata.chunks.tenants import name_key, tenant_name
from kvstrata.cli import console
from kvstrata.errors import ConfigError
from kvstrata.fileio.key_file import find_keys


def tenant(
    salt: Annotated[
        str,
        typer.Argument(help='The `cache_salt` of its requests; "-" reads it from standard input.'),
    ],
    sealed: Annotated[
        bool,
        typer.Option("--sealed", help="Engines seal their files, with keys from KVSTRATA_KEYS."),
    ] = False,
    keys: Annotated[
        str | None, typer.Option(help="Engines seal their files with the keys of this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell a tenant's name: what the option `tenants` and `kvstrata clear --tenant` take.

    Whoever can read a process's command line sees a salt that is given there.
    """
    given = sys.stdin.read().rstrip("\r\n") if salt == "-" else salt
    if not given:
        raise ConfigError("a salt is not empty; requests without one belong to no tenant")
    key = name_key(find_keys(keys, os.environ)[0]) if sealed or keys is not None else b""
    name = tenant_name(given, key).hex()
    if as_json:
        console.print_json({"tenant": name})
    else:
        console.out().print(name)
