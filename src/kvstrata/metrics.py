"""What is counted, and the counters themselves. How they are published is the plug-in's business."""

import threading
from dataclasses import dataclass
from enum import Enum

Labels = tuple[str, ...]


class Kind(Enum):
    """How values of a metric combine."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric's definition.

    Attributes:
        name: without the engine's prefix; counters get `_total` where they are published.
        kind: see `Kind`.
        help: one sentence for an operator.
        labels: label names.
        buckets: upper bounds, for histograms.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()


TOKENS = Metric(
    "kvstrata_tokens",
    Kind.COUNTER,
    "Prompt tokens by where their KV came from: device, memory, filesystem, or computed.",
    ("tier",),
)
LOOKUPS = Metric(
    "kvstrata_lookups", Kind.COUNTER, "Chunks that requests asked a tier for.", ("tier",)
)
HITS = Metric(
    "kvstrata_hits", Kind.COUNTER, "Chunks that a tier gave to requests, verified.", ("tier",)
)
BYTES = Metric(
    "kvstrata_bytes",
    Kind.COUNTER,
    "Payload bytes moved between a tier and the host arena.",
    ("tier", "direction"),
)
SECONDS = Metric(
    "kvstrata_seconds",
    Kind.COUNTER,
    "Seconds that I/O threads spent moving them.",
    ("tier", "direction"),
)
CHUNKS = Metric(
    "kvstrata_chunks", Kind.GAUGE, "Chunks in the host arena by state.", ("tier", "state")
)
ARENA_BYTES = Metric(
    "kvstrata_arena_bytes",
    Kind.GAUGE,
    "Bytes of the host arena by state of the chunk in them.",
    ("state",),
)
QUEUE_DEPTH = Metric(
    "kvstrata_queue_depth", Kind.GAUGE, "I/O jobs waiting or running, by queue.", ("queue",)
)
WRITES_DROPPED = Metric(
    "kvstrata_writes_dropped",
    Kind.COUNTER,
    "Chunks that were not stored: no slot free, write queue full, torn by the engine, or a write error.",
    ("reason",),
)
NOT_ADMITTED = Metric(
    "kvstrata_not_admitted",
    Kind.COUNTER,
    "Chunks that were not written to storage though they could have been, by reason: policy (option "
    "admission), request (the request's own kv_transfer_params.store).",
    ("reason",),
)
BAD_RECORDS = Metric(
    "kvstrata_bad_records",
    Kind.COUNTER,
    "Stored chunks that could not be used and counted as misses, by reason.",
    ("reason",),
)
READ_DEADLINES = Metric(
    "kvstrata_read_deadlines",
    Kind.COUNTER,
    "Requests whose chunks did not come from storage in time and that were computed instead.",
)
JUNCTIONS = Metric(
    "kvstrata_junctions",
    Kind.COUNTER,
    "Requests that keep windowed groups at a boundary besides their prompt's end, because others can use "
    "it: shared, where the tiers hold the same beginning; answer, at the end of the answer.",
    ("reason",),
)
LOAD_WAIT = Metric(
    "kvstrata_load_wait_seconds",
    Kind.HISTOGRAM,
    "Seconds from a request's first lookup until its chunks were in memory or given up.",
    (),
    (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
)
TENANT_BYTES = Metric(
    "kvstrata_tenant_bytes",
    Kind.GAUGE,
    "Bytes that tenants keep below a tier's path, as last estimated: those that the option 'tenants' names, "
    "default for the others together, and nobody; only with that option.",
    ("tier", "tenant"),
)
STUCK_THREADS = Metric(
    "kvstrata_stuck_threads", Kind.GAUGE, "I/O threads in a call that does not return."
)
SET_ASIDE = Metric(
    "kvstrata_set_aside",
    Kind.GAUGE,
    "1 while a tier's reads or writes keep failing and are not tried, but for a test now and then.",
    ("tier", "operation"),
)
STORED_BYTES = Metric(
    "kvstrata_stored_bytes",
    Kind.GAUGE,
    "Bytes that all engines keep below a tier's path, and their bound, as last estimated; only with a bound.",
    ("tier", "what"),
)
EVICTED_BYTES = Metric(
    "kvstrata_evicted_bytes",
    Kind.COUNTER,
    "Bytes that this engine removed from a tier so that its bound holds.",
    ("tier",),
)
REFUSED = Metric(
    "kvstrata_refused",
    Kind.COUNTER,
    "Reads and writes that were not tried because the tier is set aside.",
    ("tier", "operation"),
)

INFO = Metric(
    "kvstrata_info",
    Kind.GAUGE,
    "1 for the namespace in use, with kvstrata's release, what the hash seed is (default, set or random), "
    "the endpoints of KV events and of snapshots, and the name of the storage; empty without one.",
    ("namespace", "hash_seed", "version", "events", "snapshots", "storage"),
)
ENDPOINTS = Metric(
    "kvstrata_endpoints",
    Kind.GAUGE,
    "1, with the configured endpoints of KV events and of snapshots; there before the first request is.",
    ("events", "snapshots"),
)
FINDING = Metric(
    "kvstrata_finding",
    Kind.GAUGE,
    "1 for each code that `kvstrata doctor` found at the engine's start.",
    ("code", "severity"),
)

ALL = (
    INFO,
    ENDPOINTS,
    FINDING,
    TOKENS,
    LOOKUPS,
    HITS,
    BYTES,
    SECONDS,
    CHUNKS,
    ARENA_BYTES,
    QUEUE_DEPTH,
    WRITES_DROPPED,
    NOT_ADMITTED,
    BAD_RECORDS,
    READ_DEADLINES,
    JUNCTIONS,
    LOAD_WAIT,
    TENANT_BYTES,
    STUCK_THREADS,
    SET_ASIDE,
    REFUSED,
    STORED_BYTES,
    EVICTED_BYTES,
)
"""Every metric."""


@dataclass(slots=True)
class Sample:
    """Values of one metric and label set since the last `Metrics.take`: a sum, a level, or observations."""

    metric: Metric
    labels: Labels
    value: float
    observations: tuple[float, ...] = ()


class Metrics:
    """Collects values from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, Labels], float] = {}
        self._levels: dict[tuple[str, Labels], float] = {}
        self._observed: dict[tuple[str, Labels], list[float]] = {}
        self._by_name = {metric.name: metric for metric in ALL}

    def count(self, metric: Metric, amount: float = 1, labels: Labels = ()) -> None:
        """Add to a counter."""
        assert metric.kind is Kind.COUNTER and len(labels) == len(metric.labels)
        key = (metric.name, labels)
        with self._lock:
            self._sums[key] = self._sums.get(key, 0) + amount

    def level(self, metric: Metric, value: float, labels: Labels = ()) -> None:
        """Set a gauge."""
        assert metric.kind is Kind.GAUGE and len(labels) == len(metric.labels)
        with self._lock:
            self._levels[(metric.name, labels)] = value

    def observe(self, metric: Metric, value: float, labels: Labels = ()) -> None:
        """Add an observation to a histogram."""
        assert metric.kind is Kind.HISTOGRAM and len(labels) == len(metric.labels)
        with self._lock:
            self._observed.setdefault((metric.name, labels), []).append(value)

    def take(self) -> list[Sample]:
        """Everything since the last call; counters and histograms start again from nothing."""
        with self._lock:
            sums, self._sums = self._sums, {}
            levels, self._levels = self._levels, {}
            observed, self._observed = self._observed, {}
        by_name = self._by_name
        return [
            *(Sample(by_name[name], labels, value) for (name, labels), value in sums.items()),
            *(Sample(by_name[name], labels, value) for (name, labels), value in levels.items()),
            *(
                Sample(by_name[name], labels, sum(values), tuple(values))
                for (name, labels), values in observed.items()
            ),
        ]
