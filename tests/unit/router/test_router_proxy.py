"""The way of requests and answers through the router, with real sockets and stub engines."""

import asyncio
import json

import pytest

from kvstrata.router.config import RouterConfig
from tests.unit.router.router_lab import Wire, ask, fleet, get, post, run, until
from tests.unit.router.stub_engine import StubEngine, event, stream_bytes


def test_an_answer_comes_back_as_the_engine_gave_it() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a")) as router:
            got = await ask(router, {"model": "tiny", "max_tokens": 5})
            assert got.status == 200 and got.json["choices"][0]["text"] == "xxxxx"
            assert got.headers["x-kvstrata-replica"] == "a"
            assert len(got.headers["x-kvstrata-decision"]) == 16

    run(go())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_exact_to_the_byte(path: str) -> None:
    async def go() -> None:
        async with fleet(StubEngine("a")) as router:
            got = await ask(router, {"stream": True, "max_tokens": 300, "pad": 700}, path)
            assert got.whole and got.body == stream_bytes(path, 300, 700)

    run(go())


def test_a_token_is_passed_on_before_the_next_one_is_made() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a")) as router:
            wire = await Wire.open(router)
            await wire.send(post({"stream": True, "max_tokens": 2, "pause": 1.0}))
            first = event("/v1/completions", 0)
            got = await asyncio.wait_for(wire.reader.readuntil(first[-20:]), 20)
            # The engine is still busy with the second token, so nothing can have been held back.
            assert got.endswith(first) and event("/v1/completions", 1) not in got
            wire.close()

    run(go())


def test_a_client_that_leaves_ends_the_work_at_the_engine() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router:
            for body in ({"stream": True, "max_tokens": 10**6, "pause": 0.01}, {"wait": 600}):
                before = engine.aborted
                wire = await Wire.open(router)
                await wire.send(post(body))
                await until(lambda: router.application.replicas.get("a").in_flight == 1)
                await until(lambda: any(not one.finished for one in engine.posts))
                wire.close()
                await until(lambda before=before: engine.aborted == before + 1)
                await until(lambda: router.application.replicas.get("a").in_flight == 0)

    run(go())


def test_headers_go_through_except_those_of_one_hop() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine) as router:
            got = await ask(
                router,
                {"echo": True},
                authorization="Bearer k",
                traceparent="00-1-2-01",
                connection="keep-alive, x-private, authorization",
                x_private="1",
                keep_alive="timeout=5",
                te="trailers",
                proxy_authorization="secret",
            )
            names = [name for name, _ in got.json["headers"]]
            assert engine.posts[0].header("traceparent") == ["00-1-2-01"]
            assert engine.posts[0].header("authorization") == ["Bearer k"]
            assert engine.posts[0].header("host") == [f"127.0.0.1:{engine.port}"]
            assert not {"connection", "x-private", "keep-alive", "te", "proxy-authorization"} & set(
                names
            )

    run(go())


def test_own_keys_guard_the_router_and_do_not_reach_engines() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        await engine.start()
        replica = {"url": engine.url, "name": "a", "api_key": "engine-key"}
        async with fleet(api_keys=["one", "two"], replica=[replica]) as router:
            for shown in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic one"}):
                got = await ask(router, {"echo": True}, **shown)
                assert got.status == 401 and got.code == "invalid_api_key"
            assert engine.posts == []
            got = await ask(router, {"echo": True}, authorization="Bearer two")
            assert got.status == 200
            assert engine.posts[0].header("authorization") == ["Bearer engine-key"]
            assert (await get(router, "/metrics")).status == 200
        await engine.stop()

    run(go())


def test_connections_to_engines_are_used_again() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, probe_every=600) as router:
            before = engine.connections
            wire = await Wire.open(router)
            for _ in range(20):
                assert (await wire.ask({})).status == 200
            assert engine.connections - before == 1

    run(go())


def test_a_connection_that_the_engine_closed_meanwhile_costs_no_request() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, probe_every=600, retries=0) as router:
            await ask(router, {})
            assert (await ask(router, {"break_now": True})).status == 502
            for _ in range(5):
                assert (await ask(router, {})).status == 200

    run(go())


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_engine_that_could_not_is_replaced_by_one_that_can(status: int) -> None:
    async def go() -> None:
        bad, good = StubEngine("a", status=status), StubEngine("b")
        async with fleet(bad, good, policy="round-robin") as router:
            for _ in range(4):
                got = await ask(router, {})
                assert got.status == 200 and got.headers["x-kvstrata-replica"] == "b"
            assert bad.posts

    run(go())


