"""The fleet index and the reuse query, beside NVIDIA Dynamo's index in Rust, at the same work.

Both are asked from Python, round by round in turn; figures are medians over rounds. Dynamo's runs in an
environment of its own below build/, which the first run installs; without it, ours is measured alone. Its
query answers for full attention only; it takes events as JSON, ours as the engines' own msgpack.
"""

import argparse
import json
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kvstrata.chunks import block_hashes
from kvstrata.fleet.index import FleetIndex
from kvstrata.routing.fleet_reuse import warm
from lab import report
from lab.bench import index_fleet as fleet
from lab.bench.results import save, spread
from lab.plots import Line, growth

ROUNDS = 9
BLOCKS, REPLICAS = 8192, 64
TOKENS = BLOCKS * fleet.BLOCK
PACKAGE = "ai-dynamo-runtime==1.6.1"
ENVIRONMENT = report.BUILD / "dynamo-venv"
PICTURE = report.BUILD / "bench" / "index.png"
RIVAL = Path(__file__).with_name("index_rival.py")
GROW_BLOCKS = (1 << 10, 1 << 12, 1 << 13, 1 << 15, 1 << 17, 1 << 20)
GROW_REPLICAS = (1, 8, 64, 256, 1024)
RIVALS_MOST = 1 << 23
"""Blocks times replicas that the rival is filled with: beyond, it takes minutes and gigabytes."""
LABELS = (f"blocks of the prompt ({REPLICAS} replicas)", f"replicas ({BLOCKS} blocks)")
Samples = dict[str, list[float]]


class Rival:
    """Dynamo's index in its own process; every order is a method of `index_rival.Rival`."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, RIVAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, do: str, **order: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"Dynamo's process ended with code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


def start_rival(console: Console) -> Rival | None:
    """Dynamo's process, its package installed if need be; None, and why on the console, without it."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", PACKAGE],
            check=True,
            capture_output=True,
            timeout=600,
        )
        rival = Rival(python)
        console.print(f"beside ai-dynamo-runtime {rival('version')}")
    except (OSError, subprocess.SubprocessError) as error:
        console.print(
            f"[yellow]without Dynamo, which could not be installed or started: {error}[/]"
        )
        return None
    return rival


def queries(rounds: int, rival: Rival | None) -> Samples:
    """Milliseconds of one answer, by case."""
    ask = fleet.question
    ours = {
        "reuse_ms_1_group": ask(BLOCKS, REPLICAS, 1),
        "reuse_ms_3_groups": ask(BLOCKS, REPLICAS, 3),
        "reuse_cut_ms_1_group": ask(BLOCKS, REPLICAS, 1, "cut"),
        "reuse_cut_ms_3_groups": ask(BLOCKS, REPLICAS, 3, "cut"),
        "reuse_holes_ms_3_groups": ask(BLOCKS, REPLICAS, 3, "holes"),
        "reuse_miss_ms_3_groups": ask(BLOCKS, REPLICAS, 3, "miss"),
        "reuse_memory_ms_3_groups": ask(BLOCKS, REPLICAS, 3, "warm", "CPU"),
        "reuse_storage_ms_3_groups": ask(BLOCKS, REPLICAS, 3, "warm", "STORAGE"),
    }
    own = fleet.own_blocks(BLOCKS, REPLICAS)
    samples: Samples = {}
    for _ in range(rounds):
        for name, question in ours.items():
            samples.setdefault(name, []).append(question.seconds(20) * 1e3)
        for cut in (False, True) if rival else ():
            assert rival
            rival("fill", blocks=BLOCKS, replicas=REPLICAS, own=own, cut=cut)
            name = "dynamo_match_cut_ms" if cut else "dynamo_match_ms"
            samples.setdefault(name, []).append(rival("match", times=20) * 1e3)
    return samples


def ingest(rounds: int, rival: Rival | None) -> Samples:
    """Events and blocks a second, decoding included."""
    cases = {1: (32_768, 64), 128: (2_048, 8)}
    arriving = {each: fleet.payloads(n, each, batch) for each, (n, batch) in cases.items()}
    leaving = {each: fleet.payloads(n, each, batch, True) for each, (n, batch) in cases.items()}
    samples: Samples = {}

    def note(name: str, amount: int, seconds: float) -> None:
        samples.setdefault(name, []).append(amount / seconds)

    for _ in range(rounds):
        for each, (events, _batch) in cases.items():
            index = FleetIndex()
            replica = index.add("replica")
            names = ("ingest_events_per_s_1", "remove_events_per_s_1")
            if each > 1:
                names = (f"ingest_blocks_per_s_{each}", "remove_blocks_per_s")
            amount = events if each == 1 else events * each
            for name, batches in zip(names, (arriving[each], leaving[each]), strict=True):
                note(name, amount, fleet.apply_seconds(index, replica, batches))
            assert index.table.live == 0
            if rival:
                told = rival("ingest", events=events, each=each)
                note(f"dynamo_{names[0]}", amount, told["stored"])
                note(f"dynamo_{names[1]}", amount, told["removed"])
    return samples


