"""What the router says of its decisions, before and after, is what it does."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from kvstrata.router.application import FORWARDED
from tests.unit.router.router_lab import ask, fleet, get, run, until
from tests.unit.router.stub_engine import StubEngine
from tests.unit.router.test_fleet_chooser import Following, prompt, stored

EXPLAIN = "/v1/route/explain"
TERMS = {
    "wait", "overhead", "compute", "attention", "memory_latency", "memory_transfer", "storage_latency",
    "storage_transfer", "overlap", "doubt", "fault", "burden",
}  # fmt: skip
RECORD = {
    "id", "at", "path", "model", "policy", "reason", "chosen", "runner_up", "tokens", "load_cap", "doubt",
    "considered", "outcome",
}  # fmt: skip


@pytest.fixture
def following(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Following]:
    directory = tmp_path_factory.mktemp("e")
    made = Following(lambda name: f"ipc://{directory}/{name}")
    made.chooser.start()
    yield made
    made.close()


def publish(following: Following, name: str, number: int, medium: str = "GPU") -> None:
    following.events[name].publish(stored(prompt(number), medium))
    following.events[name].settle()


def still(router: Any) -> Any:
    """All that a decision may not change."""
    chooser = router.application.chooser
    policy = chooser._policy
    return (
        policy.save(0.0),
        policy.describe(0.0),
        len(policy._sessions),
        chooser.drift.describe("a"),
        len(router.application.journal.ledger),
        [(one.in_flight, one.tokens) for one in router.application.replicas],
    )


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def alike(one: Any, other: Any) -> bool:
    """Equal, but for what the clock has moved meanwhile."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            alike(one[key], other[key]) for key in one if key != "index_age"
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return abs(one - other) <= 0.02 * max(abs(one), 1e-3)
    return bool(one == other)


def test_what_is_explained_is_what_is_then_done(following: Following) -> None:
    publish(following, "a", 1)
    publish(following, "b", 1, "CPU")
    following.engines[
        1
    ].metrics += "vllm:num_requests_waiting 9\n"  # or it is a tie, which chance decides

    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            body = {"model": "tiny", "prompt": prompt(1), "user": "someone"}
            before = still(router)
            first = (await ask(router, body, EXPLAIN)).json
            again = (await ask(router, body, EXPLAIN)).json
            assert still(router) == before
            assert all(not engine.posts for engine in following.engines)
            assert first["id"] != again["id"] and alike(
                without(first, "id", "at"), without(again, "id", "at")
            )
            got = await ask(router, body)
            identity = got.headers["x-kvstrata-decision"]
            done = (await get(router, f"/v1/route/decisions/{identity}")).json
            assert done["id"] == identity and got.headers["x-kvstrata-replica"] == done["chosen"]
            loose = "id", "at", "outcome"
            assert alike(without(first, *loose), without(done, *loose))

    run(go())


def test_every_candidate_is_told_with_its_terms_by_tier_and_group(following: Following) -> None:
    publish(following, "a", 1)
    publish(following, "b", 1, "CPU")
    following.engines[
        1
    ].metrics += "vllm:num_requests_waiting 9\n"  # or it is a tie, which chance decides

    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            told = (await ask(router, {"model": "tiny", "prompt": prompt(1)}, EXPLAIN)).json
            assert set(told) >= RECORD and told["outcome"] is None
            assert (told["path"], told["model"], told["policy"]) == (
                "/v1/completions",
                "tiny",
                "seconds",
            )
            assert (told["chosen"], told["runner_up"], told["tokens"]) == ("a", "b", 3203)
            by_name = {one["replica"]: one for one in told["considered"]}
            assert set(by_name["a"]["terms"]) == TERMS
            assert by_name["a"]["reuse"]["device"]["tokens"] == 3200
            assert by_name["a"]["trust"] == 1.0 and by_name["a"]["index_age"] >= 0
            loads = by_name["b"]["reuse"]["memory"]["loads"]
            assert [(one["tier"], one["group"]) for one in loads] == [("memory", 0), ("memory", 1)]
            assert loads[0]["tokens"] == 3200 and loads[0]["bytes"] == 200 * 1024
            assert loads[1]["bytes"] < loads[0]["bytes"]

    run(go())