def test_when_none_can_the_engines_own_answer_comes_back() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a", status=500)) as router:
            got = await ask(router, {})
            assert got.status == 500 and got.json["error"]["message"] == "a says 500"

    run(go())


def test_an_answer_that_blames_the_request_is_not_tried_elsewhere() -> None:
    async def go() -> None:
        one, two = StubEngine("a"), StubEngine("b")
        async with fleet(one, two) as router:
            assert (await ask(router, {"status": 400})).status == 400
            assert len(one.posts) + len(two.posts) == 1

    run(go())


def test_a_request_that_breaks_engines_does_not_visit_them_all() -> None:
    async def go() -> None:
        engines = [StubEngine(name) for name in "abcd"]
        async with fleet(*engines, retries=1) as router:
            got = await ask(router, {"break_now": True})
            assert got.status == 502 and got.code == "replica_failed"
            assert sum(len(one.posts) for one in engines) == 2

    run(go())


def test_a_stream_that_breaks_says_so_and_has_no_end() -> None:
    async def go() -> None:
        one, two = StubEngine("a"), StubEngine("b")
        async with fleet(one, two) as router:
            got = await ask(
                router, {"stream": True, "max_tokens": 9, "fail_after": 4, "pause": 0.01}
            )
            whole = b"".join(event("/v1/completions", n) for n in range(4))
            assert got.body.startswith(whole) and not got.whole
            error = json.loads(got.body[len(whole) :].strip().removeprefix(b"data: "))
            assert error["error"]["code"] == "replica_failed_mid_stream"
            assert len(one.posts) + len(two.posts) == 1  # what was begun is not begun again

    run(go())


def test_without_replicas_and_with_a_wrong_model_the_reason_is_told() -> None:
    async def go() -> None:
        async with fleet() as router:
            got = await ask(router, {})
            assert got.status == 503 and got.code == "no_replicas" and got.headers["retry-after"]
        async with fleet(StubEngine("a"), StubEngine("b", models=("other",))) as router:
            got = await ask(router, {"model": "nope"})
            assert got.status == 404 and got.code == "model_not_found"
            assert "other, tiny" in got.json["error"]["message"]
            for _ in range(4):
                got = await ask(router, {"model": "other"})
                assert got.headers["x-kvstrata-replica"] == "b"
            listed = (await get(router, "/v1/models")).json["data"]
            assert [one["id"] for one in listed] == ["tiny", "other"]

    run(go())


def test_a_full_fleet_lets_requests_wait_in_turn_and_then_refuses() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, max_in_flight=1, max_waiting=2, max_wait=20) as router:
            tasks = []
            for number in range(3):
                tasks.append(asyncio.create_task(ask(router, {"wait": 0.3, "number": number})))
                await until(lambda n=number: router.application.replicas.get("a").in_flight == 1
                            and len(router.application.line) == n)  # fmt: skip
            got = await ask(router, {})
            assert (
                got.status == 429
                and got.code == "queue_full"
                and int(got.headers["retry-after"]) > 0
            )
            assert [one.status for one in await asyncio.gather(*tasks)] == [200] * 3
            assert [json.loads(one.body)["number"] for one in engine.posts] == [0, 1, 2]

    run(go())


def test_a_wait_for_room_ends() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), max_in_flight=1, max_wait=0.2) as router:
            busy = asyncio.create_task(ask(router, {"wait": 2}))
            await until(lambda: router.application.replicas.get("a").in_flight == 1)
            got = await ask(router, {})
            assert got.status == 503 and got.code == "queue_timeout"
            assert (await busy).status == 200

    run(go())


def test_a_slow_client_is_not_read_for() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, stall_timeout=2, idle_timeout=0.5) as router:
            wire = await Wire.open(router)
            await wire.send(post({"stream": True, "max_tokens": 400, "pad": 100_000}))
            sock = wire.writer.transport
            sock.pause_reading()
            connection = next(iter(router.application.clients.connections))
            await until(lambda: connection.backlog > 0)
            seen = []
            for _ in range(10):
                await asyncio.sleep(0.1)
                seen.append(connection.backlog)
            assert max(seen) < 4 << 20  # of 40 MB
            sock.resume_reading()
            got = await wire.answer()
            assert got.whole and len(got.body) == len(stream_bytes("/v1/completions", 400, 100_000))

    run(go())


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, stall_timeout=0.5) as router:
            wire = await Wire.open(router)
            await wire.send(post({"stream": True, "max_tokens": 400, "pad": 100_000}))
            wire.writer.transport.pause_reading()
            await until(lambda: not router.application.clients.connections)
            assert router.application.replicas.get("a").in_flight == 0
            assert not engine.posts[0].finished

    run(go())


