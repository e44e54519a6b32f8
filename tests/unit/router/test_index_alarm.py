"""A replica whose index is wrong is noticed, and one without any says what it lacks."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from kvstrata.router.fleet_chooser import FleetChooser
from kvstrata.routing.drift import CALM_ANSWERS, LESS, RESYNC_SECONDS
from kvstrata.wire.contents import Contents
from tests.unit.router.router_lab import ask, fleet, get, run, until
from tests.unit.router.stub_engine import Seen, StubEngine
from tests.unit.router.test_fleet_chooser import Following, prompt, stored


@pytest.fixture
def lying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Following]:
    directory = tmp_path_factory.mktemp("a")
    made = Following(lambda name: f"ipc://{directory}/{name}")
    made.chooser.start()
    yield made
    made.close()


def shown(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in record["considered"] if one["replica"] == name)


async def accuracy(router: Any, name: str) -> dict[str, Any]:
    state = (await get(router, "/admin/state")).json
    return next(one["accuracy"] for one in state["replicas"] if one["name"] == name)


async def metric(router: Any, line: str) -> bool:
    return line in (await get(router, "/metrics")).body.decode().splitlines()


def test_an_index_that_is_wrong_is_noticed_made_anew_and_believed_again(
    lying: Following, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine dropped its blocks and told nobody; its snapshots know."""
    engine, events = lying.engines[0], lying.events["a"]
    caplog.set_level(logging.WARNING)

    async def go() -> None:
        async with fleet(engine, chooser=lying.chooser) as router:
            await until(lambda: lying.fleet.replicas and lying.fleet.replicas[0].facts)
            events.publish(stored(prompt(1), "GPU"))
            events.settle()
            await until(lambda: lying.chooser.index_of("a", 0.0).holds)  # type: ignore[union-attr]
            events.contents = Contents()
            engine.cached = 0
            body = {"model": "tiny", "prompt": prompt(1)}
            for _ in range(LESS[0] - 1):
                await ask(router, body)
            told = (await ask(router, body, "/v1/route/explain")).json
            assert shown(told, "a")["trust"] == 1.0 and shown(told, "a")["tokens"] == 3200
            assert await metric(router, 'kvstrata_router_index_alarm{kind="less",replica="a"} 0.0')
            await ask(router, body)
            await until(lambda: lying.chooser.drift.describe("a")["resyncs"] == 1)
            assert (await accuracy(router, "a"))["alarm"]
            assert await metric(router, 'kvstrata_router_index_alarm{kind="less",replica="a"} 1.0')
            assert await metric(router, 'kvstrata_router_index_resyncs_total{replica="a"} 1.0')
            # The new index knows nothing of it, so that it claims nothing.
            await until(lambda: lying.fleet.settled and lying.fleet.replicas[0].facts)
            told = (await ask(router, body, "/v1/route/explain")).json
            assert shown(told, "a")["reuse"]["device"]["tokens"] == 0
            assert shown(told, "a")["trust"] == 0.5
            # And when it claims something again, that holds.
            events.publish(stored(prompt(1), "GPU"))
            events.settle()
            engine.cached = 3200
            await until(lambda: lying.chooser.index_of("a", 0.0).holds)  # type: ignore[union-attr]
            for _ in range(CALM_ANSWERS):
                await ask(router, body)
            await until(lambda: lying.chooser.drift.alarm("a") is None)
            told = (await ask(router, body, "/v1/route/explain")).json
            assert shown(told, "a")["trust"] == 1.0
            assert (await accuracy(router, "a"))["resyncs"] == 1

    run(go())
    lines = [one.getMessage() for one in caplog.records if "the index of a" in one.getMessage()]
    assert [("not believed" in one, "believed again" in one) for one in lines] == [
        (True, False),
        (False, True),
    ]


class Counting(StubEngine):
    """Says nothing of cached tokens in its answers, and counts them: it never has any."""

    asked = 0
    where = ""

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.line.startswith("POST"):
            self.asked += len(json.loads(seen.body)["prompt"])
        self.metrics = (
            f"{self.where}vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
            f"vllm:prompt_tokens_total {self.asked}\nvllm:prompt_tokens_cached_total 0\n"
        )
        await super()._answer(seen, writer)


def test_counters_tell_where_answers_do_not(lying: Following) -> None:
    engine, events = Counting("a", metrics=lying.engines[0].metrics), lying.events["a"]
    engine.where = engine.metrics

    async def go() -> None:
        async with fleet(engine, chooser=lying.chooser) as router:
            await until(lambda: lying.fleet.replicas and lying.fleet.replicas[0].facts)
            events.publish(stored(prompt(1), "GPU"))
            events.settle()
            await until(lambda: lying.chooser.index_of("a", 0.0).holds)  # type: ignore[union-attr]
            drift = lying.chooser.drift
            for number in range(LESS[0]):
                await ask(router, {"prompt": prompt(1), "stream": True})
                await until(lambda: drift.describe("a")["cached_less"] > number)  # noqa: B023
            await until(lambda: drift.describe("a")["resyncs"] == 1)
            assert drift.describe("a")["predicted_tokens"] == 3200 * LESS[0]

    run(go())


