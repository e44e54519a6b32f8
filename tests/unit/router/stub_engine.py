"""An engine that computes nothing: it answers as the body of a request tells it to.

In a body: `max_tokens` tokens are streamed (`stream`), `pause` seconds apart; `fail_after` tokens the
connection breaks; `status` is answered instead; `wait` seconds pass before the answer begins; `echo` answers
with what arrived. Runs inside a test's loop, or alone: `python stub_engine.py PORT NAME`.
"""

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request as the engine got it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    finished: bool = False

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class StubEngine:
    name: str = "stub"
    models: tuple[str, ...] = ("tiny",)
    health: int = 200
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    aborted: int = 0
    status: int = 0
    metrics: str = "vllm:num_requests_waiting{a=} 7\n"
    cached: int | None = None
    """Tokens of each prompt that it says it did not compute; None: it does not say."""
    server: asyncio.Server | None = None
    port: int = 0

    async def start(self, port: int = 0) -> "StubEngine":
        self.server = await asyncio.start_server(self._client, "127.0.0.1", port, limit=1 << 20)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def posts(self) -> list[Seen]:
        return [one for one in self.seen if one.line.startswith("POST")]

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        seen = None
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = [tuple(line.split(": ", 1)) for line in head[1:] if line]
                seen = Seen(head[0], pairs, b"")  # type: ignore[arg-type]
                length = int((seen.header("content-length") or ["0"])[0])
                seen.body = await reader.readexactly(length)
                self.seen.append(seen)
                answer = asyncio.ensure_future(self._answer(seen, writer))
                gone = asyncio.ensure_future(self._gone(reader))
                await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    self.aborted += 1
                    answer.cancel()
                    await asyncio.gather(answer, return_exceptions=True)
                    return
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                await answer
                seen.finished = True
                if seen.header("connection") == ["close"]:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _gone(self, reader: asyncio.StreamReader) -> None:
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.01)

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        method, target, _ = seen.line.split(" ")
        if method == "GET":
            await self._get(target, writer)
            return
        asked = json.loads(seen.body) if seen.body else {}
        await asyncio.sleep(asked.get("wait", 0))
        status = self.status or asked.get("status", 200)
        if asked.get("break_now"):
            writer.transport.abort()
            raise ConnectionError
        if status != 200:
            _send(
                writer, status, {"error": {"message": f"{self.name} says {status}", "code": status}}
            )
        elif asked.get("echo"):
            shown = {"line": seen.line, "headers": seen.headers, "body": seen.body.decode()}
            _send(writer, 200, {**shown, "engine": self.name})
        elif asked.get("stream"):
            await self._stream(target, asked, writer)
        elif target == "/v1/chat/completions":
            _send(writer, 200, chat(self.name, asked))
        elif target == "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            _send(writer, 200, {"object": "list", "data": data, "model": "tiny", "usage": usage})
        else:
            size = asked.get("max_tokens", 1)
            choice = {"index": 0, "text": "x" * size, "logprobs": None, "finish_reason": "stop"}
            _send(writer, 200, {"id": self.name, "object": "text_completion", "created": 1, "model": "tiny",
                                "choices": [choice], **self._usage()})  # fmt: skip
        await writer.drain()

    def _usage(self) -> dict:
        if self.cached is None:
            return {}
        details = {"cached_tokens": self.cached}
        return {"usage": {"prompt_tokens": 1, "total_tokens": 2, "prompt_tokens_details": details}}

    async def _get(self, target: str, writer: asyncio.StreamWriter) -> None:
        if target == "/health":
            _send(writer, self.health, {})
        elif target == "/v1/models":
            one = [
                {"id": name, "object": "model", "created": 1, "owned_by": "x"}
                for name in self.models
            ]
            _send(writer, 200, {"object": "list", "data": one})
        else:
            text = self.metrics.encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
        await writer.drain()

    async def _stream(self, target: str, asked: dict, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        await writer.drain()
        for number in range(asked.get("max_tokens", 3)):
            if number == asked.get("fail_after"):
                writer.transport.abort()
                raise ConnectionError
            if asked.get("pause"):
                await asyncio.sleep(asked["pause"])
            _chunk(writer, event(target, number, asked.get("pad", 0)))
            await writer.drain()
        if self.cached is not None and (asked.get("stream_options") or {}).get("include_usage"):
            _chunk(
                writer, b"data: " + json.dumps({"choices": [], **self._usage()}).encode() + b"\n\n"
            )
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


def event(target: str, number: int, pad: int = 0) -> bytes:
    """The bytes of one server-sent event."""
    text = f" {number}" + "x" * pad
    if target == "/v1/chat/completions":
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        kind = "chat.completion.chunk"
    else:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
        kind = "text_completion"
    shown = {"id": "s", "object": kind, "created": 1, "model": "tiny", "choices": [choice]}
    return b"data: " + json.dumps(shown).encode() + b"\n\n"


def stream_bytes(target: str, count: int, pad: int = 0) -> bytes:
    """All bytes of a stream of `count` tokens."""
    return b"".join(event(target, n, pad) for n in range(count)) + b"data: [DONE]\n\n"


def chat(name: str, asked: dict) -> dict:
    message = {"role": "assistant", "content": "hello"}
    if asked.get("tools"):
        called = {"name": asked["tools"][0]["function"]["name"], "arguments": '{"city":"Bonn"}'}
        message = {"role": "assistant", "content": None,
                   "tool_calls": [{"id": "c1", "type": "function", "function": called}]}  # fmt: skip
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    if asked.get("logprobs"):
        one = {"token": "hello", "logprob": -0.5, "bytes": [104], "top_logprobs": []}
        choice["logprobs"] = {"content": [one]}
    return {"id": name, "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}  # fmt: skip


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _send(writer: asyncio.StreamWriter, status: int, body: dict) -> None:
    data = json.dumps(body).encode()
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (status, len(data), data)
    )


async def main() -> None:
    engine = await StubEngine(name=sys.argv[2]).start(int(sys.argv[1]))
    sys.stdout.write(f"{engine.port}\n")
    sys.stdout.flush()
    assert engine.server is not None
    await engine.server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
