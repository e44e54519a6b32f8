"""What every benchmark writes: figures, samples, machine and versions, in one form."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import report

DIRECTORY = report.BUILD / "bench"
Samples = dict[str, list[float]]
"""Everything that was measured, by case."""


def add(samples: Samples, case: str, value: float) -> None:
    """One more measurement of a case."""
    samples.setdefault(case, []).append(value)


def in_turn(names: Sequence[str], turn: int) -> Iterator[str]:
    """The names, each round in another order, so that none always comes after the same."""
    for place in range(len(names)):
        yield names[(place + turn) % len(names)]


def save(
    name: str,
    figures: Mapping[str, float],
    notes: Mapping[str, str],
    samples: Mapping[str, Sequence[float]],
) -> Path:
    """Write `build/bench/NAME.json`.

    Args:
        name: of the benchmark.
        figures: what it found, by name.
        notes: unit and meaning of the figures.
        samples: everything that was measured.
    """
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{name}.json"
    document: dict[str, Any] = {
        "figures": {key: round(value, 4) for key, value in figures.items()},
        "unit notes": dict(notes),
        "machine": report.machine(),
        "versions": report.versions(),
        "samples": {key: [round(v, 3) for v in values] for key, values in samples.items()},
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def spread(values: Sequence[float]) -> str:
    """`median (min - max, n)` for a table."""
    if not values:
        return "-"
    middle = statistics.median(values)
    return f"{middle:.1f} ({min(values):.1f} - {max(values):.1f}, {len(values)})"
