"""Two looks at a process' metrics and the seconds between them, made into what happened meanwhile. Pure."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kvstrata.fleet.exposition import samples

ENGINE_PREFIX = "vllm:"
ROUTER_PREFIX = "kvstrata_router_"
MOST = 2.0**63
"""Nothing that is counted or measured is more."""
Labels = frozenset[tuple[str, str]]


class Kind(StrEnum):
    """Whose metrics they are."""

    ENGINE = "engine"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Reading:
    """One look.

    Attributes:
        kind: of the process.
        series: values by labels, by the metric's name; from 0 to `MOST`, others are passed over.
    """

    kind: Kind
    series: Mapping[str, Mapping[Labels, float]]


def read(text: str) -> Reading:
    """A reading from the text of `/metrics`.

    Raises:
        ValueError: it holds nothing of an engine and nothing of a router.
    """
    series: dict[str, dict[Labels, float]] = defaultdict(dict)
    kind = None
    for name, labels, value in samples(text):
        if name.startswith(ROUTER_PREFIX):
            kind = Kind.ROUTER
        elif name.startswith(ENGINE_PREFIX):
            kind = kind or Kind.ENGINE
        else:
            continue
        if 0 <= value <= MOST:
            series[name][frozenset(labels.items())] = value
    if kind is None:
        raise ValueError("no metrics of vLLM or of a router in the answer")
    return Reading(kind, series)


@dataclass(frozen=True, slots=True)
class Change:
    """What one process did between two looks at it.

    Attributes:
        before: the first look.
        after: the second.
        seconds: between them, more than 0.
    """

    before: Reading
    after: Reading
    seconds: float

    @property
    def restarted(self) -> bool:
        """Whether a counter fell: then it began anew, and everything since is the growth."""
        return any(
            self.after.series[name].get(labels, value) < value
            for name, values in self.before.series.items()
            if name.endswith(("_total", "_count")) and name in self.after.series
            for labels, value in values.items()
        )

    def growth(self, name: str) -> Iterable[tuple[Mapping[str, str], float]]:
        """Labels and growth of each series of a counter; one that fell grew from 0, as Prometheus has it."""
        earlier = self.before.series.get(name, {})
        for labels, value in self.after.series.get(name, {}).items():
            was = earlier.get(labels, 0.0)
            yield dict(labels), value - was if value >= was else value


def grown(changes: Sequence[Change], name: str, by: str = "") -> dict[str, float]:
    """Growth of a counter in all `changes`, by the values of the label `by`; without one under ""."""
    found: dict[str, float] = defaultdict(float)
    for change in changes:
        for labels, amount in change.growth(name):
            found[labels.get(by, "")] += amount
    return dict(found)


def rates(changes: Sequence[Change], name: str, by: str, **where: str) -> dict[str, float]:
    """Growth a second, added over all `changes`, by the label `by`, of series with labels as in `where`."""
    found: dict[str, float] = defaultdict(float)
    for change in changes:
        for labels, amount in change.growth(name):
            if where.items() <= labels.items():
                found[labels.get(by, "")] += amount / change.seconds
    return dict(found)


def levels(changes: Sequence[Change], name: str, by: str = "", **where: str) -> dict[str, float]:
    """Last values of a gauge or counter, added over all `changes`, by the label `by`."""
    found: dict[str, float] = defaultdict(float)
    for change in changes:
        for labels, value in change.after.series.get(name, {}).items():
            told = dict(labels)
            if where.items() <= told.items():
                found[told.get(by, "")] += value
    return dict(found)


def quantiles(
    changes: Sequence[Change], name: str, shares: Sequence[float]
) -> tuple[float | None, ...]:
    """Quantiles of what a histogram observed between the looks, over all `changes`.

    Linear inside a bucket, as Prometheus' `histogram_quantile`: what lies above the last bound counts as that
    bound. None where nothing was observed, or where buckets contradict each other.
    """
    counts: dict[float, float] = defaultdict(float)
    for change in changes:
        for labels, amount in change.growth(f"{name}_bucket"):
            bound = _bound(labels.get("le", ""))
            if bound is not None:
                counts[bound] += amount
    bounds = sorted(counts)
    whole = counts[bounds[-1]] if bounds else 0.0
    if not whole or bounds[-1] != math.inf:
        return (None,) * len(shares)
    steps = [(0.0, 0.0), *((bound, counts[bound]) for bound in bounds)]
    if any(later < earlier for (_, earlier), (_, later) in itertools.pairwise(steps)):
        return (None,) * len(shares)
    return tuple(_quantile(steps, share * whole) for share in shares)


def _bound(text: str) -> float | None:
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) else bound


def _quantile(steps: Sequence[tuple[float, float]], rank: float) -> float:
    for (low, under), (high, within) in itertools.pairwise(steps):
        if within >= rank and within > under:
            if math.isinf(high):
                return low
            return low + (high - low) * (rank - under) / (within - under)
    return steps[-2][0]