def test_an_index_that_stays_wrong_is_made_anew_once_in_its_time(lying: Following) -> None:
    engine, events = lying.engines[0], lying.events["a"]

    async def go() -> None:
        async with fleet(engine, chooser=lying.chooser) as router:
            await until(lambda: lying.fleet.replicas and lying.fleet.replicas[0].facts)
            events.publish(stored(prompt(1), "GPU"))
            events.settle()
            engine.cached = 0  # whatever its snapshots say
            for _ in range(3 * LESS[0]):
                await until(lambda: lying.chooser.index_of("a", 0.0).holds)  # type: ignore[union-attr]
                await ask(router, {"model": "tiny", "prompt": prompt(1)})
            told = await accuracy(router, "a")
            assert told["alarm"] and told["resyncs"] == 1
            told = (
                await ask(router, {"model": "tiny", "prompt": prompt(1)}, "/v1/route/explain")
            ).json
            assert shown(told, "a")["trust"] < 0.2
            assert shown(told, "a")["terms"]["doubt"] > 0

    assert RESYNC_SECONDS >= 30
    run(go())


def test_what_is_not_believed_loses_to_what_is(lying: Following) -> None:
    """Both say that they hold it; one of them was caught."""
    for name in "ab":
        lying.events[name].publish(stored(prompt(1), "GPU"))
        lying.events[name].settle()
    lying.engines[0].cached, lying.engines[1].cached = 0, 3200

    async def go() -> None:
        async with fleet(*lying.engines, chooser=lying.chooser) as router:
            await lying.synced()
            body = {"model": "tiny", "prompt": prompt(1)}
            for _ in range(8 * LESS[0]):
                await ask(router, body)
                if lying.chooser.drift.alarm("a"):
                    break
            else:
                pytest.fail("the alarm was not raised")
            await until(lambda: lying.fleet.settled and len(lying.fleet.replicas) == 2)
            await until(lambda: all(one.facts for one in lying.fleet.replicas))
            for _ in range(5):
                assert (await ask(router, body)).headers["x-kvstrata-replica"] == "b"

    run(go())


def test_an_engine_that_publishes_nothing_is_routed_by_what_it_was_sent(
    lying: Following, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside one whose events are followed; its history has its own, stated trust."""
    silent = StubEngine("s", metrics="vllm:num_requests_waiting 0\n")
    caplog.set_level(logging.WARNING)
    lying.events["a"].publish(stored(prompt(1), "GPU"))
    lying.events["a"].settle()

    async def go() -> None:
        async with fleet(lying.engines[0], silent, chooser=lying.chooser) as router:
            await until(lambda: lying.fleet.replicas and lying.fleet.replicas[0].facts)
            await until(lambda: lying.chooser.index_of("a", 0.0).holds)  # type: ignore[union-attr]
            assert (await ask(router, {"prompt": prompt(1)})).headers["x-kvstrata-replica"] == "a"
            # Something cold goes to the silent one, and so does what continues it.
            router.application.replicas.get("a").health = router.application.replicas.get(
                "a"
            ).health.leaving()
            sent = {"prompt": prompt(2), "stream": True}
            assert (await ask(router, sent)).headers["x-kvstrata-replica"] == "s"
            router.application.replicas.get("a").health = router.application.replicas.get(
                "s"
            ).health
            told = (await ask(router, {"prompt": prompt(2)}, "/v1/route/explain")).json
            assert told["chosen"] == "s"
            there = shown(told, "s")
            assert there["reuse"] is None and there["trust"] == 0.7
            assert there["predicted_tokens"] == there["tokens"] == 3200
            assert there["terms"]["doubt"] > 0
            assert shown(told, "a")["tokens"] == 0 and shown(told, "a")["trust"] == 1.0
            looks = sum(one.line.startswith("GET /metrics") for one in silent.seen)
            await until(
                lambda: sum(one.line.startswith("GET /metrics") for one in silent.seen) > looks + 3
            )
            index = (await get(router, "/admin/state")).json["replicas"][1]["index"]
            assert index["trust"] == "stale" and "--kv-events-config" in index["why"]
            assert index["holds"] == [] and index["ranks"] == 0

    run(go())
    lines = [one for one in caplog.records if "events of s" in one.getMessage()]
    assert len(lines) == 1 and "--kv-events-config" in lines[0].getMessage()


def test_a_remedy_that_is_taken_ends_the_complaint(lying: Following) -> None:
    engine = lying.engines[0]
    address, engine.metrics = engine.metrics, "vllm:num_requests_waiting 0\n"

    async def go() -> None:
        async with fleet(engine, chooser=lying.chooser) as router:
            chooser = router.application.chooser
            assert isinstance(chooser, FleetChooser)
            await until(lambda: "a" in chooser._silent)
            engine.metrics = address
            await until(lambda: lying.fleet.replicas and lying.fleet.replicas[0].facts)
            await until(lambda: chooser.index_of("a", 0.0).trust == "synced")  # type: ignore[union-attr]
            assert chooser.index_of("a", 0.0).why == ""  # type: ignore[union-attr]

    run(go())
