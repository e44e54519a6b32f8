"""Which token ids a request stands for is said before a real engine reads it; the engine reads those.

The oracle is the engine's own word in its answers (`return_token_ids`), for requests read from the model's
files, which the router finds by what the engine says, and for the same requests read by asking the engine.
"""

import asyncio
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from safetensors.numpy import save_file

from kvstrata.fleet.hashing import Recipe
from kvstrata.router.asking import ask
from kvstrata.router.config import RouterConfig
from kvstrata.router.ids import warm
from kvstrata.router.reading import Read, Reading
from kvstrata.router.service import Router
from kvstrata.wire.batches import Stored, decode_any
from lab.models import ensure
from lab.server import EngineServer

pytestmark = pytest.mark.engine

RECIPE = Recipe.default(128)

TEMPLATE = """{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|end|>{% endif %}
{%- for message in messages %}{{ '<|' + message.role + '|>' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}{{ call | tojson }}{{ call.function.arguments | tojson }}
{%- endfor %}
{{- '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' + (mood or '') }}{% endif %}"""

TEXT = 'Naïve café: 東京 costs 3.14, "isn\'t it"?\n\tIndented.\n' * 12
USER = {"role": "user", "content": TEXT}
TALK = [
    {"role": "system", "content": "You help. "},
    USER,
    {"role": "assistant", "content": "Yes."},
    USER,
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": TEXT}, {"type": "text", "text": "b"}]}
]
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "number"}}}
TOOLS = [
    {"type": "function", "function": {"parameters": SCHEMA, "name": "f", "description": "déjà"}},
    {"function": {"name": "g", "strict": False, "unknown": 1}, "type": "function"},
]
CALLED = [
    USER,
    {
        "tool_calls": [
            {
                "function": {"name": "f", "arguments": '{"b": "é", "a": 2}'},
                "id": "1",
                "type": "function",
            }
        ],
        "role": "assistant",
    },
    {"role": "tool", "content": [{"type": "text", "text": "warm"}], "tool_call_id": "1"},
    USER,
]
PLAIN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": TEXT}),
    ("/v1/completions", {"prompt": [TEXT], "add_special_tokens": False}),
    ("/v1/completions", {"prompt": [*range(32, 120)] * 3}),
    ("/v1/chat/completions", {"messages": TALK}),
    ("/v1/chat/completions", {"messages": PARTS, "add_special_tokens": True}),
    ("/v1/chat/completions", {"messages": TALK, "add_generation_prompt": False}),
    ("/v1/chat/completions", {"messages": CALLED, "tools": TOOLS}),
)
"""Known from files."""
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": TALK, "chat_template_kwargs": {"mood": "happy"}}),
    ("/v1/chat/completions", {"messages": TALK, "reasoning_effort": "low"}),
    (
        "/v1/chat/completions",
        {"messages": TALK[:3], "continue_final_message": True, "add_generation_prompt": False},
    ),
    ("/v1/chat/completions", {"messages": [{"role": "developer", "content": TEXT}, USER]}),
)
"""Only the engine knows."""


