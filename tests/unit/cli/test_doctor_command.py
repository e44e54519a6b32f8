"""`kvstrata doctor` against real directories and a server of fixed answers."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.cli import doctor as command
from kvstrata.cli import scrape
from kvstrata.cli.main import app
from kvstrata.doctor.facts import EngineFacts
from kvstrata.doctor.findings import CODES, markdown
from kvstrata.errors import ConfigError
from tests.unit.cli.roots import Root

METRICS = r"""# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",cache_dtype="auto",enable_prefix_caching="%(caching)s",engine="0"} 1.0
vllm:kvstrata_info{engine="0",hash_seed="default",namespace="tiny-old",version="0.1.0"} 0.0
vllm:kvstrata_info{engine="0",hash_seed="default",namespace="%(namespace)s",version="0.1.0"} 1.0
vllm:kvstrata_tokens_total{engine="0",model_name="a \"quoted\" \\ name\n",tier="memory"} 1.5e+03 1700000000
vllm:kvstrata_bad_records_total{engine="0",reason="checksum"} %(bad)s
not a metric at all {
"""


def metrics(**values: Any) -> str:
    return METRICS % {"caching": "True", "namespace": "tiny-" + "1" * 32, "bad": "0.0", **values}


class Server:
    """Answers like one engine."""

    def __init__(self, text: str) -> None:
        answers = {
            "/metrics": text,
            "/v1/models": json.dumps({"data": [{"id": "tiny", "root": "/models/tiny"}]}),
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = answers.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.end_headers()
                self.wfile.write((body or "").encode())

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def make(**values: Any) -> str:
        servers.append(Server(metrics(**values)))
        return servers[-1].url

    yield make
    for server in servers:
        server.close()


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["doctor", *(str(argument) for argument in arguments)])


def codes(result: Any) -> list[str]:
    return [finding["code"] for finding in json.loads(result.stdout)["findings"]]


# --- usage -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--block-size", "16"],
        ["--url", "localhost:8000"],
        ["--path", "/no/such/directory"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("kvstrata: ")


def test_the_table_of_findings_is_the_documents() -> None:
    assert run("--markdown").stdout == markdown()
    document = Path(__file__).resolve().parents[3] / "docs" / "doctor.md"
    text = document.read_text()
    table = text.partition("<!-- findings -->\n")[2].partition("<!-- /findings -->")[0]
    assert table.strip() == markdown().strip(), "kvstrata doctor --markdown"


# --- a directory -------------------------------------------------------------------------


def test_namespaces_of_one_model_are_compared(tmp_path: Path) -> None:
    Root(tmp_path, hash_seed="default")
    result = run("--path", tmp_path, "--json")
    assert (result.exit_code, codes(result)) == (0, [])
    Root(tmp_path, hash_seed="=7")
    result = run("--path", tmp_path, "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert result.exit_code == 0
    assert (finding["code"], finding["subject"]) == ("namespace-differs", "org/tiny: hash_seed")
    assert finding["means"] == CODES["namespace-differs"].means
    assert run("--path", tmp_path, "--strict").exit_code == 1


def test_the_text_names_subject_message_and_remedy(tmp_path: Path) -> None:
    Root(tmp_path, label="a")
    Root(tmp_path, label="b")
    text = run("--path", tmp_path).stdout
    assert "namespace-differs: org/tiny: label" in text
    assert "remedy: give all replicas the same option label" in text
    assert text.splitlines()[-1] == "0 errors, 1 warning, 0 notes"


# --- running engines ---------------------------------------------------------------------


def test_a_sound_engine(serve: Any) -> None:
    url = serve()
    result = run("--url", url, "--json")
    assert (result.exit_code, codes(result)) == (0, [])
    (replica,) = json.loads(result.stdout)["replicas"]
    assert replica["namespace"] == "tiny-" + "1" * 32  # the one in use, not the one before
    assert replica["models"] == ["tiny"]
    assert replica["tokens"] == {"memory": 1500.0}


def test_an_engine_without_prefix_caching_fails(serve: Any) -> None:
    result = run("--url", serve(caching="False"))
    assert result.exit_code == 1
    assert "prefix-caching-off" in result.stdout


def test_an_engine_that_is_not_there() -> None:
    result = run("--url", "http://127.0.0.1:9", "--json")
    assert (result.exit_code, codes(result)) == (1, ["replica-unreachable"])


def test_a_server_that_is_no_engine(tmp_path: Path) -> None:
    server = Server("")
    try:
        result = run("--url", f"{server.url}/elsewhere", "--json")
    finally:
        server.close()
    assert codes(result) == ["replica-unreachable"]


def test_two_engines_that_do_not_share_and_the_field(serve: Any, tmp_path: Path) -> None:
    one, other = Root(tmp_path, dtype="float32"), Root(tmp_path, dtype="bfloat16")
    Root(tmp_path, dtype="float16")  # of an engine that was not asked
    urls = [serve(namespace=root.directory.name) for root in (one, other)]
    result = run("--url", urls[0], "--url", urls[1], "--path", tmp_path, "--json")
    found = json.loads(result.stdout)["findings"]
    assert [f["code"] for f in found] == ["replica-namespace", "namespace-differs"]
    assert found[1]["subject"] == "org/tiny: dtype"
    assert "float16'" not in found[1]["message"].replace("bfloat16'", "")


def test_counters_that_complain(serve: Any) -> None:
    assert codes(run("--url", serve(bad="2"), "--json")) == ["live-bad-records"]


def test_samples_are_read_as_prometheus_own_parser_reads_them() -> None:
    text = metrics().replace("not a metric at all {\n", "")
    expected = [
        (sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert [(s.name, dict(s.labels), s.value) for s in scrape.samples(text)] == expected
    assert len(expected) == 5


# --- an engine that is not started -------------------------------------------------------


FACTS = EngineFacts(
    "/models/tiny",
    (
        GroupGeometry(0, GroupKind.FULL, 128, 1, (1024, 1024)),
        GroupGeometry(1, GroupKind.WINDOW, 128, 1, (512, 512), window_tokens=512),
    ),
    (2, 10),
    max_model_len=4096,
    scheduler_block=128,
    shutdown_timeout=20,
    retention=None,
    arena_bytes=1 << 20,
)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces vLLM's part; the real one runs in the end-to-end tests."""
    asked: list[list[str]] = []

    def pretend(facts: EngineFacts, covers: dict[str, Any] | None = None) -> list[list[str]]:
        def build(arguments: list[str]) -> command.Built:
            asked.append(arguments)
            return command.Built(facts, covers or {}, "/dev/shm", "")

        monkeypatch.setattr(command, "build", build)
        return asked

    return pretend


def test_what_is_not_ours_goes_to_vllm(built: Any) -> None:
    asked = built(FACTS)
    result = run("--model", "/models/tiny", "--block-size", "64", "--json", "--enforce-eager")
    assert asked == [["--model", "/models/tiny", "--block-size", "64", "--enforce-eager"]]
    engine = json.loads(result.stdout)["engine"]
    assert [group["chunk_bytes"] for group in engine["groups"]] == [2048, 1024]
    assert [group["boundary_chunks"] for group in engine["groups"]] == [None, 4]
    assert engine["smallest_boundary"] == 128
    assert codes(result) == ["memory-only"]


def test_the_groups_are_shown(built: Any) -> None:
    built(FACTS)
    text = run("--model", "/models/tiny").stdout
    assert "window 512" in text and "2 KiB" in text and "the last 4" in text
    assert "a prompt shorter than 128 tokens is never stored" in text


def test_its_directory_is_tried_and_its_namespace_compared(built: Any, tmp_path: Path) -> None:
    root = Root(tmp_path, model="tiny", dtype="float32")
    with_path = dataclasses.replace(FACTS, path=str(tmp_path))
    covers = json.loads(root.namespace.to_json())["covers"]
    built(with_path, covers)
    assert codes(run("--model", "/models/tiny", "--json")) == []
    built(with_path, {**covers, "dtype": "bfloat16"})
    assert codes(run("--model", "/models/tiny", "--json")) == ["namespace-differs"]


def test_facts_survive_the_way_between_the_processes() -> None:
    again = msgspec.json.decode(msgspec.json.encode(FACTS), type=EngineFacts)
    assert again == FACTS


def test_vllm_s_refusal_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ConfigError, match="vLLM refused"):
        command.build(["--model", "x"])
