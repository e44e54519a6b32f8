"""The router beside vllm-router and a plain proxy, over engines that answer at once.

All routers run at the same time over the same engines, and take turns with the same prompts, round by round;
figures are medians over rounds. vllm-router runs in an environment of its own below build/, which the first
run installs; without it, the rest is measured. Its policy is kv_aware, and it is told of the engines' events
as ours is. Time to the first token is one request's at a time; throughput is told for each second of the
router's processor time, because the engines and the clients share the machine.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import report
from lab.bench import router_fleet as fleet
from lab.bench.results import save
from lab.bench.router_load import Line, Work, WrongAnswerError, post, requests, streams
from lab.bench.router_prompts import (
    CHARACTERS,
    Held,
    Prompts,
    body,
    ensure_tokenizer,
    listed,
)
from lab.exclusive import OccupiedError, exclusive

ROUNDS = 9
ENGINES = 4
SHORT, LONG = 1 << 10, 1 << 17
STREAMS, STREAM_TOKENS = 64, 150
CALLERS, SECONDS = 16, 1.0
ASKED = {"1k": 20, "128k": 5, "128k_new": 3, "text_32k": 5, "text_32k_new": 3}
"""Requests of a kind to one router in a round, of prompts whose beginning is held, or that are new."""
OURS = "seconds"
FOLLOWING = (OURS, "seconds-2", "vllm-router")
"""Routers that go by the engines' events."""
DIRECT = "direct"
MARKDOWN = report.BUILD / "bench" / "router.md"
_FOLLOWED = 150.0
"""Seconds in which a router has to follow the engines: ours compiles on a machine's first time."""
Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Bench:
    """What runs, and what is asked.

    Attributes:
        engines: that all routers send to.
        routers: under measurement.
        second: one more process of ours, for the measurement of two.
        prompts: draws them.
        held: by kind of request: what each engine holds.
    """

    engines: fleet.Engines
    routers: Sequence[fleet.Running]
    second: fleet.Running
    prompts: Prompts
    held: Mapping[str, Sequence[Held]]


@contextlib.contextmanager
def running(console: Console) -> Iterator[Bench]:
    """All processes, once the routers know what the engines hold."""
    tokenizer = ensure_tokenizer()
    prompts = Prompts(1, tokenizer)
    with contextlib.ExitStack() as ending:
        engines = ending.enter_context(fleet.engines(ENGINES, tokenizer))
        every = range(ENGINES)
        held = {
            "1k": [prompts.held(engine, SHORT) for engine in every],
            "128k": [prompts.held(engine, LONG) for engine in every],
            "text_32k": [prompts.held_text(engine) for engine in every],
        }
        second = fleet.ours("seconds", engines, tokenizer, "seconds-2")
        routers = [
            fleet.ours("seconds", engines, tokenizer, OURS),
            fleet.ours("least-loaded", engines, tokenizer, "least-loaded"),
            fleet.plain(engines),
        ]
        why = fleet.install()
        if why is None:
            routers.append(fleet.vllm_router(engines))
        else:
            console.print(f"[yellow]without vllm-router, which could not be installed: {why}[/]")
        for one in (*routers, second):
            ending.callback(one.close)
        for one in (*routers, second):
            one.wait()
        time.sleep(1)  # vllm-router hears no event from before it has subscribed
        engines.publish([one for several in held.values() for one in several])
        made = Bench(engines, routers, second, prompts, held)
        for one in (*routers, second):
            if one.name in FOLLOWING and not _follows(made, one):
                console.print(f"[yellow]{one.name} does not send prompts to who holds them[/]")
            _show_all(made, one)
        yield made


def _follows(bench: Bench, router: fleet.Running) -> bool:
    """Whether it comes to send prompts to the engines that hold them."""
    until = time.monotonic() + _FOLLOWED
    line = Line(router.port, router.name)
    while time.monotonic() < until:
        asked = [(one, post(bench.prompts.known(one))) for one in bench.held["128k"]]
        if all(line.ask(request)[1] == one.engine for one, request in asked):
            break
        time.sleep(0.5)
    line.close()
    return time.monotonic() < until


