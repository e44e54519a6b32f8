"""The typer application: registers the commands and turns errors into one line and a status."""

from typing import Any

import typer
from typer.core import TyperGroup

from kvstrata import __version__
from kvstrata.cli import console
from kvstrata.cli.clearing import clear
from kvstrata.cli.doctor import doctor
from kvstrata.cli.evicting import evict_down
from kvstrata.cli.fleet import fleet
from kvstrata.cli.inspection import inspect
from kvstrata.cli.keygen import keygen
from kvstrata.cli.options import options
from kvstrata.cli.route import route
from kvstrata.cli.tenant import tenant
from kvstrata.cli.top import top
from kvstrata.cli.usage import usage
from kvstrata.cli.verification import verify
from kvstrata.errors import KVStrataError

USAGE_ERROR = 2


class Commands(TyperGroup):
    """The group of commands. What the user can correct ends with status 2 and no traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output went away, which click ends quietly
        except (KVStrataError, OSError) as error:
            console.err().print(f"kvstrata: {error}")
            raise typer.Exit(USAGE_ERROR) from None


def _version(wanted: bool) -> None:
    if wanted:
        console.out().print(__version__)
        raise typer.Exit


app = typer.Typer(
    name="kvstrata",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Look at, check and clear the files of a kvstrata cache, and find what keeps it from hitting.",
)


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    """Look at, check and clear the files of a kvstrata cache, and find what keeps it from hitting."""


app.command()(inspect)
app.command()(usage)
app.command()(verify)
app.command()(clear)
app.command("evict")(evict_down)
app.command()(keygen)
app.command()(options)
app.command()(route)
app.command()(tenant)
app.command()(top)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(doctor)
app.add_typer(fleet, name="fleet")


if __name__ == "__main__":
    app()
