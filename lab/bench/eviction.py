"""Which eviction policy serves most tokens from a memory tier that holds only a part of everything.

Replays made-up traffic through the production planner and the production memory tier; no engine runs and
no clock is read, so the figures are the same on every machine. Device caches are left out: every request
asks the tier. What a request stores follows vLLM's default retention: full groups all of the prompt's
chunks, windowed groups the window at the prompt's end, and at the junction with an earlier prompt. What
is worth a write to storage follows: `lab.bench.eviction_storage`.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from kvstrata.tiers.eviction_choice import POLICIES
from lab.bench import eviction_storage
from lab.bench.replay import MODELS, limits, replay, steps
from lab.bench.results import save
from lab.bench.traces import TRACES, trace

REQUESTS = 600
SEED = 7
PARTS = (10, 30, 60)
"""Arena sizes, in percent of the bytes of everything distinct that a trace stores."""


@dataclass(frozen=True, slots=True)
class Case:
    """One trace, model and arena.

    Attributes:
        trace: its name.
        model: its name.
        percent: arena's bytes over all distinct bytes.
        tokens: prompt tokens of the whole trace.
        unlimited: tokens that a tier with room for everything serves.
        bound: tokens that no policy can exceed.
        served: tokens that each policy serves.
    """

    trace: str
    model: str
    percent: int
    tokens: int
    unlimited: int
    bound: float
    served: Mapping[str, int]

    def against(self, rival: str) -> float:
        """What ours serves over what a rival serves."""
        return self.served["boundary"] / self.served[rival]

    @property
    def of_bound(self) -> float:
        """What ours serves over the bound."""
        return self.served["boundary"] / self.bound


def cases(requests: int, seed: int) -> Iterator[Case]:
    """Measure every case."""
    for name, make in TRACES.items():
        prompts = trace(make(seed), requests)
        tokens = sum(prompt.tokens for prompt in prompts)
        for model_name, model in MODELS.items():
            replayed = steps(prompts, model)
            limit = limits(replayed, model)
            for percent in PARTS:
                arena = limit.distinct_bytes * percent // 100
                served = {
                    policy: replay(replayed, model, arena, maker)
                    for policy, maker in POLICIES.items()
                }
                yield Case(
                    name, model_name, percent, tokens, limit.served, limit.bound(arena), served
                )


def figures(found: list[Case]) -> dict[str, float]:
    """The figures that the benchmark is about, and what explains them."""
    hybrids = [case for case in found if case.model != "full"]
    at_30 = [case for case in hybrids if case.percent == 30]
    result = {
        "reused_vs_lru_30": _mean([case.against("lru") for case in at_30]),
        "reused_vs_arc_30": _mean([case.against("arc") for case in at_30]),
        "reused_vs_bound_30": _mean([case.of_bound for case in at_30]),
        "bound_vs_lru_30": _mean([case.bound / case.served["lru"] for case in at_30]),
        "worst_vs_lru": min(case.against("lru") for case in found),
        "worst_vs_arc": min(case.against("arc") for case in found),
    }
    for percent in PARTS:
        part = [case.against("lru") for case in hybrids if case.percent == percent]
        result[f"reused_vs_lru_{percent}"] = _mean(part)
        full = [case for case in found if case.model == "full" and case.percent == percent]
        result[f"full_reused_vs_lru_{percent}"] = _mean([case.against("lru") for case in full])
    return result


def _mean(values: list[float]) -> float:
    return statistics.geometric_mean(values)


NOTES = {
    "reused_vs_*": "tokens served with the policy 'boundary' over those with the other one; geometric mean "
    "over the traces and the hybrid models; the number is the arena in percent of all distinct bytes",
    "full_*": "the same for the model with full attention alone",
    "reused_vs_bound_30": "the same over the bound of a policy that knows the future, relaxed (see "
    "lab/bench/replay.py); it cannot be reached in general",
    "bound_vs_lru_30": "what the best policy could gain over LRU at most",
    "worst_*": "the worst single case of all, full attention included",
}


def main() -> None:
    """Measure, print a table, write `build/bench/eviction.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each trace")
    parser.add_argument("--seed", type=int, default=SEED, help="of the traces")
    arguments = parser.parse_args()
    console = Console(width=140)
    titles = ["trace", "model", "arena %", "LRU", "ARC/LRU", "ours/LRU", "bound/LRU", "ours/bound"]
    table = Table(*titles, title="share of prompt tokens served (LRU), and ratios")
    found = []
    for case in cases(arguments.requests, arguments.seed):
        found.append(case)
        lru = case.served["lru"]
        table.add_row(
            case.trace,
            case.model,
            str(case.percent),
            f"{lru / case.tokens:.3f}",
            f"{case.served['arc'] / lru:.3f}",
            f"{case.against('lru'):.3f}",
            f"{case.bound / lru:.3f}",
            f"{case.of_bound:.3f}",
        )
    console.print(table)
    results = figures(found)
    for name, value in results.items():
        console.print(f"{name:24s} {value:.3f}")
    samples = {
        f"{case.trace} / {case.model} / {case.percent} %": [
            float(value)
            for value in (*(case.served[p] for p in POLICIES), case.bound, case.unlimited)
        ]
        for case in found
    }
    notes = {
        **NOTES,
        "samples": f"tokens served by {', '.join(POLICIES)}; bound; with room for all",
    }
    console.print(f"wrote {save('eviction', results, notes, samples)}")
    eviction_storage.run(arguments.requests, arguments.seed, console)


if __name__ == "__main__":
    main()
