"""What a soak found, for programs and for people."""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lab import report
from lab.soak.tally import TIERS, Tally

DIRECTORY = report.BUILD / "soak"
"""`report.json`, `report.md`, and the logs of the engines."""


def save(tally: Tally, facts: Mapping[str, Any], directory: Path = DIRECTORY) -> Path:
    """Write `report.json` and `report.md`.

    Args:
        tally: what was found.
        facts: how it was run.
        directory: made if it is missing.

    Returns:
        The JSON file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "report.json"
    document = {
        "run": dict(facts),
        "failed": tally.faults(),
        # Not asdict: it makes a counter of a counter's items.
        **{one.name: getattr(tally, one.name) for one in fields(tally)},
        "left": asdict(tally.left) if tally.left else None,
        "machine": report.machine(),
        "versions": report.versions(),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    (directory / "report.md").write_text(table(tally, facts))
    return path


def table(tally: Tally, facts: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    left = tally.left
    tokens = {tier: tally.counters[f"tokens{{tier={tier}}}"] for tier in TIERS}
    lines: list[tuple[str, object]] = [
        *facts.items(),
        ("rounds", tally.rounds),
        ("requests", tally.requests),
        ("wrong answers", tally.wrong),
        ("hangs", len(tally.hangs)),
        ("crashes", len(tally.crashes)),
        ("tracebacks in the engines' logs", len(tally.tracebacks)),
        ("faults done, of planned", f"{tally.done.total():,} of {tally.planned.total():,}"),
        ("system calls met", tally.met.total()),
        ("requests that a SIGKILL ended, asked again", tally.interrupted),
        *((f"prompt tokens: {tier}", count) for tier, count in tokens.items()),
        ("batch without a fault, seconds", _times(tally.calm)),
        ("batch with one, seconds", _times(tally.stormy)),
        ("checks for leaks", len(tally.checks)),
        ("leaked descriptors or threads", len(tally.leaks)),
        ("most descriptors, threads", f"{_most(tally, 'descriptors')}, {_most(tally, 'threads')}"),
        ("most resident memory, MiB", _most(tally, "resident") >> 20),
        ("resident memory, warm and at the last check, MiB", _resident(tally)),
        ("the same of the engine without offload", _ends(tally.plain)),
        ("storage used again after the last fault", "yes" if tally.taken_back else "no"),
        *([("most bytes stored, of the bound", _bound(tally))] if tally.bound else []),
        ("processes left", left.processes if left else "-"),
        ("files left in shared memory", left.shared_memory if left else "-"),
        ("temporary files, before and after clearing", _temporary(tally)),
    ]
    text = "| | |\n|---|---|\n" + "".join(f"| {name} | {_text(v)} |\n" for name, v in lines)
    text += "\n| fault | planned | done |\n|---|---|---|\n"
    for kind in sorted(tally.planned):
        text += f"| {kind} | {tally.planned[kind]} | {tally.done[kind]} |\n"
    text += _counts("| system calls met | times |", tally.met)
    return text + _counts("| what the engines counted | |", _told(tally.counters))


def _told(counters: Counter[str]) -> Counter[str]:
    names = (
        "evicted_bytes",
        "writes_dropped",
        "bad_records",
        "read_deadlines",
        "refused",
        "junctions",
        "hits",
    )
    return Counter({name: n for name, n in counters.items() if name.startswith(names)})


def _counts(head: str, counts: Mapping[str, int]) -> str:
    rows = "".join(f"| {name} | {count:,} |\n" for name, count in sorted(counts.items()))
    return f"\n{head}\n|---|---|\n{rows}"


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _times(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    late = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return f"median {statistics.median(seconds):.2f}, p99 {late:.2f}, most {max(seconds):.2f}"


def _most(tally: Tally, name: str) -> int:
    return tally.most.get(name, 0)


def _resident(tally: Tally) -> str:
    if not tally.checks:
        return "-"
    engines = sorted({check["engine"] for check in tally.checks})
    told = [[c["resident"] for c in tally.checks if c["engine"] == n] for n in engines]
    return "; ".join(_ends(values) for values in told)


def _ends(resident: Sequence[int]) -> str:
    return f"{resident[0] >> 20}, {resident[-1] >> 20}" if resident else "-"


def _bound(tally: Tally) -> str:
    return f"{tally.stored:,} of {tally.bound:,} ({100 * tally.stored / tally.bound:.1f} %)"


def _temporary(tally: Tally) -> str:
    left = tally.left
    return f"{left.temporary}, {left.temporary_left}" if left else "-"