def _show_all(bench: Bench, router: fleet.Running) -> None:
    """Let a router see every beginning that is held, so that none is new to it later."""
    line = Line(router.port, router.name)
    for several in bench.held.values():
        for one in several:
            line.ask(post(bench.prompts.known(one)))
    line.close()


def first_tokens(bench: Bench, samples: Samples, turn: int) -> None:
    """One round of times to the first token, of one request at a time."""
    targets = [DIRECT, *(one.name for one in bench.routers)]
    targets = targets[turn % len(targets) :] + targets[: turn % len(targets)]
    lines = {one.name: Line(one.port, one.name) for one in bench.routers}
    straight = [Line(port, DIRECT) for port in bench.engines.ports]
    for kind, count in ASKED.items():
        found: Samples = {}
        for number in range(count):
            engine = (turn + number) % ENGINES
            request = post(_body(bench, kind, engine))
            for name in targets:
                line = straight[engine] if name == DIRECT else lines[name]
                seconds, answered = line.ask(request)
                found.setdefault(name, []).append(seconds * 1e3)
                if not kind.endswith("_new"):
                    samples.setdefault(f"{name} to_owner_{kind}", []).append(answered == engine)
        floor = statistics.median(found[DIRECT])
        for name, values in found.items():
            added = statistics.median(values) - (0 if name == DIRECT else floor)
            shown = "ttft_ms" if name == DIRECT else "added_ttft_ms"
            samples.setdefault(f"{name} {shown}_{kind}", []).append(added)
    for one in (*lines.values(), *straight):
        one.close()


def _body(bench: Bench, kind: str, engine: int) -> bytes:
    if kind == "128k_new":
        return bench.prompts.new(LONG)
    if kind == "text_32k_new":
        return body(json.dumps(bench.prompts.new_text()), 2)
    return bench.prompts.known(bench.held[kind][engine])


def throughput(bench: Bench, samples: Samples, turn: int) -> None:
    """One round of many streams, and of many short requests."""
    ids = listed(bench.held["1k"][0].ids[:64])
    stream, short = post(body(ids, STREAM_TOKENS)), post(body(ids, 1, stream=False))
    routers = [*bench.routers[turn % len(bench.routers) :]]
    routers += bench.routers[: turn % len(bench.routers)]

    def note(name: str, what: str, work: Work) -> None:
        samples.setdefault(f"{name} {what}_per_cpu_s", []).append(work.per_cpu_second)
        samples.setdefault(f"{name} {what}_per_s", []).append(work.done / work.seconds)

    for one in routers:
        note(one.name, "stream_tokens", streams([one.port], stream, STREAMS, one.cpu))
        note(one.name, "requests", requests([one.port], short, CALLERS, SECONDS, one.cpu))
    both = [one for one in bench.routers if one.name == OURS] + [bench.second]
    ports = [one.port for one in both]

    def cpu() -> float:
        return sum(one.cpu() for one in both)

    note("two processes", "requests", requests(ports, short, CALLERS, SECONDS, cpu))


def decisions(rounds: int) -> Samples:
    """Milliseconds of a decision and of a body's reading, from a process that does nothing else."""
    command = [sys.executable, "-m", "lab.bench.router_decision", str(rounds)]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=report.REPOSITORY, timeout=300
    )
    found: Samples = json.loads(run.stdout)
    return found


_ORJSON = (
    "import orjson, sys, time, json\n"
    "data, found = sys.stdin.buffer.read(), []\n"
    "for _ in range(25):\n"
    "    begin = time.perf_counter(); orjson.loads(data)\n"
    "    found.append((time.perf_counter() - begin) * 1e3)\n"
    "print(json.dumps(found))"
)


def orjson_parses(data: bytes) -> Samples:
    """Milliseconds of orjson on a body, in vllm-router's environment, which has it; nothing without."""
    command = [str(fleet.ENVIRONMENT / "bin" / "python"), "-c", _ORJSON]
    try:
        told = subprocess.run(command, input=data, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"parse_orjson_ms": json.loads(told.stdout)}


