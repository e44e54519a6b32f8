"""`kvstrata fleet` against publishers of the test's own."""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvstrata.chunks.block_hashes import BlockHasher
from kvstrata.cli.fleet_places import addresses
from kvstrata.cli.main import app
from kvstrata.cli.prompt_tokens import read_prompt
from kvstrata.errors import ConfigError
from kvstrata.fleet.discovery import discover, reachable
from kvstrata.wire.batches import low_bits
from kvstrata.wire.snapshot import EngineFacts, GroupFacts
from tests.unit.events.fake_publisher import FakeEngine

HASHER = BlockHasher("sha256", 16)
FACTS = EngineFacts(
    "m",
    "sha256",
    HASHER.none_hash,
    16,
    16,
    (GroupFacts(0, "full", 16, 1, 1024), GroupFacts(1, "window", 16, 1, 1024, 32)),
    "names@place",
)
TOKENS = [7 * n % 50_000 for n in range(16 * 10 + 3)]
HASHES = [low_bits(value) for value in HASHER.hashes(TOKENS)]


def stored(hashes: list[int], group: int, medium: str, **more) -> dict:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": [],
        "block_size": 0,
        "lora_id": None,
        "medium": medium,
        "group_idx": group,
        **more,
    }


@pytest.fixture
def at() -> Iterator[Callable[[str], str]]:
    with tempfile.TemporaryDirectory(prefix="kv") as directory:
        yield lambda name: f"ipc://{directory}/{name}"


@pytest.fixture
def engine(at) -> Iterator[FakeEngine]:
    made = FakeEngine(at("e"), at("r"), facts=FACTS)
    # The device holds four blocks; memory the sixth to tenth of the full group, storage the fifth.
    made.publish([stored(HASHES[:4], group, "GPU") for group in (0, 1)])
    made.publish([stored(HASHES[5:], 0, "CPU"), stored(HASHES[7:9], 1, "CPU")])
    made.publish([stored([HASHES[4]], 0, "STORAGE", ownership="names@place")])
    made.settle()
    yield made
    made.close()


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps(TOKENS))
    return path


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fleet", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_watch_tells_what_each_replica_holds(at, engine) -> None:
    status, text = run("watch", "--replica", f"a={at('e')},{at('r')}", "--json")
    told = json.loads(text)
    rank = told["replicas"][0]["ranks"][0]
    assert status == 0 and rank["trust"] == "synced" and rank["epoch"] == engine.epoch.hex()
    blocks = {(part["tier"], part["group"]): part["blocks"] for part in rank["blocks"]}
    assert blocks == {
        ("GPU", 0): 4,
        ("GPU", 1): 4,
        ("CPU", 0): 5,
        ("CPU", 1): 2,
        ("STORAGE", 0): 1,
    }
    assert told["findings"] == []


def test_watch_shows_a_table_and_why_a_replica_cannot_be_believed(at, engine) -> None:
    status, text = run(
        "watch", "--replica", f"a={at('e')},{at('r')}", "--replica", f"b={at('nobody')}",
        "--seconds", "1.6",
    )  # fmt: skip
    assert status == 1, "b is stale"
    for shown in (
        "device 0:4 1:4",
        "storage (shared) 0:1",
        engine.epoch.hex()[:8],
        "no connection",
    ):
        assert shown in text


def test_explain_says_how_far_and_what_cut_it_short(at, engine, prompt_file: Path) -> None:
    arguments = ("explain", "--replica", f"a={at('e')},{at('r')}", "--prompt-file", prompt_file)
    status, text = run(*arguments, "--json")
    told = json.loads(text)
    assert status == 0 and told["tokens"] == len(TOKENS)
    reuse = told["replicas"][0]["reuse"]
    # Memory lacks the fifth block, so alone it brings nothing; with storage the window decides: 9 blocks.
    reached = [reuse[tier]["tokens"] for tier in ("device", "memory", "storage")]
    assert reached == [64, 64, 144]
    loads = {(load["tier"], load["group"]): load["chunks"] for load in reuse["storage"]["loads"]}
    assert loads == {("memory", 0): 4, ("storage", 0): 1, ("memory", 1): 2}
    assert reuse["storage"]["cuts"][-1]["groups"] == [1]
    status, text = run(*arguments)
    assert status == 0 and "144" in text and "group 1 (window)" in text


