"""The client reads a stream, a failure and the metrics as an engine sends them."""

import threading
from collections.abc import Iterator

import httpx2
import pytest

from lab.client import EngineClient
from tests.unit.lab_harness.fake_engine import FakeEngine


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[EngineClient]:
    made = EngineClient(engine.server_address[1], "tiny")
    yield made
    made.close()


def test_tokens_of_all_events_and_cached_tokens_of_the_last(
    engine: FakeEngine, client: EngineClient
) -> None:
    engine.cached = 384
    answer = client.complete([1, 2, 3], max_tokens=3)
    assert answer.tokens == (7, 8, 9)
    assert answer.cached_tokens == 384
    assert 0 < answer.ttft_ms <= answer.total_ms
    path, body = engine.asked[-1]
    assert path == "/v1/completions"
    assert isinstance(body, dict)
    assert body["prompt"] == [1, 2, 3] and body["model"] == "tiny" and body["max_tokens"] == 3
    assert body["temperature"] == 0 and body["ignore_eos"] and body["stream"]


def test_no_details_means_nothing_cached(client: EngineClient) -> None:
    assert client.complete([1], max_tokens=3).cached_tokens == 0


def test_an_error_is_raised(engine: FakeEngine, client: EngineClient) -> None:
    engine.broken = True
    with pytest.raises(httpx2.HTTPStatusError):
        client.complete([1], max_tokens=1)


def test_metrics_are_named_by_their_own_labels_in_order(
    engine: FakeEngine, client: EngineClient
) -> None:
    engine.waiting = 2
    assert client.metrics() == {
        "vllm:kvstrata_chunks{state=writing,tier=memory}": 1.0,
        "vllm:kvstrata_queue_depth{queue=write}": 1.0,
        "vllm:plain_total{}": 3.0,
    }


def test_health_and_reset(engine: FakeEngine, client: EngineClient) -> None:
    assert client.healthy()
    client.reset_prefix_cache()
    assert engine.asked[-1][0] == "/reset_prefix_cache"
    engine.shutdown()
    engine.server_close()
    dead = EngineClient(engine.server_address[1], "tiny")
    assert not dead.healthy()
    dead.close()