def keys(rounds: int, rival: Rival | None) -> Samples:
    """Milliseconds from token ids to keys, and to forget a replica."""
    samples: Samples = {"keys_cold_ms": [], "keys_known_ms": [], "forget_replica_ms": []}
    for _ in range(rounds):
        cold, known = fleet.key_seconds(TOKENS)
        samples["keys_cold_ms"].append(cold * 1e3)
        samples["keys_known_ms"].append(known * 1e3)
        samples["forget_replica_ms"].append(fleet.clear_seconds(BLOCKS, REPLICAS) * 1e3)
        if rival:
            samples.setdefault("dynamo_keys_ms", []).append(rival("keys", tokens=TOKENS) * 1e3)
    return samples


def memory(rival: Rival | None) -> Samples:
    """Bytes for each distinct block, of processes that did nothing else."""
    command = [sys.executable, "-m", "lab.bench.index", "--resident"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    samples = {"bytes_per_block": [float(told)]}
    if rival:
        alone = Rival(ENVIRONMENT / "bin" / "python")
        size = alone("resident", blocks=BLOCKS, replicas=REPLICAS)
        alone.close()
        samples["dynamo_bytes_per_block"] = [size / (BLOCKS * (REPLICAS + 1))]
    return samples


def grow(rounds: int, rival: Rival | None) -> tuple[Samples, Sequence[Sequence[Line]]]:
    """Milliseconds of one answer by blocks and by replicas, and the lines of their pictures."""
    samples: Samples = {}
    axes = (
        ("blocks", [(blocks, REPLICAS) for blocks in GROW_BLOCKS]),
        ("replicas", [(BLOCKS, replicas) for replicas in GROW_REPLICAS]),
    )
    panels = []
    for axis, sizes in axes:
        lines: dict[str, list[tuple[float, float]]] = {}
        for blocks, replicas in sizes:
            x = blocks if axis == "blocks" else replicas
            times = 1 if blocks > BLOCKS * 4 else 10
            for groups in (1, 3):
                question = fleet.question(blocks, replicas, groups)
                found = [question.seconds(times) * 1e3 for _ in range(rounds)]
                samples[f"{axis} {x}, {groups} groups"] = found
                name = "kvstrata, full attention" if groups == 1 else "kvstrata, three kinds"
                lines.setdefault(name, []).append((x, statistics.median(found)))
            if rival and blocks * replicas <= RIVALS_MOST:
                own = fleet.own_blocks(blocks, replicas)
                rival("fill", blocks=blocks, replicas=replicas, own=own, cut=False)
                found = [rival("match", times=times) * 1e3 for _ in range(rounds)]
                samples[f"{axis} {x}, dynamo"] = found
                lines.setdefault("Dynamo, full attention", []).append((x, statistics.median(found)))
        panels.append([Line(name, points) for name, points in lines.items()])
    return samples, panels


NOTES = {
    "reuse_*": f"milliseconds from an array of hashes to the answer for {REPLICAS} replicas, {BLOCKS} "
    "blocks; cut: every replica at another block; holes: no window whole; miss: at block 0; memory, "
    "storage: the prompt is in host memory, or in one shared store, and nothing on the device",
    "dynamo_match_*": "find_matches of Dynamo's RadixTree on the same blocks and replicas",
    "ingest_*, remove_*": "a second, from the bytes of batches (64 events of 1 block, or 8 of 128) to the "
    "index; dynamo_*: from JSON, its Python interface's form, one event at a time",
    "bytes_per_block": f"resident, {REPLICAS} replicas share {BLOCKS} blocks and have as many of their own",
    "keys_*": f"{TOKENS} token ids to keys: seen before, and never; dynamo_keys_ms: its hash of them",
    "forget_replica_ms": "removal of one of the replicas: one pass over the table",
    "samples, blocks N / replicas N": "milliseconds of one answer",
}


def main() -> None:
    """Measure, print tables, write `build/bench/index.json` and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resident:
        print(fleet.resident_bytes_per_block(BLOCKS, REPLICAS))
        return
    console = Console(width=120)
    rounds = arguments.rounds
    warm()
    block_hashes.warm()
    rival = start_rival(console)
    samples = {**queries(rounds, rival), **ingest(rounds, rival), **keys(rounds, rival)}
    samples |= memory(rival)
    grown, panels = grow(max(rounds // 2, 1), rival)
    if rival:
        rival.close()
    table = Table(
        "figure", "median (min - max, samples)", "", title=f"{report.machine()['processor']}"
    )
    for name, values in samples.items():
        # Thousands a second, and microseconds: digits that can be read.
        factor, unit = (1e-3, "thousand a second") if "per_s" in name else (1e3, "us")
        if "bytes" in name:
            factor, unit = 1, "bytes"
        table.add_row(name, spread([value * factor for value in values]), unit)
    console.print(table)
    growth(PICTURE, panels, LABELS)
    figures = {name: statistics.median(values) for name, values in samples.items()}
    console.print(f"wrote {save('index', figures, NOTES, {**samples, **grown})} and {PICTURE}")


if __name__ == "__main__":
    main()
