"""The router, seen: three real engines, one load, several policies.

`python -m lab.demo_fleet` (or `make demo-fleet`) prints a table as it goes and writes
`build/demo-fleet/report.json` and `build/demo-fleet/policies.png`. Every policy meets the same load, in a
text that no engine has seen, with empty devices and a router that has learned nothing. Each round has a
load of its own, so that the figures are not those of one chance. The times between requests follow the
machine: it is measured first how many new tokens the engines compute together.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kvstrata.errors import ConfigError
from kvstrata.routing.policies import NAMES
from lab import report
from lab.exclusive import OccupiedError, exclusive
from lab.fleet_client import LoadError, Sample, play
from lab.fleet_figures import OURS, Row, Run, behind, document, order, rows_of
from lab.fleet_load import Plan, paced, plan, renamed
from lab.fleet_plots import draw
from lab.fleet_stack import Engines, Fleet, RouterProcess, engines
from lab.models import ensure, prompt_ids
from lab.server import ServerError

DIRECTORY = report.BUILD / "demo-fleet"
POLICIES = (OURS, "round-robin", "tier-weighted")
BUSY = 0.4
"""Share of what the engines can compute that the load's new tokens take, if none is computed twice."""
CALIBRATION_TOKENS = 2000
LEAST_PACE, MOST_PACE = 0.5, 6.0


class Demo:
    """The runs so far.

    Args:
        console: for what a person follows.
        loads: one for each round, met by every policy.
        fleet: of engines that run.
        what: they are.
    """

    def __init__(
        self, console: Console, loads: Sequence[Plan], fleet: Fleet, what: Engines
    ) -> None:
        self.console = console
        self.runs: list[Run] = []
        self.paces = [1.0] * len(loads)
        self._loads = loads
        self._fleet = fleet
        self._what = what
        self._texts = 0

    def calibrate(self) -> None:
        """Measure how fast all engines together compute, and follow that pace."""

        def compute(number: int) -> None:
            server = self._fleet.servers[self._fleet.names[number]]
            server.client.complete(prompt_ids(CALIBRATION_TOKENS, seed=7000 + number), 1)

        begun = time.perf_counter()
        with ThreadPoolExecutor(self._what.replicas) as threads:
            list(threads.map(compute, range(self._what.replicas)))
        rate = self._what.replicas * CALIBRATION_TOKENS / (time.perf_counter() - begun)
        self.paces = [pace_of(load, rate) for load in self._loads]
        longest = max(
            pace * nominal_seconds(load) for pace, load in zip(self.paces, self._loads, strict=True)
        )
        self.console.print(
            f"the engines compute {rate:,.0f} new tokens a second together: requests begin within "
            f"{longest:.0f} s",
            highlight=False,
        )

    def run(self, policy: str, number: int) -> Run:
        """One policy's run in one round."""
        self._fleet.empty_devices()
        self._texts += 1
        load = paced(renamed(self._loads[number], self._texts), self.paces[number])
        with RouterProcess(policy, self._fleet, self._what.model, DIRECTORY) as router:
            before = self._fleet.tokens()
            samples, wall = play(router.url, self._what.model, load, self._told(policy, load))
            after = self._fleet.tokens()
            state = router.get("/admin/state")
            decisions = [router.get(f"/v1/route/decisions/{one.decision}") for one in samples]
        name = f"decisions-{policy}-{number + 1}.json"
        (DIRECTORY / name).write_text(json.dumps(decisions) + "\n")
        done = Run(
            policy=policy,
            number=number,
            samples=samples,
            wall=wall,
            tokens={
                name: {tier: count - before[name][tier] for tier, count in tokens.items()}
                for name, tokens in after.items()
            },
            accuracy={one["name"]: one["accuracy"] for one in state["replicas"]},
            load_average=os.getloadavg()[0],
        )
        self.runs.append(done)
        return done

    def _told(self, policy: str, load: Plan) -> "_Progress":
        return _Progress(self.console, policy, load.requests)


def nominal_seconds(load: Plan) -> float:
    """From the first request to the beginning of the last conversation, as it was drawn."""
    return max(one.start for one in load.conversations)


def pace_of(load: Plan, rate: float) -> float:
    """How much slower a load is met than it was drawn, by engines that compute `rate` tokens a second."""
    wanted = load.distinct_tokens / (BUSY * rate)
    return min(max(wanted / nominal_seconds(load), LEAST_PACE), MOST_PACE)


