"""The doctor's findings in an engine's log: once each, by severity, and never at the engine's expense."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.namespace import Namespace
from kvstrata.options import Options
from kvstrata.vllm_plugin import diagnosis
from kvstrata.vllm_plugin.diagnosis import gather, log_diagnosis

FULL = GroupGeometry(0, GroupKind.FULL, 16, 1, (512,))
MODEL = "/models/tiny"


def config(**changes: Any) -> Any:
    made = SimpleNamespace(
        model_config=SimpleNamespace(
            model=MODEL,
            max_model_len=4096,
            enable_sleep_mode=False,
            hf_text_config=SimpleNamespace(layer_types=["full_attention", "sliding_attention"]),
        ),
        cache_config=SimpleNamespace(
            block_size=16,
            enable_prefix_caching=True,
            prefix_cache_retention_interval=0,
            prefix_caching_hash_algo="sha256",
        ),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        kv_transfer_config=SimpleNamespace(
            kv_connector="KVStrataConnector",
            kv_role="kv_both",
            kv_load_failure_policy="fail",
            kv_connector_extra_config={},
        ),
        lora_config=None,
        shutdown_timeout=20,
    )
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        setattr(getattr(made, part) if part else made, field, value)
    return made


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setattr(diagnosis.logger, "propagate", True)
    caplog.set_level(logging.INFO, diagnosis.logger.name)
    caplog.handler.setLevel(logging.INFO)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    return caplog


def start(options: Options, vllm_config: Any = None) -> list[str]:
    findings = log_diagnosis(vllm_config or config(), [FULL], [2], options, arena_bytes=1 << 30)
    return [finding.code for finding in findings]


def test_a_sound_engine_says_nothing(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    assert start(Options(path=str(tmp_path / "kv"))) == []
    assert log.records == []


def test_each_finding_once_by_severity(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    wrong = config(
        cache_config__enable_prefix_caching=False, lora_config=object(), shutdown_timeout=0
    )
    codes = start(Options(path=str(tmp_path)), wrong)
    assert sorted(codes) == ["lora", "prefix-caching-off", "shutdown-timeout"]
    assert [(r.levelno, r.getMessage().split(": ")[1]) for r in log.records] == [
        (logging.ERROR, "prefix-caching-off"),
        (logging.WARNING, "lora"),
        (logging.INFO, "shutdown-timeout"),
    ]
    assert "Remedy: give --enable-prefix-caching" in log.records[0].getMessage()


def test_what_others_left_is_told_but_is_no_fault(
    log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for label in ("", "blue"):
        namespace = Namespace("tiny", {"label": label})
        (tmp_path / namespace.directory_name).mkdir()
        (tmp_path / namespace.directory_name / "namespace.json").write_text(namespace.to_json())
    assert start(Options(path=str(tmp_path))) == []
    (record,) = log.records
    assert record.levelno == logging.INFO
    assert "namespace-differs: tiny: label" in record.getMessage()


def test_a_bug_of_the_doctor_does_not_stop_the_engine(
    log: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(diagnosis, "check_engine", fail)
    assert start(Options(path=str(tmp_path))) == []
    assert "the doctor failed" in log.records[0].getMessage()


def test_layers_that_lost_their_window() -> None:
    off = config(scheduler_config__disable_hybrid_kv_cache_manager=True)
    assert gather(off, [FULL], [2], None).merged_layers == 1
    assert gather(config(), [FULL], [2], None).merged_layers == 0


def test_facts_that_the_caller_knows_better() -> None:
    facts = gather(config(), [FULL], [2], Options(memory=5), arena_bytes=7, prompts_only=True)
    assert (facts.arena_bytes, facts.prompts_only) == (7, True)
    assert gather(config(), [FULL], [2], Options(memory=5)).arena_bytes == 5
