"""`python -m lab.monitoring`: real engines and a router under load, collected by a real Prometheus.

Two engines over one small bounded directory, `kvstrata route` in front of them, minutes of conversations,
and a few stored files that are cut short on the way, so that faults are to be seen too. What Prometheus
collected stays in build/monitoring; the picture of the dashboard is drawn from its answers to the
dashboard's own queries (`lab.dashboard`).

  --record     also write the texts of all `/metrics` to tests/unit/deploy/recorded, for the tests of queries
  --again      draw once more from what the last run collected
"""

import argparse
import contextlib
import json
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvstrata.fleet.exposition import samples
from lab import dashboard, report
from lab.exclusive import OccupiedError, exclusive
from lab.fleet_client import LoadError, play
from lab.fleet_load import Scale, plan, renamed
from lab.fleet_stack import Engines, Fleet, RouterProcess, engines
from lab.prometheus import Prometheus, PrometheusError, prometheus
from lab.server import ServerError

DIRECTORY = report.BUILD / "monitoring"
RECORDED = report.REPOSITORY / "tests" / "unit" / "deploy" / "recorded"
RULES = report.REPOSITORY / "deploy" / "prometheus" / "kvstrata-alerts.yaml"
PICTURE = report.REPOSITORY / "docs" / "assets" / "dashboard.png"
TIMES = DIRECTORY / "times.json"
SEED = 11
WHAT = Engines(replicas=2, memory="48MiB", capacity="256MiB")
LOAD = Scale(
    applications=3, users=3, turns=(3, 5), think_seconds=(1.0, 5.0), apart_seconds=12.0, documents=3
)
DAMAGED_AFTER = 0.6
"""Of the run's time, until some files are cut short."""
DAMAGED = 40
OURS = ("vllm:", "kvstrata_router_")
LABELS_OF_A_RUN = ("events", "snapshots", "storage", "model_name")
"""Labels whose values are a run's own: addresses and names."""


def work(url: str, seconds: float) -> None:
    """Send two loads in turn until the time is over or the router gone; what storage has kept comes back."""
    end = time.monotonic() + seconds
    number = 0
    with contextlib.suppress(LoadError):
        while time.monotonic() < end:
            number = 1 - number
            play(url, WHAT.model, renamed(plan(SEED + number, LOAD), number))


def damage(root: Path) -> int:
    """Cut some of the stored files short; returns how many."""
    files = sorted(root.rglob("*.kv"))[:: max(1, len(list(root.rglob("*.kv"))) // DAMAGED)]
    for path in files:
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    return len(files)


def collect(seconds: float, record: bool) -> None:
    """Run everything once.

    Raises:
        ServerError: an engine or the router did not start.
        PrometheusError: there is no Prometheus, or it did not start.
    """
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    with engines(WHAT, DIRECTORY) as fleet, router(fleet) as route:
        jobs = {
            "engines": [f"127.0.0.1:{server.port}" for server in fleet.servers.values()],
            "router": [route.url.removeprefix("http://")],
        }
        rules = RULES if RULES.exists() else None
        with prometheus(DIRECTORY, jobs, rules):
            start = time.time()
            busy = threading.Thread(target=work, args=(route.url, seconds), daemon=True)
            busy.start()
            busy.join(seconds * DAMAGED_AFTER)
            print(f"{damage(DIRECTORY / 'kv')} files were cut short")
            for server in fleet.servers.values():
                server.client.reset_prefix_cache()
            busy.join(seconds * (1 - DAMAGED_AFTER))
            TIMES.write_text(json.dumps({"start": start, "end": time.time()}))
            if record:
                keep(jobs)


def router(fleet: Fleet) -> RouterProcess:
    """The router in front of the engines, at a port of its own."""
    return RouterProcess("seconds", fleet, WHAT.model, DIRECTORY)


def keep(jobs: Mapping[str, Sequence[str]]) -> None:
    """Write what each kind of process tells, without what is this run's own."""
    RECORDED.mkdir(parents=True, exist_ok=True)
    for job, targets in jobs.items():
        texts = []
        for target in targets:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                texts.append(answer.read().decode())
        (RECORDED / f"{job}.txt").write_text(shortened(texts))


def shortened(texts: Sequence[str]) -> str:
    """Each series of vLLM's and of ours in `texts` once, with the types of all metrics, without help."""
    types: set[str] = set()
    series: dict[str, float] = {}
    for text in texts:
        types.update(line for line in text.splitlines() if line.startswith("# TYPE "))
        for name, labels, value in samples(text):
            known = [
                f'{key}="{"-" if key in LABELS_OF_A_RUN else one}"' for key, one in labels.items()
            ]
            series[f"{name}{{{','.join(sorted(known))}}}"] = value
    lines = [*types, *(f"{name} {value:g}" for name, value in series.items())]
    kept = [line for line in lines if _name(line).startswith(OURS) and "_created" not in line]
    return "\n".join(sorted(kept, key=_place)) + "\n"


def _name(line: str) -> str:
    return line.split(" ")[2] if line.startswith("# TYPE ") else line.partition("{")[0]


def _place(line: str) -> tuple[str, bool, str]:
    return (_name(line), not line.startswith("# TYPE "), line)


def draw(path: Path) -> None:
    """The picture, from what was collected last. Raises PrometheusError."""
    times = json.loads(TIMES.read_text())
    with prometheus(DIRECTORY, {}) as server:
        dashboard.draw(path, _asking(server, times), times)


def _asking(server: Prometheus, times: Mapping[str, float]) -> dashboard.Ask:
    def ask(query: str) -> list[dashboard.Series]:
        return server.series(query, times["start"], times["end"], 2.0)

    return ask


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 2 if something could not be started."""
    parser = argparse.ArgumentParser(prog="python -m lab.monitoring", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    try:
        if not options.again:
            with exclusive(report.MEASURING):
                collect(options.minutes * 60, options.record)
        draw(options.picture)
    except (OccupiedError, ServerError, PrometheusError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.picture}: {options.picture.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
