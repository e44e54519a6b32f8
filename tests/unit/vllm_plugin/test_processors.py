"""Threads follow what a process may use, not what its machine has."""

import os
from pathlib import Path

import pytest

from kvstrata.options import Options
from kvstrata.vllm_plugin import storage
from kvstrata.vllm_plugin.processors import usable_processors
from kvstrata.vllm_plugin.storage import io_threads


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def group(tmp_path: Path, name: str, limits: dict[str, str]) -> tuple[Path, Path]:
    root = tmp_path / "cgroup"
    for place, limit in limits.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / "cpu.max").write_text(limit + "\n")
    own = tmp_path / "own"
    own.write_text(f"0::/{name}\n")
    return root, own


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8),
        ({"pod/engine": "max 100000"}, 8),
        ({"pod/engine": "250000 100000"}, 3),
        ({"pod": "200000 100000", "pod/engine": "max 100000"}, 2),
        ({"pod/engine": "1000 100000"}, 1),
        ({"pod/engine": "9900000 100000"}, 8),
        ({"pod/engine": "nonsense"}, 8),
    ],
)
def test_the_least_of_affinity_and_limits(
    tmp_path: Path, limits: dict[str, str], expected: int
) -> None:
    assert usable_processors(*group(tmp_path, "pod/engine", limits)) == expected


def test_without_groups_affinity_counts(tmp_path: Path) -> None:
    assert usable_processors(tmp_path / "no", tmp_path / "none") == 8


@pytest.mark.parametrize(("processors", "threads"), [(1, 2), (2, 2), (8, 8), (96, 16)])
def test_io_threads_follow(monkeypatch: pytest.MonkeyPatch, processors: int, threads: int) -> None:
    monkeypatch.setattr(storage, "usable_processors", lambda: processors)
    assert io_threads(Options.parse({"path": "/x"})) == threads
    assert io_threads(Options.parse({"path": "/x", "io_threads": 5})) == 5
