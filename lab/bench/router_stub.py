"""Engines that compute nothing: `python -m lab.bench.router_stub ENDPOINTS TOKENIZER`.

ENDPOINTS is JSON: for each engine the addresses of its events and of its replays, which it tells in its
metrics and leaves to others. TOKENIZER is a directory, by which `/tokenize` is answered for texts. All run
in one process, which prints their ports as JSON.

`max_tokens` decides how one answers: a request without `stream` at once and whole; a stream of fewer than
`PACED_FROM` tokens at once; a longer one with a token in every step, all streams of an engine together, as
an engine's steps do. Bodies of those requests are not parsed.
"""

import asyncio
import json
import re
import sys
import time
from typing import cast

import httptools
import uvloop
from tokenizers import Tokenizer

STEP = 0.01
"""Seconds between two tokens of a stream."""
PACED_FROM = 16
_MOST = re.compile(rb'"max_tokens":\s*(\d+)')
_SHOWN = (
    b'{"id":"cmpl-%d","object":"text_completion","created":1764000000,"model":"m","choices":[{"index":0,'
    b'"text":" token","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}'
)
_WHOLE = (
    b'{"id":"cmpl-%d","object":"text_completion","created":1764000000,"model":"m","choices":[{"index":0,'
    b'"text":" token","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":'
    b'1024,"total_tokens":1025,"completion_tokens":1}}'
)
_MODELS = {
    "object": "list",
    "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}],
}
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Engine:
    """One engine: what its answers are, and which streams it is in the middle of.

    Args:
        number: from 0; in the id of every answer.
        events: address of its events.
        replay: address of its replays.
        tokenizer: of its model.
    """

    def __init__(self, number: int, events: str, replay: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        shown = f'vllm:kvstrata_endpoints{{events="{events}",snapshots="{replay}"}} 1.0\n'
        load = "vllm:num_requests_running{} 0.0\nvllm:num_requests_waiting{} 0.0\n"
        self.metrics = _answer(b"text/plain", (load + shown).encode())
        self.models = _answer(b"application/json", json.dumps(_MODELS).encode())
        self.whole = _answer(b"application/json", _WHOLE % number)
        self.token = _chunk(b"data: " + _SHOWN % number + b"\n\n")
        self.streams: dict[asyncio.Transport, int] = {}

    def tokenized(self, body: bytes) -> bytes:
        """The answer to a `/tokenize`; it has no chat template."""
        text = json.loads(body).get("prompt")
        if not isinstance(text, str):
            return _answer(b"application/json", b'{"error":{"message":"no prompt"}}', b"400 Bad")
        ids = self._tokenizer.encode(text).ids
        return _answer(b"application/json", json.dumps({"count": len(ids), "tokens": ids}).encode())

    async def step(self) -> None:
        """Give each stream its next token, for ever, at an even pace."""
        due = time.monotonic()
        while True:
            due = max(due + STEP, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            for transport, left in list(self.streams.items()):
                transport.write(self.token if left else _LAST)
                if left:
                    self.streams[transport] = left - 1
                else:
                    del self.streams[transport]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer(kind: bytes, body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


_LAST = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection of a router to an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._engine.streams.pop(self._transport, None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        """Its path, or some of it."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """It is whole: answer it."""
        engine, write = self._engine, self._transport.write
        if self._parser.get_method() == b"GET":
            named = {b"/metrics": engine.metrics, b"/v1/models": engine.models}
            write(named.get(self._url, _answer(b"application/json", b"{}")))
            return
        body = b"".join(self._body)
        if self._url == b"/tokenize":
            write(engine.tokenized(body))
            return
        found = _MOST.search(body)
        most = int(found.group(1)) if found else 1
        if b'"stream":true' not in body and b'"stream": true' not in body:
            write(engine.whole)
        elif most < PACED_FROM:
            write(_STREAM)
            write(engine.token * most + _LAST)
        else:
            write(_STREAM)
            engine.streams[self._transport] = most


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    tokenizer = Tokenizer.from_file(f"{sys.argv[2]}/tokenizer.json")
    ports, servers, steps = [], [], []
    for number, (events, replay) in enumerate(json.loads(sys.argv[1])):
        engine = Engine(number, events, replay, tokenizer)
        server = await loop.create_server(lambda e=engine: Connection(e), "127.0.0.1", 0)  # type: ignore[misc]
        servers.append(server)
        ports.append(server.sockets[0].getsockname()[1])
        steps.append(loop.create_task(engine.step()))
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
