"""The tiny models can fail an identity test: their output depends on all of the input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.models import ensure

REPOSITORY = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("model_probe.py")
TESTED = ["llama", "gemma3-1to1", "gemma3-5to1", "gemma3-w1024", "gpt-oss"]

MEASURABLE = 0.005
"""Log-probability difference that counts as one: ten times what `NOISE` allows."""

NOISE = 5e-4
"""Largest difference that a prefix hit may make in float32: the rest has other shapes then."""


@pytest.mark.engine
@pytest.mark.parametrize("name", TESTED)
def test_each_part_of_the_context_reaches_the_output(name: str) -> None:
    ensure(name)
    run = subprocess.run(
        [sys.executable, str(PROBE), name],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout.strip().splitlines()[-1])

    assert found["cached"] > 0
    assert found["hit_same"], "a device prefix hit changes the tokens: no oracle for anything"
    assert found["noise"] < NOISE
    for position, change in found["changes"].items():
        assert change["distance"] > MEASURABLE, f"token {position} does not matter"
    assert not all(change["same"] for change in found["changes"].values())
    # Two period-one or period-two answers would agree too easily.
    assert len(set(found["tokens"])) >= 6, found["tokens"]
    assert found["printable"]
    assert found["bytes_are_ids"]
    assert found["round_trip"]
