"""What the router counts is what happened, in names and labels that Prometheus likes."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.router.router_lab import ask, fleet, get, run, until
from tests.unit.router.stub_engine import StubEngine
from tests.unit.router.test_fleet_chooser import Following, prompt, stored

SECONDS = ("ttft", "predicted_ttft", "decide", "index_lag")
LABELS = {
    "replica",
    "source",
    "state",
    "kind",
    "tier",
    "step",
    "path",
    "status",
    "code",
    "policy",
    "reason",
    "le",
}


@pytest.fixture
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Following]:
    directory = tmp_path_factory.mktemp("m")
    made = Following(lambda name: f"ipc://{directory}/{name}")
    made.chooser.start()
    yield made
    made.close()


async def scraped(router: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await get(router, "/metrics")).body.decode()
    return {
        (
            sample.name.removeprefix("kvstrata_router_"),
            frozenset(sample.labels.items()),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def test_where_tokens_came_from_and_how_long_it_took(counted: Following) -> None:
    counted.events["a"].publish(stored(prompt(1), "GPU"))
    counted.events["a"].settle()
    engine = counted.engines[0]

    async def go() -> None:
        async with fleet(engine, chooser=counted.chooser) as router:
            await until(lambda: counted.fleet.replicas and counted.fleet.replicas[0].facts)
            await until(lambda: counted.chooser.index_of("a", 0.0).holds)  # type: ignore[union-attr]
            stream = {"stream": True, "stream_options": {"include_usage": True}}
            await ask(router, {"prompt": prompt(1), **stream})  # does not say: as foreseen
            engine.cached = 1600
            await ask(router, {"prompt": prompt(1), **stream})
            await ask(router, {"prompt": "text", **stream})  # cannot be counted
            found = await scraped(router)
            assert value(found, "prompt_tokens_total", replica="a", source="device") == 4800
            assert value(found, "prompt_tokens_total", replica="a", source="computed") == 1606
            assert value(found, "prompt_tokens_total", replica="a", source="memory") is None
            assert value(found, "predicted_cached_tokens_total", replica="a") == 3200
            assert value(found, "cached_tokens_total", replica="a") == 1600
            for name in ("ttft_seconds", "predicted_ttft_seconds", "ttft_ratio"):
                assert value(found, f"{name}_count", replica="a") == 3
            assert value(found, "decide_seconds_count", step="view") == 3
            assert value(found, "decide_seconds_count", step="choose") == 3
            assert sum(v for (name, _), v in found.items() if name == "decisions_total") == 3
            assert value(found, "index_trust", replica="a", state="synced") == 1
            assert value(found, "index_trust", replica="a", state="catching_up") == 0
            assert value(found, "index_lag_seconds", replica="a") == 0
            assert value(found, "index_behind_batches", replica="a") == 0
            assert value(found, "index_tokens", replica="a", tier="device") == 6400
            assert value(found, "index_bytes", replica="a", tier="device") == 2 * 200 * 1024
            assert value(found, "index_tokens", replica="a", tier="storage") == 0
            assert value(found, "index_alarm", replica="a", kind="less") == 0
            assert value(found, "waiting") == 0

    run(go())


def test_names_have_their_units_and_labels_are_few(counted: Following) -> None:
    async def go() -> None:
        async with fleet(*counted.engines, chooser=counted.chooser) as router:
            await counted.synced()
            await ask(router, {"prompt": prompt(1), "stream": True})
            text = (await get(router, "/metrics")).body.decode()
            families = [
                one
                for one in text_string_to_metric_families(text)
                if not one.name.endswith("_created")
            ]
            assert len(families) > 20
            for family in families:
                assert family.name.startswith("kvstrata_router_") and family.documentation
                for sample in family.samples:
                    assert set(sample.labels) <= LABELS
                    if family.type == "counter":
                        assert sample.name.endswith("_total")
                bare = family.name.removeprefix("kvstrata_router_")
                if bare.startswith(SECONDS) and "ratio" not in bare:
                    assert bare.endswith("_seconds")

    run(go())


def test_series_of_a_replica_go_with_it(counted: Following) -> None:
    async def go() -> None:
        async with fleet(*counted.engines, chooser=counted.chooser) as router:
            await counted.synced()
            for engine in counted.engines:
                engine.cached = 0
            for number in range(6):
                await ask(router, {"prompt": prompt(number), "stream": True})
                await ask(router, {"prompt": prompt(number)})
            names = {
                one for _, labels in await scraped(router) for one in labels if one[0] == "replica"
            }
            assert names == {("replica", "a"), ("replica", "b")}
            router.application.replicas.remove("a")
            names = {
                one for _, labels in await scraped(router) for one in labels if one[0] == "replica"
            }
            assert names == {("replica", "b")}

    run(go())


def test_without_an_index_there_are_no_series_of_one() -> None:
    async def go() -> None:
        async with fleet(StubEngine("a"), policy="least-loaded") as router:
            await ask(router, {"prompt": "x", "stream": True})
            found = await scraped(router)
            assert not [name for name, labels in found if name.startswith("index_") and labels]
            assert value(found, "ttft_seconds_count", replica="a") == 1
            assert value(found, "predicted_ttft_seconds_count", replica="a") is None

    run(go())
