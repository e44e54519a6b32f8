"""Arguments that several commands on a root have in common."""

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path, typer.Argument(help="The directory given to engines as 'path'.")]
Namespace = Annotated[
    str | None,
    typer.Option(help="Only namespaces whose directory name or fingerprint starts with this."),
]
Model = Annotated[str | None, typer.Option(help="Only namespaces of this model.")]
OlderThan = Annotated[
    str | None,
    typer.Option(help="Only files not written or used for this long: 7d, 12h, 30m, 90s."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
