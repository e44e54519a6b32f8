"""Compiled code is kept for as long as the text is the same that it was made of, wherever that stands."""

import os
import subprocess
import sys
from pathlib import Path

INNER = "def step(x):\n    return x + {}\n"
OUTER = """
from numba import njit
from kvstrata.compiled import compiled
from made.inner import step as plain

step = njit(plain)


@compiled
def outer(x):
    return step(x)
"""
ASK = "from made.outer import outer; print(outer(1), sum(outer.stats.cache_hits.values()))"


def ask(place: Path) -> list[str]:
    """The answer, and how much of the code came from the cache; in a new process."""
    env = {**os.environ, "PYTHONPATH": str(place), "NUMBA_CACHE_DIR": str(place / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", ASK],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_a_change_in_a_called_module_of_equal_time_and_size_is_seen(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    inner = tmp_path / "made" / "inner.py"
    (tmp_path / "made" / "outer.py").write_text(OUTER)
    inner.write_text(INNER.format(1))
    os.utime(inner, (1, 1))
    assert ask(tmp_path) == ["2", "0"]
    assert ask(tmp_path) == ["2", "1"]
    inner.write_text(INNER.format(5))
    os.utime(inner, (1, 1))
    for cache in (tmp_path / "made").rglob("*.pyc"):
        cache.unlink()  # Python too goes by time and size
    assert ask(tmp_path) == ["6", "0"]
