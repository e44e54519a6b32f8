"""What a load's runs amount to: one row for each policy. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lab.fleet_client import Sample

OURS = "seconds"


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's run of the load.

    Attributes:
        policy: its name.
        number: of its round, from 0.
        samples: what users saw.
        wall: seconds from the first request to the last answer's end.
        tokens: of prompts, by replica and by where they came from: what the engines counted meanwhile.
        accuracy: by replica, how the policy's predictions held; empty for policies without any.
        load_average: of the machine at the end.
    """

    policy: str
    number: int
    samples: Sequence[Sample]
    wall: float
    tokens: Mapping[str, Mapping[str, int]]
    accuracy: Mapping[str, Any]
    load_average: float


@dataclass(frozen=True, slots=True)
class Row:
    """All runs of one policy.

    Attributes:
        policy: its name.
        requests: answered, over all runs.
        ttft_p50, ttft_p90, ttft_mean: milliseconds at the client, over the requests of all runs.
        p90_of_runs: milliseconds; of each run by itself, in the order of the rounds.
        computed: tokens of prompts that engines computed, a run.
        device, memory, storage: tokens of prompts that were reused from there, a run.
        prompt_tokens_per_s: tokens of prompts, reused or not, for each second of the runs.
        wall: seconds, a run.
    """

    policy: str
    requests: int
    ttft_p50: float
    ttft_p90: float
    ttft_mean: float
    p90_of_runs: tuple[float, ...]
    computed: int
    device: int
    memory: int
    storage: int
    prompt_tokens_per_s: float
    wall: float


def row_of(runs: Sequence[Run]) -> Row:
    """The row of a policy's runs, at least one."""
    ttft = [1000 * one.ttft for run in runs for one in run.samples]
    wall = sum(run.wall for run in runs)
    prompts = sum(one.prompt_tokens for run in runs for one in run.samples)

    def tokens(tier: str) -> int:
        return round(sum(one[tier] for run in runs for one in run.tokens.values()) / len(runs))

    return Row(
        policy=runs[0].policy,
        requests=len(ttft),
        ttft_p50=float(np.percentile(ttft, 50)),
        ttft_p90=float(np.percentile(ttft, 90)),
        ttft_mean=float(np.mean(ttft)),
        p90_of_runs=tuple(
            float(np.percentile([1000 * one.ttft for one in run.samples], 90)) for run in runs
        ),
        computed=round(sum(one.computed_tokens for r in runs for one in r.samples) / len(runs)),
        device=tokens("device"),
        memory=tokens("memory"),
        storage=tokens("filesystem"),
        prompt_tokens_per_s=prompts / wall,
        wall=wall / len(runs),
    )


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """One row for each policy, in the order in which they first ran."""
    names = dict.fromkeys(run.policy for run in runs)
    return [row_of([run for run in runs if run.policy == name]) for name in names]


def behind(rows: Sequence[Row]) -> list[str]:
    """Where ours is not ahead of another policy, in words; empty if it is everywhere, or did not run."""
    ours = next((row for row in rows if row.policy == OURS), None)
    if ours is None:
        return []
    found = []
    for row in rows:
        if row is ours:
            continue
        if ours.ttft_p90 >= row.ttft_p90:
            found.append(
                f"TTFT p90: {ours.ttft_p90:,.0f} ms, {row.policy} has {row.ttft_p90:,.0f} ms"
            )
        if ours.computed >= row.computed:
            found.append(f"tokens recomputed: {ours.computed:,}, {row.policy} has {row.computed:,}")
    return found


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """Rows, runs and samples, for a report."""
    return {"rows": [asdict(row) for row in rows_of(runs)], "runs": [asdict(run) for run in runs]}


def order(policies: Sequence[str], number: int) -> list[str]:
    """Policies in the order of a round: backwards in every other one, so that a drift is shared."""
    return list(policies) if number % 2 == 0 else list(reversed(policies))
