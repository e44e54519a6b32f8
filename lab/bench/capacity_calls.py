"""System calls that a bounded root costs while nothing is written, beside those of a crawl.

`python -m lab.bench.capacity_calls ROOT SECONDS` is the process that is measured: one engine's storage tier
with a bound that is never reached, at rest. `lab.faulty_io` stands before its C library and counts.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.tiers.bounded import BoundedTier
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import REST_SECONDS
from kvstrata.tiers.shares import Bound
from lab.faulty_io.control import FaultyIO

NAMESPACE = Namespace("m", {"bench": "capacity"})
GEOMETRY = GroupGeometry(0, GroupKind.FULL, 16, 1, (1 << 20,))
NEVER = 1 << 60
"""Bytes of a bound that is never reached."""
LOOKS = 3
"""Times that the tier looks at the root while calls are counted."""
CRAWL = "import os, sys\nfor d, _, names in os.walk(sys.argv[1]):\n    [os.stat(f'{d}/{n}') for n in names]\n"


def base(root: Path) -> Path:
    """Where the measured tier's chunks lie."""
    return root / NAMESPACE.directory_name


def calls(root: Path, rest: float = LOOKS * REST_SECONDS) -> dict[str, float]:
    """Figures of a root that holds files.

    Args:
        root: absolute; see `base`.
        rest: seconds that the tier is at rest.
    """
    with FaultyIO(root) as layer:
        _run([sys.executable, "-m", __spec__.name, str(root), str(rest)], layer)
        at_rest = sum(layer.seen().values())
    with FaultyIO(root) as layer:
        _run([sys.executable, "-c", CRAWL, str(root)], layer)
        crawled = sum(layer.seen().values())
    return {
        "calls_per_s_at_rest": at_rest / rest,
        "calls_of_a_crawl": crawled,
        "calls_per_s_of_crawls": crawled / REST_SECONDS,
    }


def _run(command: list[str], layer: FaultyIO) -> None:
    environment = {**os.environ, **layer.environment()}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=1200)


def rest(root: Path, seconds: float) -> None:
    """An engine's storage tier that has nothing to do."""
    tier = FilesystemTier(root, NAMESPACE, {0: GEOMETRY})
    tier.prepare()
    bounded = BoundedTier(
        tier,
        tier.directory,
        Bound(capacity=NEVER),
        GEOMETRY.payload_bytes,
        MonotonicClock(),
        lambda done: None,
    )
    time.sleep(seconds)
    bounded.close()


if __name__ == "__main__":
    rest(Path(sys.argv[1]), float(sys.argv[2]))