def figures_of(samples: Samples) -> dict[str, float]:
    """Medians by the names of figures: `added_ttft_ms_1k` is ours with the policy `seconds`."""
    figures = {}
    for name, values in samples.items():
        who, _, what = name.rpartition(" ")
        who = "" if who in (OURS, "") else who.replace("-", "_").replace(" ", "_") + "_"
        figures[f"{who}{what}"] = (
            statistics.fmean(values) if "to_owner" in what else statistics.median(values)
        )
    return figures


NOTES = {
    "": f"without a name in front: the policy seconds, {ENGINES} engines whose events are followed",
    "added_ttft_ms_*": "milliseconds to the first token through the router, less those without one (direct): "
    f"medians of a round, of prompts of 1K or 128K token ids or {CHARACTERS} characters; their beginning is "
    "held by an engine and was seen by the router before, but for _new",
    "to_owner_*": "share of those that went to the engine that holds the beginning",
    "stream_tokens_per_cpu_s": f"tokens of {STREAMS} streams, one each in every 10 ms, for each second "
    "of the router's processor time; _per_s: as they came",
    "requests_per_cpu_s": f"short requests, {CALLERS} at a time, likewise",
    "two_processes_*": "two routers of the policy seconds, each with half of the clients",
    "decision_*": "milliseconds from a read body to the choice: 128K ids, 64 replicas each of which holds "
    "another length of the prompt; known: but for the last 64 ids seen before; unheld: seen before, held "
    "by nobody; cold: never seen; noted: to remember what was sent, after the choice",
    "parse_*": "milliseconds to read a body of body_kb, by parser; ours: the router's own, all that it needs",
}


def tables(samples: Samples) -> list[list[list[str]]]:
    """Rows of cells, the first the head: routers side by side, and what belongs to none of them."""
    names = list(dict.fromkeys(name.rpartition(" ")[0] for name in samples if " " in name))
    kinds = list(dict.fromkeys(name.rpartition(" ")[2] for name in samples if " " in name))
    beside = [["figure", *names]]
    for kind in kinds:
        beside.append([kind, *(_cell(kind, samples.get(f"{name} {kind}", [])) for name in names)])
    alone = [["figure", "median (min - max, samples)"]]
    alone += [[name, _cell(name, values)] for name, values in samples.items() if " " not in name]
    return [beside, alone]


def _cell(kind: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    if "to_owner" in kind:
        return f"{statistics.fmean(values):.2f}"
    digits, unit = (1, " k") if kind.endswith("_s") else (2, "")
    shown = [value / 1e3 for value in values] if unit else values
    low, high = min(shown), max(shown)
    return f"{statistics.median(shown):.{digits}f}{unit} ({low:.{digits}f}-{high:.{digits}f}, {len(values)})"


def show(console: Console, samples: Samples) -> Path:
    """Print tables, and write them for documents."""
    lines: list[str] = []
    for head, *rows in tables(samples):
        table = Table(*head, title=str(report.machine()["processor"]))
        for row in rows:
            table.add_row(*row)
        console.print(table)
        lines += ["", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))]
    MARKDOWN.parent.mkdir(parents=True, exist_ok=True)
    MARKDOWN.write_text("\n".join(lines[1:]) + "\n")
    return MARKDOWN


def main() -> None:
    """Measure, print tables, write `build/bench/router.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    console = Console(width=180)
    try:
        with exclusive(report.MEASURING):
            _measure(console, rounds)
    except (OccupiedError, WrongAnswerError, OSError, subprocess.SubprocessError) as error:
        console.print(f"[red]{error}[/]", highlight=False)
        sys.exit(1)


def _measure(console: Console, rounds: int) -> None:
    console.print(f"{report.machine()}\n{report.versions()}\nbeside {fleet.PACKAGE}")
    samples: Samples = {}
    with running(console) as bench:
        for turn in range(rounds):
            first_tokens(bench, samples, turn)
            throughput(bench, samples, turn)
        for one in bench.routers:
            samples[f"{one.name} resident_mib"] = [one.memory()]
        data = bench.prompts.new(LONG)
    samples |= decisions(rounds)
    samples |= orjson_parses(data)
    written = show(console, samples)
    console.print(f"wrote {save('router', figures_of(samples), NOTES, samples)} and {written}")


if __name__ == "__main__":
    main()
