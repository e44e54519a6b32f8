"""What the router counts, for Prometheus.

All labels are of bounded sets: paths, policies, reasons and states that the program names, and replicas,
whose series go with them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kvstrata.events.stream import Trust
from kvstrata.router.chooser import Result
from kvstrata.router.health import State
from kvstrata.router.index_state import IndexState
from kvstrata.router.replicas import Replica
from kvstrata.router.sources import Sources
from kvstrata.routing.decision import Decision
from kvstrata.routing.shape import TIERS

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_SOURCES = ("device", "memory", "storage", "computed")
_DECIDING = (0.0001, 0.0003, 0.001, 0.002, 0.004, 0.01, 0.03, 0.1, 0.3, 1.0)
_RATIOS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


class Meters:
    """The counters of one router, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count_requests()
        self._count_tokens()
        self._gauge_now()
        self._index = self._index_gauges()
        self._resynced: dict[str, int] = {}
        self._counters: dict[tuple[str, ...], Callable[[float], None]] = {}
        first = (
            self._retries, self._ttft, self._predicted, self._ratio, self._prompt, self._foreseen,
            self._cached, self._resyncs,
        )  # fmt: skip
        # Series of a replica, and which of their labels names it.
        self._by_replica: dict[str, tuple[Counter | Histogram, int]] = {
            self._requests._name: (self._requests, 1),
            **{one._name: (one, 0) for one in first},
        }

    def _count_requests(self) -> None:
        self._requests = self._counter(
            "requests",
            "Answers by path, replica and status; 0 without one.",
            "path",
            "replica",
            "status",
        )
        self._refused = self._counter("refusals", "Requests that the router refused.", "code")
        self._decisions = self._counter("decisions", "Choices of a replica.", "policy", "reason")
        self._retries = self._counter(
            "retries", "Attempts that were made again elsewhere.", "replica"
        )
        self._ttft = self._histogram(
            "ttft_seconds",
            "From sending a request to an engine to the first byte of its answer's body.",
            _SECONDS,
            "replica",
        )
        self._predicted = self._histogram(
            "predicted_ttft_seconds",
            "The same as the policy foresaw it, of streams that were answered.",
            _SECONDS,
            "replica",
        )
        self._ratio = self._histogram(
            "ttft_ratio",
            "Time to a stream's first token, divided by what was foreseen.",
            _RATIOS,
            "replica",
        )
        self._deciding = self._histogram(
            "decide_seconds",
            "To read a prompt (view) and to choose a replica (choose).",
            _DECIDING,
            "step",
        )

    def _count_tokens(self) -> None:
        self._prompt = self._counter(
            "prompt_tokens",
            "Tokens of prompts that were answered, by where they came from: what the engine says it cached, "
            "else what was foreseen.",
            "replica",
            "source",
        )
        self._foreseen = self._counter(
            "predicted_cached_tokens",
            "Tokens that were foreseen not to be computed, of answers that tell.",
            "replica",
        )
        self._cached = self._counter(
            "cached_tokens", "Tokens that those answers say were not computed.", "replica"
        )
        self._resyncs = self._counter(
            "index_resyncs", "Times that a replica's index was made anew: it was wrong.", "replica"
        )

    def _gauge_now(self) -> None:
        self._in_flight = self._gauge("in_flight", "Requests at a replica now.", "replica")
        self._states = self._gauge(
            "replica_state", "1 for the state a replica is in.", "replica", "state"
        )
        self._engine = self._gauge(
            "engine_requests", "Requests in an engine, as it says itself.", "replica", "state"
        )
        self._waiting = self._gauge("waiting", "Requests that wait for a replica with room.")
        self._connections = self._gauge("connections", "Clients connected.")
        self._buffered = self._gauge("buffered_bytes", "Bytes of bodies held.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvstrata_router_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"kvstrata_router_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            f"kvstrata_router_{name}", text, labels, buckets=buckets, registry=self.registry
        )

    def _index_gauges(self) -> dict[str, Gauge]:
        return {
            "alarm": self._gauge(
                "index_alarm",
                "1 while a replica's cached tokens disagree with its index: less or more than it says.",
                "replica",
                "kind",
            ),
            "disagreeing": self._gauge(
                "index_disagreeing_ratio", "Share of its last answers that do.", "replica"
            ),
            "trust": self._gauge(
                "index_trust", "1 for the state a replica's events are in.", "replica", "state"
            ),
            "lag": self._gauge(
                "index_lag_seconds", "Since nothing was known to be missing.", "replica"
            ),
            "behind": self._gauge(
                "index_behind_batches", "Published and not taken in yet.", "replica"
            ),
            "tokens": self._gauge(
                "index_tokens",
                "That a replica's blocks cover, by tier, over all KV cache groups.",
                "replica",
                "tier",
            ),
            "bytes": self._gauge("index_bytes", "Of those blocks.", "replica", "tier"),
        }

    def _observe(self, histogram: Histogram, label: str, value: float) -> None:
        key = (histogram._name, label)
        observe = self._counters.get(key)
        if observe is None:
            observe = self._counters[key] = histogram.labels(label).observe
        observe(value)

    def _count(self, counter: Counter, *labels: str, by: float = 1.0) -> None:
        key = (counter._name, *labels)
        count = self._counters.get(key)
        if count is None:
            count = self._counters[key] = counter.labels(*labels).inc
        count(by)

    def viewed(self, seconds: float) -> None:
        """A prompt was read."""
        self._observe(self._deciding, "view", seconds)

    def decided(self, decision: Decision, seconds: float) -> None:
        """A replica was chosen, in so many seconds."""
        self._count(self._decisions, decision.policy, decision.reason)
        self._observe(self._deciding, "choose", seconds)

    def first_token(self, replica: str, actual: float, foreseen: float) -> None:
        """A stream's first token came after `actual` seconds; `foreseen` is 0 if nothing was."""
        if foreseen > 0:
            self._observe(self._predicted, replica, foreseen)
            self._observe(self._ratio, replica, actual / foreseen)

    def prompt(self, replica: str, sources: Sources) -> None:
        """A prompt was answered, and its tokens came from there."""
        parts = sources.device, sources.memory, sources.storage, sources.computed
        for source, tokens in zip(_SOURCES, parts, strict=True):
            if tokens:
                self._count(self._prompt, replica, source, by=tokens)

    def cached(self, replica: str, foreseen: int, said: int) -> None:
        """An answer tells how many tokens were cached."""
        self._count(self._foreseen, replica, by=foreseen)
        self._count(self._cached, replica, by=said)

    def retried(self, replica: str) -> None:
        """It failed, and another one is asked."""
        self._count(self._retries, replica)

    def refused(self, code: str) -> None:
        """The router answered with an error of its own."""
        self._count(self._refused, code)

    def answered(self, path: str, result: Result) -> None:
        """An attempt is over. `path` is one of those that the router knows."""
        self._count(self._requests, path, result.replica, str(result.status))
        if result.ttft is not None:
            self._observe(self._ttft, result.replica, result.ttft)

    def text(
        self,
        replicas: Sequence[Replica],
        standings: Mapping[str, tuple[IndexState | None, Mapping[str, Any]]],
        waiting: int,
        connections: int,
        buffered: int,
    ) -> bytes:
        """Everything, in Prometheus' text format.

        Args:
            replicas: that there are; series of others go.
            standings: for each its index, and what `Drift.describe` says of it.
            waiting: requests that wait for room.
            connections: clients.
            buffered: bytes of bodies held.
        """
        self._drop_all_but({one.name for one in replicas})
        self._waiting.set(waiting)
        self._connections.set(connections)
        self._buffered.set(buffered)
        for gauge in (self._in_flight, self._states, self._engine, *self._index.values()):
            gauge.clear()
        for replica in replicas:
            self._in_flight.labels(replica.name).set(replica.in_flight)
            for state in State:
                self._states.labels(replica.name, state).set(replica.health.state is state)
            if replica.load is not None:
                self._engine.labels(replica.name, "running").set(replica.load.running)
                self._engine.labels(replica.name, "waiting").set(replica.load.waiting)
            self._standing(replica.name, *standings[replica.name])
        return generate_latest(self.registry)

    def _standing(self, name: str, state: IndexState | None, drift: Mapping[str, Any]) -> None:
        if state is None:
            return
        gauges = self._index
        # Counted by whoever makes it anew; a counter here must not fall when that begins from nothing.
        before = self._resynced.get(name, 0)
        if drift["resyncs"] > before:
            self._count(self._resyncs, name, by=drift["resyncs"] - before)
        self._resynced[name] = drift["resyncs"]
        for kind in ("less", "more"):
            gauges["alarm"].labels(name, kind).set(drift["alarm_of"] == kind)
        gauges["disagreeing"].labels(name).set(drift["disagreeing"])
        for trust in Trust:
            gauges["trust"].labels(name, trust.value.replace(" ", "_")).set(
                state.trust == trust.value
            )
        gauges["lag"].labels(name).set(state.age_seconds)
        gauges["behind"].labels(name).set(state.behind)
        for tier in TIERS:
            held = [one for one in state.holds if one.tier == tier]
            gauges["tokens"].labels(name, tier).set(sum(one.tokens for one in held))
            gauges["bytes"].labels(name, tier).set(sum(one.bytes for one in held))

    def _drop_all_but(self, names: set[str]) -> None:
        """Forget the series of replicas that are gone."""
        for name, *labels in list(self._counters):
            metric, place = self._by_replica.get(name, (None, 0))
            if metric is not None and labels[place] not in names:
                metric.remove(*labels)
                del self._counters[name, *labels]
        for gone in self._resynced.keys() - names:
            del self._resynced[gone]
