"""The doctor and real engines: what it foretells is what an engine says at its start, once."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.models import ensure, prompt_ids
from lab.server import EngineServer

pytestmark = pytest.mark.engine

REPOSITORY = Path(__file__).resolve().parents[2]
LINE = re.compile(r"kvstrata doctor: ([a-z-]+): ")


def doctor(*arguments: str) -> tuple[int, Any]:
    """Exit status and document of the command."""
    run = subprocess.run(
        [sys.executable, "-m", "kvstrata.cli.main", "doctor", *arguments, "--json"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout)


def transfer(**extra: Any) -> list[str]:
    config = {
        "kv_connector": "KVStrataConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    return ["--kv-transfer-config", json.dumps(config)]


def codes(document: Any) -> list[str]:
    return [finding["code"] for finding in document["findings"]]


def test_it_foretells_groups_and_namespace_and_the_engine_says_the_same_once(
    start, tmp_path: Path
) -> None:
    # Too little memory for the longest request, and a random hash seed: one warning and one error.
    options = {"path": str(tmp_path / "kv"), "memory": "4MiB"}
    model = str(ensure("gemma3-5to1"))
    common = ["--model", model, "--dtype", "float32", "--max-model-len", "4096"]
    common += ["--block-size", "128", *transfer(**options)]
    with start("gemma3-5to1", options, engine={"prefix_caching_hash_algo": "xxhash"}) as engine:
        engine.ask(prompt_ids(300, seed=1))
        said = engine.do("metrics")
    assert said["finding{code=seed-random,severity=error}"] == 1
    logged = LINE.findall(engine.log.read_text())
    assert sorted(logged) == ["arena-small", "seed-random"]

    status, same = doctor(*common, "--prefix-caching-hash-algo", "xxhash")
    assert status == 1
    assert {"arena-small", "seed-random"} <= set(codes(same))
    assert "namespace-differs" not in codes(same)  # but for the seed, it is the engine's own
    (described,) = (tmp_path / "kv").glob("*/namespace.json")
    groups = json.loads(described.read_text())["covers"]["groups"]
    told = same["engine"]["groups"]
    assert [(g["kind"], g["tokens_per_block"], g["chunk_bytes"], g["layers"]) for g in told] == [
        (g["kind"], g["tokens_per_block"], sum(g["rank_block_bytes"]), len(g["layers"]))
        for g in groups
    ]

    status, broken = doctor(*common, "--no-enable-prefix-caching", "--kv-cache-dtype", "fp8")
    assert status == 1
    assert "prefix-caching-off" in codes(broken)
    named = {f["subject"] for f in broken["findings"] if f["code"] == "namespace-differs"}
    assert {"gemma3-5to1: kv_cache.dtype", "gemma3-5to1: hash_algorithm"} <= named


def test_a_state_longer_than_the_block_that_the_scheduler_goes_back_to() -> None:
    _, found = doctor(
        "--model", str(ensure("granite-4-h")), "--dtype", "float32", *transfer(memory="1GiB")
    )
    assert "state-block-size" in codes(found)
    assert {g["kind"] for g in found["engine"]["groups"]} == {"state", "full"}


def test_a_running_engine_says_who_it_is(tmp_path: Path) -> None:
    with EngineServer("llama", tmp_path / "log", kv={"path": str(tmp_path / "kv")}) as server:
        server.client.complete(prompt_ids(300, seed=1), max_tokens=2)
        status, found = doctor("--url", f"http://127.0.0.1:{server.port}")
    (replica,) = found["replicas"]
    assert (tmp_path / "kv" / replica["namespace"] / "namespace.json").exists()
    assert replica["hash_seed"] == "default"
    assert replica["settings"]["enable_prefix_caching"] == "True"
    assert (status, [f for f in found["findings"] if f["severity"] != "note"]) == (0, [])


ESTIMATE = """
import sys
from kvstrata.vllm_plugin import offline
def refuse(config):
    raise RuntimeError("no meta device")
offline.model_specs = refuse
offline.main()
"""


@pytest.mark.zoo
def test_an_estimate_is_close_and_says_that_it_is_one(tmp_path: Path) -> None:
    arguments = ["--model", str(ensure("gemma3-5to1")), "--dtype", "float32"]
    arguments += ["--tensor-parallel-size", "2", *transfer(memory="1GiB")]
    out = tmp_path / "answer.json"
    subprocess.run(
        [sys.executable, "-c", ESTIMATE, str(out), *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=200,
        check=True,
    )
    answer = json.loads(out.read_text())
    assert answer["error"] == ""
    assert answer["facts"]["exact"] is False
    _, known = doctor(*arguments)
    assert known["engine"]["exact"] is True
    rows = known["engine"]["groups"]
    assert [(g["kind"], sum(g["rank_block_bytes"])) for g in answer["facts"]["groups"]] == [
        (row["kind"], row["chunk_bytes"]) for row in rows
    ]
    assert answer["facts"]["layers"] == [row["layers"] for row in rows]