def test_what_became_of_it_is_joined(following: Following) -> None:
    publish(following, "a", 1)
    following.engines[0].cached = 3200

    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            more = {"stream": True, "stream_options": {"include_usage": True}}
            got = await ask(router, {"model": "tiny", "prompt": prompt(1), **more})
            path = f"/v1/route/decisions/{got.headers['x-kvstrata-decision']}"
            outcome = (await get(router, path)).json["outcome"]
            assert without(outcome, "ttft", "seconds") == {
                "replica": "a", "status": 200, "cached_tokens": 3200, "failed": False, "tries": 1,
                "streamed": True,
            }  # fmt: skip
            assert 0 < outcome["ttft"] <= outcome["seconds"]
            state = (await get(router, "/admin/state")).json
            assert state["tokens"] == {"device": 3200, "memory": 0, "storage": 0, "computed": 3}

    run(go())


def test_while_it_runs_there_is_no_outcome() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="least-loaded") as router:
            asking = asyncio.ensure_future(ask(router, {"model": "tiny", "wait": 0.5}))
            await until(lambda: len(router.application.journal.ledger))
            shown = (await get(router, "/admin/state")).json
            assert [one["outcome"] for one in shown["decisions"]] == [None]
            assert shown["router"]["in_flight"] == 1
            await asking

    run(go())


def test_tries_are_counted() -> None:
    async def go() -> None:
        engines = (
            StubEngine("a", status=503),
            StubEngine("b", status=503),
            StubEngine("c", status=503),
        )
        async with fleet(*engines, policy="round-robin", retries=2) as router:
            got = await ask(router, {"model": "tiny"})
            told = (
                await get(router, f"/v1/route/decisions/{got.headers['x-kvstrata-decision']}")
            ).json
            assert told["outcome"]["tries"] == 3 and told["outcome"]["failed"]
            assert {one["replica"] for one in told["earlier"]} | {told["chosen"]} == {"a", "b", "c"}

    run(go())


@pytest.mark.parametrize(
    ("body", "query", "path"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "", "/v1/chat/completions"),
        ({"prompt": "x"}, "", "/v1/completions"),
        ({"input": "x"}, "", "/v1/responses"),
        ({"input": "x"}, "?path=/v1/embeddings", "/v1/embeddings"),
        ({"query": "x"}, "?a=1&path=%2Fscore", "/score"),
    ],
)
def test_the_path_is_named_or_guessed(body: dict, query: str, path: str) -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="least-loaded") as router:
            told = (await ask(router, body, EXPLAIN + query)).json
            assert (told["path"], told["chosen"]) == (path, "a")

    run(go())


def test_what_cannot_be_explained_is_refused() -> None:
    async def go() -> None:
        engine = StubEngine("a")
        async with fleet(engine, policy="least-loaded", api_keys=["k"]) as router:
            key = {"authorization": "Bearer k"}
            assert (await ask(router, {"prompt": "x"}, EXPLAIN)).status == 401
            assert (await get(router, "/v1/route/decisions/x")).status == 401
            assert (await get(router, EXPLAIN, **key)).status == 405
            assert (
                await ask(router, {"prompt": "x"}, "/v1/route/decisions/x", **key)
            ).status == 405
            assert (await get(router, "/v1/route/decisions/x", **key)).code == "decision_not_found"
            assert (await ask(router, b"{", EXPLAIN, **key)).code == "invalid_json"
            assert (await ask(router, {}, EXPLAIN, **key)).code == "invalid_path"
            wrong = await ask(router, {"prompt": "x"}, EXPLAIN + "?path=/health", **key)
            assert wrong.code == "invalid_path" and all(
                one in wrong.body.decode() for one in FORWARDED
            )
            got = await ask(router, {"prompt": "x", "model": "other"}, EXPLAIN, **key)
            assert got.code == "model_not_found"
            router.application.replicas.remove("a")
            assert (await ask(router, {"prompt": "x"}, EXPLAIN, **key)).code == "no_replicas"
            assert not engine.posts

    run(go())


