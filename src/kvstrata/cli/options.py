"""`kvstrata options`: the table of options."""

from typing import Annotated

import typer

from kvstrata.cli import console
from kvstrata.options import ENGINE_KEYS, option_table


def markdown() -> str:
    """The tables of options and of the engine's own keys, as they stand in `docs/options.md`."""
    lines = ["| option | default | allowed | what it does |", "|---|---|---|---|"]
    for row in option_table():
        default = row.default if row.default[0].isalpha() and " " in row.default else None
        shown = default or f"`{row.default}`"
        lines.append(f"| `{row.name}` | {shown} | {row.allowed} | {row.doc} |")
    lines += ["", "| key of vLLM | what it does there |", "|---|---|"]
    lines += [f"| `{name}` | {doc} |" for name, doc in ENGINE_KEYS.items()]
    return "\n".join(lines) + "\n"


def options(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of docs/options.md.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every option of kv_connector_extra_config with its default."""
    if as_json:
        rows = [row._asdict() for row in option_table()]
        console.print_json({"options": rows, "engine_keys": dict(ENGINE_KEYS)})
    elif as_markdown:
        console.out().print(markdown(), end="")
    else:
        shown = console.table("option", "default", "allowed", "what it does")
        for row in option_table():
            shown.add_row(*row)
        console.out().print(shown)
        keys = console.table("key of vLLM", "what it does there")
        for name, doc in ENGINE_KEYS.items():
            keys.add_row(name, doc)
        console.out().print(keys)
