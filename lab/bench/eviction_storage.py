"""Which policy for writes to storage serves most tokens for each byte that is written.

Replays made-up traffic through the production planner, memory tiers and admission policies, over one bounded
storage tier that forgets by last use. Requests go to the engines in turn; all engines together have a tenth
of the bytes of everything distinct as memory. No engine runs and no clock is read: the figures are the same
on every machine.
"""

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from kvstrata.tiers.admission import ADMISSIONS
from lab.bench.replay import MODELS, limits, steps
from lab.bench.replay_storage import Result, replay
from lab.bench.results import save
from lab.bench.traces import STORAGE_TRACES, trace

REQUESTS = 600
SEED = 7
MEMORY_PERCENT = 10
PERCENTS = (20, 60)
"""Bounds of the storage, in percent of the bytes of everything distinct that a trace stores."""
ENGINES = (1, 4)
MODEL_NAMES = ("full", "mamba 3:1")
"""One that stores every chunk, and one whose states are large and few."""
MIB = 1 << 20
NOTES = {
    "served_vs_always_*": "tokens served from memory and storage over those with the policy 'always', "
    "geometric mean over all cases; worst_: the worst single case",
    "written_vs_always_*": "the same of the bytes written to storage",
    "served_per_byte_vs_always_*": "the same of tokens served for each byte written",
    "from_storage_per_MiB_*": "tokens that memory alone could not have served, of all cases, over the MiB "
    "written; a chunk of 128 tokens of full attention is 8 KiB here",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One trace, model, number of engines and bound.

    Attributes:
        trace: its name.
        model: its name.
        engines: that share the storage.
        percent: the storage's bound over all distinct bytes.
        tokens: prompt tokens of the whole trace.
        found: what each policy came to.
    """

    trace: str
    model: str
    engines: int
    percent: int
    tokens: int
    found: Mapping[str, Result]

    def served(self, policy: str) -> float:
        """Tokens served, over those with every chunk written."""
        return self.found[policy].served / self.found["always"].served

    def written(self, policy: str) -> float:
        """Bytes written, over those of every chunk."""
        return self.found[policy].written / self.found["always"].written

    def per_mib(self, policy: str) -> float:
        """Tokens served from storage for each MiB written."""
        return _per_mib([self.found[policy]])


def cases_of(trace_name: str, model_name: str, requests: int, seed: int) -> list[Case]:
    """Measure every number of engines, bound and policy."""
    model = MODELS[model_name]
    prompts = trace(STORAGE_TRACES[trace_name](seed), requests)
    tokens = sum(prompt.tokens for prompt in prompts)
    replayed = steps(prompts, model)
    distinct = limits(replayed, model).distinct_bytes
    return [
        Case(
            trace_name,
            model_name,
            engines,
            percent,
            tokens,
            {
                name: replay(
                    replayed,
                    model,
                    distinct * MEMORY_PERCENT // 100 // engines,
                    distinct * percent // 100,
                    policy,
                    engines,
                )
                for name, policy in ADMISSIONS.items()
            },
        )
        for engines in ENGINES
        for percent in PERCENTS
    ]


def cases(requests: int, seed: int) -> list[Case]:
    """Measure every case, as many at a time as there are processors."""
    work = [(name, model, requests, seed) for model in MODEL_NAMES for name in STORAGE_TRACES]
    context = multiprocessing.get_context("fork")
    with context.Pool(os.cpu_count()) as pool:
        return [case for found in pool.starmap(cases_of, work, 1) for case in found]


def figures(found: Sequence[Case]) -> dict[str, float]:
    """What each policy comes to."""
    result = {}
    for policy in ADMISSIONS:
        every = [case.found[policy] for case in found]
        result[f"from_storage_per_MiB_{policy}"] = _per_mib(every)
        if policy == "always":
            continue
        served = [case.served(policy) for case in found]
        written = [case.written(policy) for case in found]
        result[f"served_vs_always_{policy}"] = statistics.geometric_mean(served)
        result[f"worst_served_vs_always_{policy}"] = min(served)
        result[f"written_vs_always_{policy}"] = statistics.geometric_mean(written)
        result[f"served_per_byte_vs_always_{policy}"] = statistics.geometric_mean(
            [tokens / nbytes for tokens, nbytes in zip(served, written, strict=True)]
        )
    return result


def _per_mib(found: Sequence[Result]) -> float:
    written = sum(one.written for one in found)
    return MIB * sum(one.from_storage for one in found) / written if written else 0.0


def show(found: Sequence[Case], console: Console) -> None:
    """A row for each case."""
    others = [policy for policy in ADMISSIONS if policy != "always"]
    titles = ["trace", "model", "engines", "storage %", "always serves", "tokens/MiB"]
    for policy in others:
        titles += [f"{policy} serves", "writes", "tokens/MiB"]
    table = Table(*titles, title="share of prompt tokens served (always), and ratios to it")
    for case in found:
        row = [case.trace, case.model, str(case.engines), str(case.percent)]
        row += [f"{case.found['always'].served / case.tokens:.3f}", f"{case.per_mib('always'):.0f}"]
        for policy in others:
            ratios = (case.served(policy), case.written(policy))
            row += [*(f"{ratio:.3f}" for ratio in ratios), f"{case.per_mib(policy):.0f}"]
        table.add_row(*row)
    console.print(table)


def run(requests: int, seed: int, console: Console) -> None:
    """Measure, print a table, write `build/bench/eviction-storage.json`."""
    found = cases(requests, seed)
    show(found, console)
    results = figures(found)
    for name, value in results.items():
        console.print(f"{name:42s} {value:.3f}")
    samples = {
        f"{case.trace} / {case.model} / {case.engines} / {case.percent} % / {policy}": [
            float(one.served),
            float(one.from_storage),
            float(one.written),
        ]
        for case in found
        for policy, one in case.found.items()
    }
    notes = {**NOTES, "samples": "tokens served, those of them from storage, bytes written"}
    console.print(f"wrote {save('eviction-storage', results, notes, samples)}")


def main() -> None:
    """Measure this part alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each trace")
    parser.add_argument("--seed", type=int, default=SEED, help="of the traces")
    arguments = parser.parse_args()
    run(arguments.requests, arguments.seed, Console(width=140))


if __name__ == "__main__":
    main()
