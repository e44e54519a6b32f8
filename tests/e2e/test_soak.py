"""Two engines on one directory for three minutes of random faults: no wrong answer, no hang, no leak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[2]


def test_three_minutes_of_random_faults(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab.soak", "--minutes", "3", "--seed", "1"]
    run = subprocess.run(
        [*command, "--output", str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-8000:]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["wrong"] == 0 and found["hangs"] == [] and found["crashes"] == []
    assert found["leaks"] == [] and found["left"]["temporary_left"] == 0
    assert found["requests"] > 150
    assert sum(found["done"].values()) > 15