class _Progress:
    """A line for each quarter of a run."""

    def __init__(self, console: Console, policy: str, requests: int) -> None:
        self._console = console
        self._policy = policy
        self._requests = requests
        self._done = 0

    def __call__(self, sample: Sample) -> None:
        self._done += 1
        if self._done % max(self._requests // 4, 1) == 0:
            self._console.print(
                f"  {self._policy}: {self._done} of {self._requests} requests, the last one's first token "
                f"after {1000 * sample.ttft:,.0f} ms",
                style="dim",
                highlight=False,
            )


def table(rows: Sequence[Row]) -> Table:
    """The figures as a person reads them."""
    found = Table(title="the same load, policy by policy (tokens a run)", padding=(0, 0))
    for name in (
        *("policy", "TTFT\np50 ms", "TTFT\np90 ms", "re-\ncomputed", "from\ndevice"),
        *("from\nmemory", "from\nstorage", "prompt\ntokens/s", "wall\ns"),
    ):
        found.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for row in rows:
        found.add_row(
            row.policy,
            *(f"{value:,.0f}" for value in (row.ttft_p50, row.ttft_p90, row.computed)),
            *(f"{value:,}" for value in (row.device, row.memory, row.storage)),
            f"{row.prompt_tokens_per_s:,.0f}",
            f"{row.wall:,.1f}",
            style="bold" if row.policy == OURS else "",
        )
    return found


def save(demo: Demo, loads: Sequence[Plan], what: Engines) -> None:
    """Write report and picture."""
    rows = rows_of(demo.runs)
    written = {
        **document(demo.runs),
        "not_ahead": behind(rows),
        "loads": [
            {
                "seed": load.seed,
                "requests": load.requests,
                "prompt_tokens": load.prompt_tokens,
                "distinct_tokens": load.distinct_tokens,
                "scale": asdict(load.scale),
                "pace": pace,
            }
            for load, pace in zip(loads, demo.paces, strict=True)
        ],
        "engines": asdict(what),
        "machine": report.machine(),
        "versions": report.versions(),
    }
    (DIRECTORY / "report.json").write_text(json.dumps(written, indent=1) + "\n")
    draw(DIRECTORY / "policies.png", rows)


def show(console: Console, seed: int, rounds: int, policies: Sequence[str]) -> int:
    """All of it, from an empty directory; 1 if ours is not ahead."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    what, loads = Engines(), [plan(seed + number) for number in range(rounds)]
    ensure(what.model)
    console.print(
        f"{what.replicas} engines with {what.model}, each with {what.device_bytes >> 20} MiB on its device "
        f"and {what.memory} in memory, over one directory\n{sum(one.requests for one in loads)} requests in "
        f"{rounds} rounds with {sum(one.prompt_tokens for one in loads):,} tokens of prompts, of which "
        f"{sum(one.distinct_tokens for one in loads):,} differ (seeds {seed} to {seed + rounds - 1})",
        highlight=False,
    )
    with engines(what, DIRECTORY) as fleet:
        demo = Demo(console, loads, fleet, what)
        demo.calibrate()
        for number in range(rounds):
            for policy in order(policies, number):
                console.print(f"round {number + 1}, {policy}", highlight=False)
                demo.run(policy, number)
                save(demo, loads, what)
    rows = rows_of(demo.runs)
    console.print(table(rows))
    for name in ("report.json", "policies.png"):
        console.print(f"{Path(DIRECTORY / name).relative_to(report.REPOSITORY)}", highlight=False)
    lost = behind(rows)
    for line in lost:
        console.print(f"not ahead: {line}", style="bold red", highlight=False)
    return 1 if lost else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if ours is ahead of every other policy, 2 if a server or a request failed."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo_fleet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each policy")
    parser.add_argument("--seed", type=int, default=1, help="of the first round's load")
    parser.add_argument(
        "--policies", default=",".join(POLICIES), help=f"some of {', '.join(NAMES)}"
    )
    options = parser.parse_args(arguments)
    policies = options.policies.split(",")
    for name in policies:
        if name not in NAMES:
            parser.error(f"no policy {name!r}; choose from {', '.join(NAMES)}")
    if options.rounds < 1:
        parser.error("at least one round")
    console = Console()
    try:
        with exclusive(report.MEASURING):
            return show(console, options.seed, options.rounds, policies)
    except (OccupiedError, ServerError, LoadError, ConfigError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())
