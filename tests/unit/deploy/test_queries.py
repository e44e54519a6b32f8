"""Every query of the dashboard and of the alerts asks for what engines and routers tell."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.fleet.exposition import samples
from lab.dashboard import FILE, panels
from lab.prometheus import Prometheus, prometheus
from tests.unit.deploy import shipped
from tests.unit.deploy.promql import Asked, asked

QUERIES = [
    *shipped.dashboard_queries(),
    *((rule.get("alert") or rule["record"], rule["expr"]) for rule in shipped.rules()),
]
RECORDS = {rule["record"] for rule in shipped.rules() if "record" in rule}


def test_the_reader_of_queries() -> None:
    assert asked('sum by (a, b) (rate(x_total{c="}",d=~"e"}[5m])) / 2 > max(y) or z offset 1d') == (
        [
            Asked("x_total", frozenset("cd")),
            Asked("y", frozenset()),
            Asked("z", frozenset()),
        ],
        frozenset("ab"),
    )
    for wrong in ("sum(x", "x}", "sum(x))", "x{a='b'}", "x ; y", "sum by (a (x)"):
        with pytest.raises(ValueError, match=r"without|no PromQL"):
            asked(wrong)


@given(st.text("abc(){}[]=~\"', 1", max_size=30))
def test_the_reader_never_hangs_and_refuses_in_one_way(text: str) -> None:
    with contextlib.suppress(ValueError):
        asked(text)


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_names_and_labels_are_those_that_are_told(where: str, query: str) -> None:
    selected, grouped = asked(query)
    assert selected
    defined, told = shipped.defined(), shipped.recorded_types()
    seen: dict[str, set[str]] = {}
    for path in shipped.RECORDED.glob("*.txt"):
        for name, labels, _ in samples(path.read_text()):
            seen.setdefault(name, set()).update(labels)
    available = set(shipped.OF_PROMETHEUS)
    for metric, labels in selected:
        if metric in RECORDS:
            continue
        assert metric in told, f"{metric} was told by no engine and no router"
        ours = "kvstrata" in metric
        assert not ours or metric in defined, f"{metric} is not of this release"
        known = defined[metric] if ours else seen[metric]
        assert not ours or not seen.get(metric) or seen[metric] <= known
        assert labels <= known | shipped.OF_PROMETHEUS, metric
        available |= known
    assert grouped <= available


def test_the_dashboard_is_well_made() -> None:
    text = FILE.read_text()
    file = json.loads(text)
    assert text == json.dumps(file, indent=2) + "\n"
    ids = [panel["id"] for panel in file["panels"]]
    assert len(set(ids)) == len(ids)
    rows = [panel["title"] for panel in file["panels"] if panel["type"] == "row"]
    assert rows == ["What users feel", "Hit rates", "Tiers", "Storage bound", "Faults", "Router"]
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        x, y, width, height = panel.place
        squares = {(x + i, y + j) for i in range(width) for j in range(height)}
        assert x + width <= 24 and not squares & taken, panel.title
        taken |= squares
    variables = {one["name"] for one in file["templating"]["list"]}
    assert {"datasource", "engine", "router"} == variables
    for panel in file["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used in ({"engine"}, {"router"}), panel["title"]


def test_every_alert_leads_to_a_runbook() -> None:
    headings = re.findall(
        r"^#+ (.+)$", (shipped.REPOSITORY / "docs/monitoring.md").read_text(), re.M
    )
    anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
    for name, rule in shipped.alerts().items():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/monitoring.md" and anchor in anchors, name
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


START = 1_700_000_000
STEP = 30
LOOKS = 40
SILENT = {
    "Chunks not stored",
    "What tenants keep",
    "Set aside",
    "Findings of the doctor",
    "Answers",
}
"""Panels with a query after what did not happen while it was recorded: refusals, tenants, findings, ..."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has collected what was recorded for twenty minutes, while all of it grew evenly."""
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        pytest.skip(
            "no Prometheus here: its queries are only read; on Debian: apt-get install prometheus"
        )
    directory = tmp_path_factory.mktemp("prometheus")
    lines = []
    for path in sorted(shipped.RECORDED.glob("*.txt")):
        for name, labels, value in samples(path.read_text()):
            told = {**labels, "instance": path.stem, "job": path.stem}
            text = ",".join(f"{key}={json.dumps(one)}" for key, one in told.items())
            rises = name.endswith(("_total", "_bucket", "_count", "_sum"))
            for look in range(LOOKS):
                now = value * (look + 1) / LOOKS if rises else value
                lines.append(f"{name}{{{text}}} {now:g} {START + look * STEP}")
    (directory / "told.txt").write_text("\n".join([*lines, "# EOF", ""]))
    subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", "told.txt", "tsdb"],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    with prometheus(directory, {}) as server:
        yield server


def test_a_prometheus_answers_every_query_with_what_was_recorded(filled: Prometheus) -> None:
    at = START + (LOOKS - 1) * STEP
    told = {
        name for path in shipped.RECORDED.glob("*.txt") for name, _, _ in samples(path.read_text())
    }
    silent = []
    for where, query in shipped.dashboard_queries():
        names = {one.metric for one in asked(query)[0]}
        answer = filled.now(query, at)
        if names <= told:
            assert answer, f"{where}: {query}"
        else:
            silent.append(where)
    assert set(silent) <= SILENT
    for name, rule in shipped.alerts().items():
        filled.now(rule["expr"], at)  # raises where Prometheus refuses it
        assert name
