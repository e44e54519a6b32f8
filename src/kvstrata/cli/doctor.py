"""`kvstrata doctor`: what will be cached, what makes hits zero or wrong, and the remedy."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from kvstrata.cli import console
from kvstrata.cli.scrape import ask
from kvstrata.doctor.engine import GroupRow, check_engine, group_rows, smallest_boundary
from kvstrata.doctor.facts import EngineFacts, NamespaceFacts, ReplicaFacts
from kvstrata.doctor.findings import CODES, Finding, Severity, failed, markdown, ordered
from kvstrata.doctor.places import check_path, check_shm
from kvstrata.doctor.probe import probe
from kvstrata.doctor.replicas import check_against, check_namespaces, check_replicas
from kvstrata.errors import ConfigError
from kvstrata.sizes import format_size
from kvstrata.tiers.catalog import iter_namespaces

FOUND = 1
"""Exit status when something is wrong."""
BUILD_SECONDS = 300.0
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


@dataclass(slots=True)
class Examination:
    """Everything that one call looked at and found.

    Attributes:
        facts: of the engine that options describe, if any.
        replicas: running engines that were asked.
        findings: errors first.
    """

    facts: EngineFacts | None = None
    replicas: list[ReplicaFacts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class Built(msgspec.Struct):
    """See `kvstrata.vllm_plugin.offline.Answer`."""

    facts: EngineFacts | None
    covers: dict[str, Any]
    shm_dir: str
    error: str


def doctor(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Directory or name of a model, as vLLM takes it.")
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="Address of a running engine; may be repeated.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="The directory given to engines as 'path'.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of all findings, and leave.")
    ] = False,
) -> None:
    """Say what will be cached, and which settings make hits zero, wrong or few, with remedies.

    With --model, every other option is vLLM's own, such as --kv-transfer-config, --block-size or
    --tensor-parallel-size. Exit status: 1 when an error is found (with --strict also a warning).
    """
    if as_markdown:
        console.out().print(markdown(), end="")
        return
    if context.args and model is None:
        raise ConfigError(f"{context.args[0]}: options of vLLM need --model")
    if model is None and not url and path is None:
        raise ConfigError("nothing to look at: give --model, --url or --path")
    seen = examine(model, list(context.args), url or [], path)
    if as_json:
        console.print_json(document(seen))
    else:
        _show(seen)
    if failed(seen.findings, strict):
        raise typer.Exit(FOUND)


def examine(
    model: str | None, arguments: list[str], urls: list[str], path: Path | None
) -> Examination:
    """Look at all that was named.

    Args:
        model: of the engine to be; None for none.
        arguments: vLLM's own for it.
        urls: of running engines.
        path: root of a filesystem tier.

    Raises:
        ConfigError: the engine's options, an address or the directory are wrong.
    """
    seen = Examination()
    if model is not None:
        answer = build(["--model", model, *arguments])
        assert answer.facts is not None
        seen.facts = answer.facts
        seen.findings += check_engine(answer.facts)
        seen.findings += _places(answer.facts, answer.shm_dir)
        root = answer.facts.path
        if root is not None and Path(root).is_dir():
            seen.findings += check_against(answer.covers, model, _namespaces(Path(root)))
    if path is not None and (seen.facts is None or seen.facts.path != str(path)):
        console.require_root(path)
        seen.findings += check_path(probe(str(path)), None)
    namespaces = _namespaces(path)
    if urls:
        seen.replicas = [ask(url) for url in urls]
        seen.findings += check_replicas(seen.replicas, namespaces)
    else:
        seen.findings += check_namespaces(namespaces)
    seen.findings = ordered(seen.findings)
    return seen


def build(arguments: list[str]) -> Built:
    """Facts of the engine that vLLM would start with these arguments, from a process of its own.

    Raises:
        ConfigError: vLLM is not here, or refuses the arguments.
    """
    environment = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **os.environ,
    }
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "answer.json"
        command = [sys.executable, "-m", "kvstrata.vllm_plugin.offline", str(out), *arguments]
        try:
            run = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=BUILD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"vLLM did not answer within {BUILD_SECONDS:g} s") from None
        if not out.exists():
            tail = run.stdout.strip().splitlines()
            raise ConfigError(f"vLLM refused: {tail[-1] if tail else 'no reason given'}")
        answer = msgspec.json.decode(out.read_bytes(), type=Built)
    if answer.error:
        raise ConfigError(answer.error)
    return answer


def _places(facts: EngineFacts, shm_dir: str) -> list[Finding]:
    found = list(check_shm(probe(shm_dir), facts.arena_bytes))
    if facts.path is not None:
        largest = max((g.payload_bytes for g in facts.groups), default=0)
        place = probe(facts.path, largest, write=not facts.read_only)
        longest = sum(row.longest_bytes for row in group_rows(facts))
        found += check_path(place, longest, facts.read_only)
    return found


def _namespaces(path: Path | None) -> list[NamespaceFacts]:
    if path is None:
        return []
    return [NamespaceFacts(n.path.name, n.model, n.covers) for n in iter_namespaces(path)]


def document(seen: Examination) -> dict[str, Any]:
    """What `--json` prints."""
    engine: dict[str, Any] | None = None
    if seen.facts is not None:
        engine = msgspec.to_builtins(seen.facts)
        engine["groups"] = [dataclasses.asdict(row) for row in group_rows(seen.facts)]
        engine["smallest_boundary"] = smallest_boundary(seen.facts)
        del engine["layers"]
    return {
        "engine": engine,
        "replicas": [msgspec.to_builtins(replica) for replica in seen.replicas],
        "findings": [
            {**dataclasses.asdict(finding), "means": CODES[finding.code].means}
            for finding in seen.findings
        ],
    }


def _show(seen: Examination) -> None:
    out = console.out()
    if seen.facts is not None:
        _show_engine(seen.facts)
    for replica in seen.replicas:
        if not replica.error:
            where = replica.namespace or "not said yet"
            out.print(f"{replica.url}: {', '.join(replica.models)}; namespace {where}")
    if seen.replicas:
        out.print()
    for finding in seen.findings:
        style = _STYLES[finding.severity]
        out.print(f"{finding.severity.value:<8}", style=style, end="")
        out.print(f"{finding.code}: {finding.subject}: {finding.message}")
        out.print(f"        {CODES[finding.code].means}")
        out.print(f"        remedy: {finding.remedy}")
    counts = {kind: sum(f.severity is kind for f in seen.findings) for kind in Severity}
    out.print(", ".join(f"{n} {kind.value}{'' if n == 1 else 's'}" for kind, n in counts.items()))


def _show_engine(facts: EngineFacts) -> None:
    out = console.out()
    exact = "" if facts.exact else " (estimated)"
    out.print(
        f"{facts.model}: KV cache groups{exact}; block and chunk in tokens, bytes of a chunk over all ranks"
    )
    numbers = ("group", "layers", "block", "chunk", "bytes")
    table = console.table(
        "group", "kind", "layers", "block", "chunk", "bytes", "a boundary needs", numbers=numbers
    )
    for row in group_rows(facts):
        table.add_row(
            str(row.group),
            row.kind + (f" {row.window_tokens}" if row.window_tokens else ""),
            str(row.layers),
            str(row.tokens_per_block),
            str(row.tokens_per_chunk),
            format_size(row.chunk_bytes),
            _needs(row),
        )
    out.print(table)
    longest = sum(row.longest_bytes for row in group_rows(facts))
    out.print(
        f"a prompt shorter than {smallest_boundary(facts)} tokens is never stored; one of "
        f"{facts.max_model_len} loads {format_size(longest)}"
    )
    out.print()


def _needs(row: GroupRow) -> str:
    if row.boundary_chunks is None:
        return "all chunks to its left"
    return f"the last {row.boundary_chunks}" if row.boundary_chunks > 1 else "the last one"