def test_explain_with_another_salt_finds_nothing(at, engine, prompt_file: Path) -> None:
    replica = f"a={at('e')},{at('r')}"
    _, text = run(
        "explain", "--replica", replica, "--prompt-file", prompt_file, "--salt", "s", "--json"
    )
    assert json.loads(text)["replicas"][0]["reuse"]["storage"]["tokens"] == 0


def test_explain_of_an_engine_that_tells_nothing(at, prompt_file: Path) -> None:
    status, text = run(
        "explain", "--replica", f"a={at('nobody')}", "--prompt-file", prompt_file, "--wait", "2",
        "--json",
    )  # fmt: skip
    assert status == 1 and "unknown" in json.loads(text)["replicas"][0]


@pytest.mark.parametrize("text", ["{}", "[1, true]", "[-1]", "[1.5]", "hello", "[" * 100_000])
def test_a_prompt_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="JSON array of token ids"):
        read_prompt(path, None)


def test_a_prompt_as_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"one": 1, "two": 2, "?": 0}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "prompt.txt"
    path.write_text("two one three")
    assert read_prompt(path, tmp_path).tolist() == [2, 1, 0]
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompt(path, path)


def test_addresses() -> None:
    found = addresses(["a=tcp://h:1,tcp://h:2", "b=tcp://h:3", "a=tcp://h:4"], [], "t")
    assert [(one.name, one.events) for one in found] == [
        ("a", (("tcp://h:1", "tcp://h:2"), ("tcp://h:4", None))),
        ("b", (("tcp://h:3", None),)),
    ]
    assert [feed.name for feed in found[0].feeds()] == ["a", "a/1"]
    for wrong in ("a", "=tcp://h:1", "a=", "a=h:1"):
        with pytest.raises(ConfigError):
            addresses([wrong], [], "")
    with pytest.raises(ConfigError, match="at least one engine"):
        addresses([], [], "")


def test_where_an_engine_says_its_events_are() -> None:
    url = "http://10.0.0.7:8000"
    assert reachable("tcp://*:5557", url) == "tcp://10.0.0.7:5557"
    assert reachable("tcp://0.0.0.0:5557", "http://[fe80::1]:8000/v1") == "tcp://[fe80::1]:5557"
    assert reachable("tcp://10.0.0.9:5557", url) == "tcp://10.0.0.9:5557"
    assert reachable("ipc:///tmp/x", url) == "ipc:///tmp/x"
    infos = [
        {"engine": "10", "events": "tcp://*:3", "snapshots": ""},
        {"engine": "2", "events": "tcp://*:1", "snapshots": "tcp://*:2"},
        {"engine": "3", "events": ""},
    ]
    assert discover("a", url, infos).events == (
        ("tcp://10.0.0.7:1", "tcp://10.0.0.7:2"),
        ("tcp://10.0.0.7:3", None),
    )
    with pytest.raises(ConfigError, match="--kv-events-config"):
        discover("a", url, infos[2:])


def test_watch_finds_an_engine_by_its_metrics(at, engine) -> None:
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (
                f'vllm:kvstrata_info{{engine="0",events="{at("old")}",snapshots=""}} 0.0\n'
                f'vllm:kvstrata_info{{engine="0",events="{at("e")}",snapshots="{at("r")}"}} 1.0\n'
                f'vllm:kvstrata_endpoints{{engine="0",events="{at("e")}",snapshots=""}} 1.0\n'
            ).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        status, text = run("watch", "--url", f"http://127.0.0.1:{server.server_port}", "--json")
    finally:
        server.shutdown()
        server.server_close()
    assert status == 0 and json.loads(text)["replicas"][0]["ranks"][0]["sequence"] == 2
