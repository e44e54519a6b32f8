"""The load's users speak through the `openai` client, remember what was said, and measure what they get."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lab.fleet_client import LoadError, Sample, play
from lab.fleet_load import Conversation, Plan, Scale, Turn
from lab.fleet_stack import _address


class Talker(BaseHTTPRequestHandler):
    """Answers a streamed chat with "one two", and fails where the last message says so."""

    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append(body)
        if body["messages"][-1]["content"] == "fail":
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("x-kvstrata-replica", "b")
        self.send_header("x-kvstrata-decision", f"d{len(self.bodies)}")
        self.end_headers()
        pieces = [{"role": "assistant", "content": ""}, {"content": "one "}, {"content": "two"}]
        for piece in pieces:
            self.event({"choices": [{"index": 0, "delta": piece, "finish_reason": None}]})
        usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
        usage["prompt_tokens_details"] = {"cached_tokens": 5}  # type: ignore[assignment]
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, about: dict[str, Any]) -> None:
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", **about}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def talker() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    bodies: list[dict[str, Any]] = []
    handler = type("OneTalker", (Talker,), {"bodies": bodies})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def load_of(*texts: str) -> Plan:
    chat = Conversation("0.0", 5.0, "system", tuple(Turn(text, 0.0) for text in texts))
    alone = Conversation("document.0", 5.05, "", (Turn("document", 0.0),))
    return Plan(1, Scale(answer_tokens=2), (chat, alone))


def test_users_carry_on_with_what_was_answered(talker: tuple[str, list[dict[str, Any]]]) -> None:
    url, bodies = talker
    told: list[Sample] = []
    samples, wall = play(url, "m", load_of("a", "b"), told.append)
    assert samples == told
    said = {body["messages"][-1]["content"]: body for body in bodies}
    first = [{"role": "system", "content": "system"}, {"role": "user", "content": "a"}]
    assert said["a"]["messages"] == first
    answer = {"role": "assistant", "content": "one two"}
    assert said["b"]["messages"] == [*first, answer, {"role": "user", "content": "b"}]
    assert said["document"]["messages"] == [{"role": "user", "content": "document"}]
    assert all(body["max_tokens"] == 2 and body["stream"] for body in bodies)
    assert [(one.conversation, one.turn) for one in samples if one.turn] == [("0.0", 1)]
    assert len({one.decision for one in samples}) == 3
    for one in samples:
        assert (one.prompt_tokens, one.cached_tokens, one.computed_tokens) == (20, 5, 15)
        assert (one.answer_tokens, one.replica) == (2, "b")
        assert 0 < one.ttft <= one.seconds
        assert 5 <= one.at <= 5 + wall


def test_a_failed_request_is_the_end_and_says_which(
    talker: tuple[str, list[dict[str, Any]]],
) -> None:
    url, bodies = talker
    with pytest.raises(LoadError, match=r"turn 1 of 0\.0"):
        play(url, "m", load_of("a", "fail", "never"))
    assert all(body["messages"][-1]["content"] != "never" for body in bodies)


def test_the_routers_address_is_read_when_its_line_is_whole() -> None:
    assert _address("") == ""
    assert _address("INFO x\nkvstrata route: listening at http://127.0.0.1:80") == ""
    line = "INFO x\nkvstrata route: listening at http://127.0.0.1:8000\nINFO y\n"
    assert _address(line) == "http://127.0.0.1:8000"
