"""What the documents say is true of the code."""

import json
import re
from pathlib import Path

import pytest

from kvstrata.metrics import ALL, Kind
from kvstrata.options import Options

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_metric_is_explained_with_its_labels() -> None:
    text = (REPOSITORY / "docs" / "operating.md").read_text()
    table = text.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
    rows = re.findall(r"\| `vllm:(\w+)` \| (\w+) \| (.*?) \| (.*?) \|", table)
    found = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in rows
    }
    expected = {
        metric.name + ("_total" if metric.kind is Kind.COUNTER else ""): (
            metric.kind.value,
            metric.labels,
            metric.help,
        )
        for metric in ALL
    }
    assert found == expected


def test_the_example_in_the_readme_is_a_valid_configuration() -> None:
    text = (REPOSITORY / "README.md").read_text()
    match = re.search(r"--kv-transfer-config '(\{.*?\}\})'", text, re.DOTALL)
    assert match is not None
    config = json.loads(match[1])
    assert config["kv_connector"] == "KVStrataConnector"
    options = Options.parse(config["kv_connector_extra_config"])
    assert (options.path, options.memory) == ("/mnt/kv", 8 << 30)


def test_the_commands_in_the_readme_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", (REPOSITORY / "README.md").read_text()):
        if target.startswith("bench-"):
            module = target.removeprefix("bench-").replace("-", "_")
            assert (REPOSITORY / "lab" / "bench" / f"{module}.py").exists()
        else:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
