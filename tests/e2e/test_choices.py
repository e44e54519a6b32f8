"""Settings with which vLLM's own lookup never finds anything: mended, or turned off with a warning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.models import ensure, prompt_ids

pytestmark = pytest.mark.engine

REPOSITORY = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("separate_core_probe.py")


@pytest.mark.parametrize("model", ["granite-4-h", pytest.param("gemma4", marks=pytest.mark.zoo)])
def test_chunks_of_several_blocks_are_not_used_where_nothing_would_be_found(
    model: str, start, tmp_path: Path
) -> None:
    extra = {"path": str(tmp_path / "kv"), "memory": "128MiB", "blocks_per_chunk": 4}
    prompt = prompt_ids(1100, seed=1)
    with start(model, extra) as writer:
        cold = writer.ask(prompt)[0]
        assert writer.log.read_text().count("'blocks_per_chunk' is not used") >= 1
    with start(model, extra) as reader:
        answer = reader.ask(prompt)[0]
    assert answer["cached"] >= 768
    assert answer["tokens"] == cold["tokens"]


def test_a_server_keeps_states_from_the_first_request_on(tmp_path: Path) -> None:
    """Without --block-size, vLLM ends prefill steps where no state can be kept."""
    ensure("granite-4-h")
    run = subprocess.run(
        [sys.executable, str(PROBE), "granite-4-h", str(tmp_path / "kv")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    line = next(line for line in run.stdout.splitlines() if line.startswith("["))
    cold, device, tiers = json.loads(line)
    assert cold == 0 and device == tiers > 1000
