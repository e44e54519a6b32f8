"""A stand-in for vLLM's server, as far as the harness can see; run as a program, it serves for ever.

`python fake_engine.py PORT PIDFILE [ignore-sigterm]` starts a child that ends with nobody's help, as an
engine core might, writes both process ids to PIDFILE, and answers on PORT.
"""

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

METRICS = """\
# HELP vllm:kvstrata_chunks x
# TYPE vllm:kvstrata_chunks gauge
vllm:kvstrata_chunks{engine="0",model_name="m",tier="memory",state="writing"} %d
# HELP vllm:kvstrata_queue_depth x
# TYPE vllm:kvstrata_queue_depth gauge
vllm:kvstrata_queue_depth{engine="0",model_name="m",queue="write"} %d
# HELP vllm:plain_total x
# TYPE vllm:plain_total counter
vllm:plain_total{engine="0",model_name="m"} 3.0
"""


class Handler(BaseHTTPRequestHandler):
    """Answers as vLLM does; the server's `waiting` says how many writes are left, one less per ask."""

    server: "FakeEngine"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._reply(b"")
        else:
            waiting = self.server.waiting
            self.server.waiting = max(0, waiting - 1)
            text = METRICS % (waiting > 1, waiting > 0) if self.server.publishes else ""
            self._reply(text.encode())

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"] or 0))
        self.server.asked.append((self.path, json.loads(content or "null")))
        if self.path == "/reset_prefix_cache":
            self._reply(b"")
        elif self.server.broken:
            self._reply(b'{"error": "no"}', status=500)
        else:
            events = [
                {"choices": [{"token_ids": [7]}]},
                {"choices": [{"token_ids": [8, 9]}]},
                {
                    "choices": [],
                    "usage": {"prompt_tokens_details": {"cached_tokens": self.server.cached}},
                },
            ]
            lines = [f"data: {json.dumps(event)}\n\n" for event in events]
            self._reply("".join([*lines, "data: [DONE]\n\n"]).encode())

    def _reply(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


class FakeEngine(ThreadingHTTPServer):
    """Attributes: asked (path and body of each POST), waiting, cached, broken, publishes."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[tuple[str, object]] = []
        self.waiting = 0
        self.cached: int | None = None
        self.broken = False
        self.publishes = True


def main() -> None:
    """Serve until killed."""
    port, pids = int(sys.argv[1]), Path(sys.argv[2])
    if "ignore-sigterm" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    engine = FakeEngine(port)
    fresh = pids.with_suffix(".new")
    fresh.write_text(f"{os.getpid()} {child.pid}")
    fresh.rename(pids)
    engine.serve_forever()


if __name__ == "__main__":
    main()
