"""Every alert is raised where it should be and nowhere else, by Prometheus' own tests of rules."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.deploy import shipped

ENGINE = 'job="engines",instance="a:8000",engine="0",model_name="m"'
ROUTER = 'job="router",instance="r:8000"'
DAY = 24 * 60


class Case(NamedTuple):
    """Series with values in promtool's notation, one a minute, and the minute to look at."""

    series: dict[str, str]
    minute: int


def engine(metric: str, **labels: str) -> str:
    """A series of an engine."""
    return _series(f"vllm:kvstrata_{metric}", ENGINE, labels)


def router(metric: str, **labels: str) -> str:
    """A series of a router."""
    return _series(f"kvstrata_router_{metric}", ROUTER, labels)


def _series(name: str, always: str, labels: dict[str, str]) -> str:
    return f"{name}{{{always}{''.join(f',{key}={json.dumps(value)}' for key, value in labels.items())}}}"


def stored(used: int) -> dict[str, str]:
    """Both series of a bound of a hundred bytes."""
    return {
        engine("stored_bytes", tier="filesystem", what="used"): f"{used}x60",
        engine("stored_bytes", tier="filesystem", what="bound"): "100x60",
    }


def reuse(later: int) -> dict[str, str]:
    """1 000 tokens a second: half are computed for a day, and then `later` of them for an hour."""
    return {
        engine("tokens_total", tier="computed"): f"0+30000x1500 45000000+{60 * later}x60",
        engine("tokens_total", tier="memory"): f"0+30000x1500 45000000+{60 * (1000 - later)}x60",
    }


def namespaces(second: str) -> dict[str, str]:
    """Two engines."""
    return {
        engine("info", namespace="m-1"): "1x60",
        engine("info", namespace=second).replace("a:8000", "b:8000"): "1x60",
    }


FIRES = {
    "KVStrataReuseCollapsed": Case(reuse(960), 1545),
    "KVStrataNamespacesDiffer": Case(namespaces("m-2"), 40),
    "KVStrataStorageSetAside": Case(
        {engine("set_aside", tier="filesystem", operation="write"): "0x5 1x55"}, 10
    ),
    "KVStrataThreadsStuck": Case({engine("stuck_threads"): "0x5 2x55"}, 10),
    "KVStrataBadRecords": Case({engine("bad_records_total", reason="checksum"): "0x20 8x40"}, 25),
    "KVStrataReadsTooLate": Case({engine("read_deadlines_total"): "0x20 0+2x40"}, 30),
    "KVStrataWritesFail": Case({engine("writes_dropped_total", reason="ENOSPC"): "0+1x60"}, 20),
    "KVStrataWritesTooMany": Case(
        {engine("writes_dropped_total", reason="queue_full"): "0+120x60"}, 60
    ),
    "KVStrataBoundExceeded": Case(stored(110), 20),
    "KVStrataNoRoom": Case({engine("writes_dropped_total", reason="capacity"): "0+120x60"}, 60),
    "KVStrataDoctorFoundError": Case(
        {engine("finding", code="seed-random", severity="error"): "1x60"}, 10
    ),
    "KVStrataRouterWithoutReplicas": Case(
        {
            router("replica_state", replica="x", state="up"): "1x5 0x55",
            router("connections"): "3x60",
        },
        10,
    ),
    "KVStrataReplicaDown": Case({router("replica_state", replica="x", state="down"): "1x60"}, 10),
    "KVStrataIndexWrong": Case({router("index_alarm", replica="x", kind="less"): "1x60"}, 20),
    "KVStrataEventsBehind": Case({router("index_trust", replica="x", state="synced"): "0x60"}, 20),
    "KVStrataRouterRefuses": Case({router("refusals_total", code="queue_full"): "0+3x60"}, 20),
}
QUIET = {
    "KVStrataReuseCollapsed": Case(reuse(600), 1545),
    "KVStrataNamespacesDiffer": Case(namespaces("m-1"), 40),
    "KVStrataStorageSetAside": Case(
        {engine("set_aside", tier="filesystem", operation="write"): "0x5 1x1 0x50"}, 7
    ),
    "KVStrataThreadsStuck": Case({engine("stuck_threads"): "0x60"}, 10),
    "KVStrataBadRecords": Case({engine("bad_records_total", reason="checksum"): "0x20 3x40"}, 25),
    "KVStrataReadsTooLate": Case({engine("read_deadlines_total"): "7x60"}, 30),
    "KVStrataWritesFail": Case({engine("writes_dropped_total", reason="torn"): "0+1x60"}, 20),
    "KVStrataWritesTooMany": Case(
        {engine("writes_dropped_total", reason="queue_full"): "0+30x60"}, 60
    ),
    "KVStrataBoundExceeded": Case(stored(104), 20),
    "KVStrataNoRoom": Case({engine("writes_dropped_total", reason="capacity"): "0+30x60"}, 60),
    "KVStrataDoctorFoundError": Case(
        {engine("finding", code="sparse-retention", severity="warning"): "1x60"}, 10
    ),
    "KVStrataRouterWithoutReplicas": Case(
        {
            router("replica_state", replica="x", state="up"): "0x60",
            router("replica_state", replica="y", state="up"): "1x60",
            router("connections"): "3x60",
        },
        10,
    ),
    "KVStrataReplicaDown": Case({router("replica_state", replica="x", state="down"): "0x60"}, 10),
    "KVStrataIndexWrong": Case({router("index_alarm", replica="x", kind="less"): "1x5 0x55"}, 20),
    "KVStrataEventsBehind": Case({router("index_trust", replica="x", state="synced"): "1x60"}, 20),
    "KVStrataRouterRefuses": Case({router("refusals_total", code="invalid_json"): "0+3x60"}, 20),
}
EMPTY = Case({router("connections"): "0x60"}, 10)
"""A router that was never given a replica."""


def test_every_alert_has_a_case_of_both_kinds() -> None:
    assert FIRES.keys() == QUIET.keys() == shipped.alerts().keys()


def together(cases: Mapping[str, Case], *, fire: bool) -> dict[str, Any]:
    """What promtool is to check of cases that share no series."""
    series = [one for case in cases.values() for one in case.series.items()]
    assert len(dict(series)) == len(series)
    return {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                "eval_time": f"{case.minute}m",
                "exp_samples": [{"labels": "{}", "value": 1}] if fire else [],
            }
            for name, case in cases.items()
        ],
    }


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="no promtool here: rules are only read; on Debian: apt-get install prometheus",
)
def test_alerts_are_raised_where_they_should_be(tmp_path: Path) -> None:
    for command in (["check", "rules", str(shipped.RULES)], *_commands(tmp_path)):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _commands(directory: Path) -> Iterator[list[str]]:
    """Tests of rules in two files: what takes a day is evaluated less often, or it would take a minute."""
    for interval, long in (("1m", False), ("5m", True)):
        fires, quiet = (
            {name: case for name, case in cases.items() if (case.minute >= DAY) is long}
            for cases in (FIRES, QUIET)
        )
        tests = [together(fires, fire=True), together(quiet, fire=False)]
        if not long:
            tests.append(together({"KVStrataRouterWithoutReplicas": EMPTY}, fire=True))
        file = directory / f"{interval}.yaml"
        about = {"rule_files": [str(shipped.RULES)], "evaluation_interval": interval}
        file.write_text(json.dumps({**about, "tests": tests}))
        yield ["test", "rules", str(file)]
