"""`kvstrata top` over servers that answer, fall silent, come back, and say something else."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from kvstrata.cli import top as command
from kvstrata.cli.main import app
from kvstrata.cli.top import Watcher, states
from tests.unit.cli.test_top_figures import COUNTER, ENGINE, ROUTER

FAR = 1e6


class Server:
    """Answers `/metrics` as it is told."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Serve = Callable[[Callable[[BaseHTTPRequestHandler], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def make(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        servers.append(Server(answer))
        return servers[-1].url

    yield make
    for server in servers:
        server.close()


def text(body: str, length: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return answer


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["top", *arguments, "--every", "0.2"])


def test_engines_and_a_router_at_once(serve: Serve) -> None:
    engine, router = serve(text(ENGINE)), serve(text(ROUTER))
    done = run(engine, router, engine, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert [one["kind"] for one in told["processes"]] == ["engine", "router"]
    assert told["processes"][0]["row"]["bound"] == told["all_engines"]["bound"]
    assert told["processes"][0]["row"]["dropped"]["capacity"]["new"] == 0
    table = run(engine, router, "--once")
    assert table.exit_code == 0 and "2 up" in table.output


def broken(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xffnot HTTP at all\r\n\r\n")


def refusing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(503)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (text("<html>hello</html>"), "no metrics of vLLM"),
        (text("process_cpu_seconds_total 5"), "no metrics of vLLM"),
        (text("vllm:kvstrata_tokens_total 12", 30), "broke off"),
        (broken, "no answer in HTTP"),
        (refusing, "503"),
    ],
    ids=["a page", "another program", "half an answer", "no HTTP", "an error"],
)
def test_one_that_says_something_else_keeps_its_row(
    serve: Serve, answer: Callable[[BaseHTTPRequestHandler], None], why: str
) -> None:
    done = run(serve(text(ENGINE)), serve(answer), "--json")
    assert done.exit_code == command.SILENT
    well, ill = json.loads(done.output)["processes"]
    assert well["row"] is not None and not well["error"]
    assert ill["row"] is None and why in ill["error"]


def test_one_that_is_not_there(serve: Serve) -> None:
    done = run(serve(text(ENGINE)), "http://127.0.0.1:1", "--once")
    assert done.exit_code == command.SILENT
    assert "refused" in done.output


def test_one_that_goes_and_comes_back_begun_anew() -> None:
    answers = [
        COUNTER.format("io", 90),
        COUNTER.format("io", 95),
        OSError("gone"),
        COUNTER.format("io", 2),
    ]

    def fetch(_url: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    watcher = Watcher("http://127.0.0.1:8000", 1.0, fetch)
    watcher.look()
    now = time.monotonic()
    assert watcher.state(now).row is None and not watcher.settled
    watcher.look()
    assert watcher.state(now).row.bad["io"].new == 5 and watcher.settled
    watcher.look()
    gone = watcher.state(time.monotonic())
    assert gone.error == "gone" and gone.row.bad["io"].new == 5
    assert watcher.state(time.monotonic() + FAR).row is None  # figures of long ago are none of now
    watcher.look()
    back = watcher.state(time.monotonic())
    assert not back.error and back.row.restarted and back.row.bad["io"].new == 2


def test_an_engine_that_becomes_a_router_is_not_compared_with_itself() -> None:
    answers = [ENGINE, ROUTER, ROUTER]
    watcher = Watcher("http://127.0.0.1:8000", 1.0, lambda _url: answers.pop(0))
    watcher.look()
    watcher.look()
    assert watcher.state(time.monotonic()).row is None
    watcher.look()
    assert watcher.state(time.monotonic()).row.replicas == {"up": 2}


def test_one_that_never_answers_holds_up_no_other() -> None:
    asked, over = threading.Event(), threading.Event()

    def hang(_url: str) -> str:
        asked.set()
        over.wait()
        raise OSError("over")

    hanging = Watcher("http://127.0.0.1:1", 1.0, hang)
    well = Watcher("http://127.0.0.1:2", 1.0, lambda _url: ENGINE)
    hanging.start()
    well.look()
    well.look()
    try:
        assert asked.wait(30)
        watched, together = states([hanging, well])
        assert watched[0].row is None and watched[1].row is not None
        assert together is not None and together.bound == watched[1].row.bound
        assert hanging.state(time.monotonic() + FAR).error == "no answer yet"
    finally:
        over.set()


def test_the_live_view_ends_with_ctrl_c(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(text(ENGINE))
    looks = []

    def screen(watched: Any, together: Any) -> str:
        looks.append(watched)
        if len(looks) > 2:
            raise KeyboardInterrupt
        return "seen"

    monkeypatch.setattr(command.top_view, "screen", screen)
    done = run(url)
    assert done.exit_code == 0 and "seen" in done.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["127.0.0.1:8000"], "not an address"),
        (["http://127.0.0.1:8000", "--every", "0"], "--every takes"),
        ([], "Missing argument"),
    ],
)
def test_what_the_user_can_correct(arguments: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["top", *arguments])
    assert done.exit_code == 2 and why in done.output
