"""`kvstrata fleet`: follow engines' events, and say what each could reuse of a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from kvstrata.cli import console, fleet_view
from kvstrata.cli.prompt_tokens import read_prompt

NOT_ALL_SYNCED = 1

Replicas = Annotated[
    list[str] | None,
    typer.Option(
        "--replica",
        help="NAME=EVENTS[,REPLAY]: the engine's KV event and replay endpoints, such as "
        "a=tcp://10.0.0.7:5557,tcp://10.0.0.7:5558. Again with the same NAME for each further "
        "data-parallel rank.",
    ),
]
Urls = Annotated[
    list[str] | None,
    typer.Option("--url", help="An engine's API that runs kvstrata: it says where its events are."),
]
Topic = Annotated[str, typer.Option(help="Topic of the events of --replica.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait until all replicas are caught up with.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, once.")]

fleet = typer.Typer(no_args_is_help=True, help="Follow engines' KV events.")


@fleet.command()
def watch(
    replica: Replicas = None,
    url: Urls = None,
    topic: Topic = "",
    wait: Wait = 5.0,
    seconds: Annotated[
        float | None, typer.Option(help="End after so long; else at Ctrl-C.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show replicas: how far their events can be believed, blocks by tier and group, events per second.

    With --json one snapshot, as soon as all replicas are caught up with. Ends with status 0 if all are
    synced at the end, 1 if not.
    """
    # Compiled code comes with it, which other commands need not wait for.
    from kvstrata.cli import fleet_following

    with fleet_following.following(replica or [], url or [], topic) as followed:
        if as_json:
            fleet_following.settle(followed, wait)
            console.print_json(followed.as_dict())
        else:
            fleet_following.show(followed, seconds)
        synced = fleet_following.all_synced(followed)
    if not synced:
        raise typer.Exit(NOT_ALL_SYNCED)


@fleet.command()
def explain(
    prompt_file: Annotated[
        Path,
        typer.Option(help="A JSON array of token ids, or text with --tokenizer; - reads it in."),
    ],
    replica: Replicas = None,
    url: Urls = None,
    topic: Topic = "",
    wait: Wait = 5.0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json, or the model's directory.")
    ] = None,
    salt: Annotated[str | None, typer.Option(help="The request's cache salt.")] = None,
    as_json: Json = False,
) -> None:
    """Show how many tokens of a prompt each replica need not compute, and what keeps it from more.

    The numbers are boundaries in tokens: with the device's cache alone, with host memory, and with
    storage too. Ends with status 0, or 1 if some replica's events cannot be believed.
    """
    from kvstrata.cli import fleet_following

    tokens = read_prompt(prompt_file, tokenizer)
    with fleet_following.following(replica or [], url or [], topic) as followed:
        fleet_following.settle(followed, wait)
        told = fleet_following.explanations(followed, tokens, salt)
        synced = fleet_following.all_synced(followed)
    if as_json:
        console.print_json({"tokens": len(tokens), "replicas": told})
    else:
        console.out().print(f"{len(tokens):,} tokens")
        console.out().print(fleet_view.reuse(told))
    if not synced:
        raise typer.Exit(NOT_ALL_SYNCED)