def adapter(home: Path) -> Path:
    """A random LoRA adapter for the tiny Llama."""
    made = home / "adapter"
    made.mkdir()
    draw = np.random.default_rng(1).standard_normal
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": draw(
            shape, np.float32
        )
        for layer in range(4)
        for side, shape in (("A", (8, 256)), ("B", (256, 8)))
    }
    save_file(weights, str(made / "adapter_model.safetensors"))
    config = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    config |= {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (made / "adapter_config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    home = tmp_path_factory.mktemp("model")
    for file in ensure("llama").iterdir():
        shutil.copyfile(file, home / file.name) if file.stat().st_size < 1 << 20 else (
            (home / file.name).symlink_to(file)
        )
    (home / "chat_template.jinja").write_text(TEMPLATE)
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"ipc://{home}/events",
    }
    arguments = (
        *("--model", str(home), "--enable-auto-tool-choice", "--tool-call-parser", "pythonic"),
        *("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter(home)}"),
        *("--kv-events-config", json.dumps(events)),
    )
    with EngineServer("llama", home / "log", arguments=arguments) as running:
        yield running


def post(server: EngineServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        json.dumps({"model": "llama", **body}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def read_by_engine(server: EngineServer, path: str, body: dict[str, Any]) -> list[int]:
    """Prompt token ids of an answer."""
    got = post(server, path, {**body, "max_tokens": 1, "return_token_ids": True})
    return list(got.get("prompt_token_ids") or got["choices"][0]["prompt_token_ids"])


def asked(path: str, body: dict[str, Any]) -> Any:
    data = json.dumps({"model": "llama", **body}).encode()
    return ask(SimpleNamespace(path=path, headers=(), body=data), "one")  # type: ignore[arg-type]


async def predicted(
    server: EngineServer, requests: Any, files: bool
) -> list[tuple[list[int] | None, str]]:
    """Token ids and doubts, with the files that the engine names or without."""
    found = [one.prompt for one in await read(server, requests, files)]
    return [(None if one.tokens is None else one.tokens.tolist(), one.doubt) for one in found]


async def read(server: EngineServer, requests: Any, files: bool) -> list[Read]:
    """What is known of requests."""
    settings = {"port": 0, "policy": "least-loaded", "probe_every": 0.1}
    url = f"http://127.0.0.1:{server.port}"
    router = Router(RouterConfig.parse({**settings, "replica": [{"url": url}]}))
    await router.start()
    reading = Reading()
    try:
        async with asyncio.timeout(30):
            while not all(one.health.state == "up" for one in router.application.replicas):
                await asyncio.sleep(0.05)
            for replica in router.application.replicas:
                if not files:
                    replica.served = {
                        name: msgspec.structs.replace(one, root="nowhere")
                        for name, one in replica.served.items()
                    }
                reading.saw(replica)
                if not files:
                    reading._models.saw = lambda _: None  # type: ignore[method-assign]
            while reading._models._trials:
                await asyncio.sleep(0.05)
            return [await reading.read(asked(path, body), [RECIPE]) for path, body in requests]
    finally:
        reading.close()
        await router.stop()


def test_the_engine_reads_what_was_said_before(server: EngineServer) -> None:
    warm()
    requests = (*PLAIN, *ASKED)
    truth = [read_by_engine(server, path, body) for path, body in requests]
    assert len({len(ids) for ids in truth}) > len(truth) // 2
    for files in (True, False):
        found = asyncio.run(predicted(server, requests, files))
        for (path, body), ids, (said, doubt) in zip(requests, truth, found, strict=True):
            assert (said, doubt) == (ids, ""), (path, body, files)


def test_files_tell_without_a_question(server: EngineServer, monkeypatch) -> None:
    """Else the test above would pass with files that are never used."""

    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError("asked")

    async def go() -> None:
        monkeypatch.setattr(Reading, "_ask", never)
        for ids, doubt in await predicted(server, PLAIN, files=True):
            assert ids and not doubt

    asyncio.run(go())


def test_a_response_is_as_long_as_was_said(server: EngineServer) -> None:
    bodies = (
        {"input": TEXT, "instructions": "Help."},
        {"input": [USER, {"role": "assistant", "content": "Yes."}, USER]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]},
    )
    requests = [("/v1/responses", body) for body in bodies]
    for files in (True, False):
        found = asyncio.run(predicted(server, requests, files))
        for (path, body), (ids, doubt) in zip(requests, found, strict=True):
            got = post(server, path, {**body, "max_output_tokens": 16})
            assert ids is not None and not doubt, (body, files, doubt)
            assert len(ids) == got["usage"]["input_tokens"]


def test_an_adapters_blocks_are_announced_under_the_hashes_that_were_said(
    server: EngineServer,
) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.connect(f"ipc://{server.log.parent}/events")
        socket.subscribe("")
        ids = [32 + 7 * n % 90 for n in range(300)]
        # The first subscription takes its time; a request whose events were missed is sent again, changed.
        for turn in range(20):
            body = {"prompt": [*ids, turn], "cache_salt": str(turn)}
            post(server, "/v1/completions", {**body, "model": "tuned", "max_tokens": 1})
            if socket.poll(500):
                break
        stored = [
            event
            for event in decode_any(socket.recv_multipart()[-1]).events
            if isinstance(event, Stored)
        ]
    requests = [("/v1/completions", {**body, "model": name}) for name in ("tuned", "llama")]
    tuned, plain = asyncio.run(read(server, requests, files=True))
    name = f"127.0.0.1:{server.port}"
    said, other = tuned.hashes(name, RECIPE), plain.hashes(name, RECIPE)
    assert said is not None and other is not None
    assert [one.lora for one in stored] == ["tuned"]
    assert list(stored[0].hashes) == said.tolist() != other.tolist()