def test_an_engine_that_falls_silent_is_given_up() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), idle_timeout=0.3, answer_timeout=0.3) as router:
            got = await ask(router, {"stream": True, "max_tokens": 3, "pause": 30})
            assert not got.whole and b"replica_failed_mid_stream" in got.body
            got = await ask(router, {"wait": 30})
            assert got.status == 502 and "silent" in got.json["error"]["message"]

    run(go())


def test_replicas_come_and_go_while_requests_run() -> None:
    async def go() -> None:
        one, two = await StubEngine("a").start(), await StubEngine("b").start()
        async with fleet(one) as router:
            long = asyncio.create_task(ask(router, {"wait": 0.5}))
            await until(lambda: router.application.replicas.get("a").in_flight == 1)
            got = await ask(router, {"url": two.url, "name": "b"}, "/admin/replicas")
            assert got.status == 200 and got.json["name"] == "b"
            assert (
                await ask(router, {"url": two.url, "name": "c"}, "/admin/replicas")
            ).status == 409
            gone = await get(router, "/admin/replicas/a", "DELETE")
            assert gone.status == 200 and gone.json["in_flight"] == 1
            assert (await ask(router, {})).headers["x-kvstrata-replica"] == "b"
            assert (await long).status == 200
            await until(lambda: len(router.application.replicas) == 1)
            assert (await get(router, "/admin/replicas/a", "DELETE")).status == 404
            bad = await ask(router, {"url": "ftp://x"}, "/admin/replicas")
            assert bad.status == 400 and "http://host:port" in bad.json["error"]["message"]
        await two.stop()

    run(go())


def test_settings_are_read_again_and_bad_ones_change_nothing() -> None:
    async def go() -> None:
        one, two = StubEngine("a"), StubEngine("b")
        await two.start()
        async with fleet(one) as router:
            assert router.reload()
            router._read = lambda: RouterConfig.parse({"replica": [two.url], "max_body": 100})
            got = await ask(router, {}, "/admin/reload")
            assert got.status == 200 and [r["url"] for r in got.json["replicas"]] == [two.url]
            assert "port takes effect" in " ".join(got.json["notes"])
            assert (await ask(router, {"pad": "x" * 200})).status == 413
            router._read = lambda: RouterConfig.parse({"replicas": []})
            got = await ask(router, {}, "/admin/reload")
            assert got.status == 400 and "did you mean 'replica'" in got.json["error"]["message"]
            assert (await ask(router, {})).status == 200
        await two.stop()

    run(go())


def test_the_admin_api_is_closed_to_web_pages_and_to_those_without_its_key() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a")) as router:
            assert (await get(router, "/admin/replicas", origin="http://evil")).status == 403
        async with fleet(StubEngine("a"), admin_key="k") as router:
            assert (await get(router, "/admin/replicas")).status == 401
            assert (await get(router, "/admin/replicas", authorization="Bearer k")).status == 200

    run(go())


def test_a_router_that_is_its_own_replica_says_so() -> None:
    async def go() -> None:
        async with fleet() as router:
            url = f"http://127.0.0.1:{router.port}"
            await ask(router, {"url": url, "name": "me"}, "/admin/replicas")
            got = await ask(router, {})
            assert got.status == 508 and got.code == "loop"

    run(go())


def test_draining_finishes_what_runs_and_closes_the_rest() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, drain_grace=0.3) as router:
            idle = await Wire.open(router)
            kept = await Wire.open(router)
            assert (await idle.ask({})).status == 200
            assert (await kept.ask({})).status == 200
            running = [
                asyncio.create_task(ask(router, {"stream": True, "max_tokens": 30, "pause": 0.03}))
                for _ in range(20)
            ]
            await until(lambda: router.application.replicas.get("a").in_flight == 20)
            draining = asyncio.create_task(router.drain())
            await until(lambda: router.application.clients.draining)
            assert (await get(router, "/health")).status == 503
            late = await kept.ask({})
            assert late.status == 200 and late.headers["connection"] == "close"
            whole = stream_bytes("/v1/completions", 30)
            for got in await asyncio.gather(*running):
                assert got.whole and got.body == whole
            await draining
            assert await idle.closed() and await kept.closed()
            assert router.application.clients.buffered == 0

    run(go())
