"""Our counters in vLLM's own Prometheus endpoint, through its connector statistics."""

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.distributed.kv_events import ZmqEventPublisher
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingHistogramMetadata,
)

from kvstrata.metrics import ALL, ENDPOINTS, Kind, Metric, Sample

PREFIX = "vllm:"


def definitions() -> dict[str, Any]:
    """vLLM's metadata for each of our metrics, by full name."""
    return {PREFIX + metric.name: _definition(metric) for metric in ALL}


def _definition(metric: Metric) -> Any:
    if metric.kind is Kind.COUNTER:
        return OffloadingCounterMetadata(metric.help, metric.labels)
    if metric.kind is Kind.GAUGE:
        return OffloadingGaugeMetadata(metric.help, metric.labels)
    return OffloadingHistogramMetadata(metric.help, metric.labels, metric.buckets)


def to_vllm(samples: Sequence[Sample]) -> OffloadingConnectorStats | None:
    """The samples in vLLM's form, or None when there are none."""
    if not samples:
        return None
    stats = OffloadingConnectorStats()
    for sample in samples:
        name = PREFIX + sample.metric.name
        if sample.metric.kind is Kind.COUNTER:
            stats.increase_counter(name, sample.value, sample.labels)
        elif sample.metric.kind is Kind.GAUGE:
            stats.set_gauge(name, sample.value, sample.labels)
        else:
            for value in sample.observations:
                stats.observe_histogram(name, value, sample.labels)
    return stats


def tell_endpoints(metrics: Any, kv_events_config: Any, engines: Iterable[int]) -> None:
    """Let the endpoint say where events are before an engine has run its first step.

    An engine's own statistics come with its steps, and a router sends it nothing before it knows it.

    Args:
        metrics: vLLM's, of the API server's process.
        kv_events_config: vLLM's `KVEventsConfig`, or None.
        engines: indices of the data-parallel ranks.
    """
    if not getattr(kv_events_config, "enable_kv_cache_events", False):
        return
    if kv_events_config.publisher != "zmq":
        return
    for engine in engines:
        configured = (kv_events_config.endpoint, kv_events_config.replay_endpoint)
        events, snapshots = (
            ZmqEventPublisher.offset_endpoint_port(endpoint, engine) for endpoint in configured
        )
        stats = to_vllm([Sample(ENDPOINTS, (events or "", snapshots or ""), 1.0)])
        assert stats is not None
        metrics.observe(stats.data, engine)