def test_the_state_is_for_whoever_may_use_the_admin_api() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="least-loaded", admin_key="k") as router:
            assert (await get(router, "/admin/state")).status == 401
            assert (await get(router, "/admin/state", authorization="Bearer k")).status == 200

    run(go())


def test_the_state_says_what_is_where(following: Following) -> None:
    publish(following, "a", 1)
    publish(following, "a", 1, "CPU")
    following.engines[1].metrics = "vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n"

    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await until(lambda: following.fleet.replicas and following.fleet.settled)
            await until(lambda: following.fleet.replicas[0].facts)
            for number in range(3):
                await ask(router, {"model": "tiny", "prompt": prompt(number)})
            state = json.loads((await get(router, "/admin/state")).body)
            assert set(state) >= {"router", "replicas", "tokens", "decisions"}
            assert set(state["router"]) >= {
                "id", "version", "policy", "started", "now", "waiting", "connections", "in_flight",
                "buffered_bytes",
            }  # fmt: skip
            assert state["router"]["policy"] == "seconds"
            assert state["router"]["started"] <= state["router"]["now"]
            a, b = state["replicas"]
            assert set(a) >= {
                "name", "url", "state", "why", "in_flight", "running", "waiting", "models", "index",
                "learned", "accuracy",
            }  # fmt: skip
            assert (a["name"], a["state"], a["models"]) == ("a", "up", ["tiny"])
            assert (a["index"]["trust"], a["index"]["why"], a["index"]["ranks"]) == (
                "synced",
                "",
                1,
            )
            assert a["index"]["groups"] == [
                {"group": 0, "kind": "full", "block_tokens": 16, "window": 0},
                {"group": 1, "kind": "window", "block_tokens": 16, "window": 32},
            ]
            assert a["index"]["holds"] == [
                {"tier": tier, "group": group, "blocks": 200, "tokens": 3200, "bytes": 200 * 1024}
                for tier in ("device", "memory")
                for group in (0, 1)
            ]
            assert set(a["accuracy"]) >= {
                "cached_as_predicted", "cached_less", "cached_more", "predicted_tokens", "cached_tokens",
                "disagreeing", "ttft_bias", "ttft_error", "alarm", "resyncs",
            }  # fmt: skip
            assert (b["running"], b["waiting"]) == (2, 1)
            assert b["index"]["trust"] == "stale" and "--kv-events-config" in b["index"]["why"]
            assert [len(one["considered"]) for one in state["decisions"]] == [2, 2, 2]
            assert [one["at"] for one in state["decisions"]] == sorted(
                (one["at"] for one in state["decisions"]), reverse=True
            )

    run(go())


def test_without_an_index_there_is_none_to_show() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="round-robin") as router:
            await ask(router, {"model": "tiny", "prompt": "x"})
            state = (await get(router, "/admin/state")).json
            assert state["replicas"][0]["index"] is None
            assert state["decisions"][0]["considered"][0]["reuse"] is None

    run(go())


def test_what_could_not_be_known_of_a_prompt_is_said(following: Following) -> None:
    async def go() -> None:
        async with fleet(*following.engines, chooser=following.chooser) as router:
            await following.synced()
            told = (await ask(router, {"model": "tiny", "prompt": "text"}, EXPLAIN)).json
            assert told["doubt"]
            told = (await ask(router, {"model": "tiny", "prompt": [1, 2]}, EXPLAIN)).json
            assert told["doubt"] == "" and told["tokens"] == 2

    run(go())
