"""How many processors this process may use: of the machine, of its affinity, of its container."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_processors(groups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that can work for this process at the same time, at least 1.

    A container with a limit of two processors still counts all of its machine's, and threads for all of
    them would only take the limit from each other.

    Args:
        groups: where cgroups of version 2 are mounted; without them only the affinity counts.
        own: names this process's group there.
    """
    count = float(len(os.sched_getaffinity(0)))
    for directory in _directories(groups, own):
        try:
            quota, period = (directory / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue  # the root has none
        if quota != "max":
            count = min(count, int(quota) / int(period))
    return max(1, math.ceil(count))


def _directories(groups: Path, own: Path) -> list[Path]:
    """This process's group and those above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        if line.startswith("0::/"):
            inner = groups / line[4:]
            return [inner, *(p for p in inner.parents if p.is_relative_to(groups))]
    return []
