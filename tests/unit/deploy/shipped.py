"""What is shipped for others to watch with, read once: the dashboard's queries and the alert rules."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kvstrata.metrics import ALL, Kind
from kvstrata.router.metrics import Meters
from lab.dashboard import filled, panels

REPOSITORY = Path(__file__).resolve().parents[3]
DEPLOY = REPOSITORY / "deploy"
RULES = DEPLOY / "prometheus" / "kvstrata-alerts.yaml"
RECORDED = Path(__file__).parent / "recorded"
"""What real engines and a real router told: `python -m lab.monitoring --record`."""
OF_PROMETHEUS = {"instance", "job"}
OF_VLLM = {"engine", "model_name"}


def rules() -> list[dict[str, Any]]:
    """All rules of the file."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Alert rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Title of the panel and query, with values for variables."""
    for panel in panels():
        for query, _ in panel.queries:
            yield panel.title, filled(query, "5m")


def defined() -> dict[str, set[str]]:
    """Label names of all metrics that this release of kvstrata defines, by name as it is published."""
    found = {}
    for metric in ALL:
        ends = {Kind.COUNTER: ("_total",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_count")}
        for end in ends[metric.kind]:
            more = {"le"} if end == "_bucket" else set()
            found[f"vllm:{metric.name}{end}"] = {*metric.labels, *OF_VLLM, *more}
    for collector in Meters().registry._collector_to_names:
        for name in _published(collector._name, collector._type):
            more = {"le"} if name.endswith("_bucket") else set()
            found[name] = {*collector._labelnames, *more}
    return found


def _published(name: str, kind: str) -> tuple[str, ...]:
    if kind == "histogram":
        return f"{name}_bucket", f"{name}_count"
    return (f"{name}_total",) if kind == "counter" else (name,)


def recorded_types() -> set[str]:
    """Names of all metrics that were told, with or without a value."""
    text = "".join(path.read_text() for path in sorted(RECORDED.glob("*.txt")))
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found |= {f"{name}_bucket", f"{name}_count"} if kind == "histogram" else {name}
    return found
