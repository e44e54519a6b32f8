"""`kvstrata route`: one OpenAI endpoint in front of several engines."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from kvstrata import logs
from kvstrata.cli import console
from kvstrata.errors import ConfigError

log = logging.getLogger(__name__)


def route(
    replica: Annotated[
        list[str] | None,
        typer.Option(help="Address of an engine, such as http://127.0.0.1:8001; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file with replicas and settings; see docs/router.md."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; 127.0.0.1 unless set.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen at; 8000 unless set.")] = None,
    policy: Annotated[str | None, typer.Option(help="How a replica is chosen.")] = None,
    state: Annotated[
        str | None, typer.Option(help="A file that keeps what is learned over a restart.")
    ] = None,
) -> None:
    """Serve one OpenAI endpoint that sends each request to one of several engines.

    SIGHUP reads the file again; SIGTERM finishes what is under way and ends, a second one at once.
    """
    from kvstrata.router.config import read_config

    changes = {"host": host, "port": port, "policy": policy, "state": state}
    addresses = list(replica or [])
    settings = read_config(config, addresses, changes)
    if not settings.replica and settings.admin_key is None and config is None:
        raise ConfigError("no engine to route to: give --replica or --config")
    try:
        # Takes seconds: what is wrong with the settings is said before.
        from kvstrata.router.service import run
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"kvstrata route needs {error.name}, which vLLM's own server installs: install it here too"
        ) from None
    as_json = logs.configure(os.environ)

    def ready(taken: int) -> None:
        if as_json:
            log.info("listening at http://%s:%d", settings.host, taken)
        else:
            console.out().print(f"kvstrata route: listening at http://{settings.host}:{taken}")

    run(settings, lambda: read_config(config, addresses, changes), ready)
