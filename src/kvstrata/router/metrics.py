"""What the router counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kvstrata.router.chooser import Result
from kvstrata.router.health import State
from kvstrata.router.replicas import Replica
from kvstrata.routing.decision import Decision

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


class Meters:
    """The counters of one router, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self._ttft = Histogram(
            "kvstrata_router_ttft_seconds",
            "From sending a request to an engine to the first byte of its answer's body.",
            ("replica",),
            buckets=_SECONDS,
            registry=self.registry,
        )
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
        self._counters: dict[tuple[str, ...], Callable[[], None]] = {}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvstrata_router_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"kvstrata_router_{name}", text, labels, registry=self.registry)

    def _count(self, counter: Counter, *labels: str) -> None:
        key = (counter._name, *labels)
        count = self._counters.get(key)
        if count is None:
            count = self._counters[key] = counter.labels(*labels).inc
        count()

    def decided(self, decision: Decision) -> None:
        """A replica was chosen."""
        self._count(self._decisions, decision.policy, decision.reason)

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
            self._ttft.labels(result.replica).observe(result.ttft)

    def text(self, replicas: list[Replica], waiting: int, connections: int, buffered: int) -> bytes:
        """Everything, in Prometheus' text format."""
        self._waiting.set(waiting)
        self._connections.set(connections)
        self._buffered.set(buffered)
        for gauge in (self._in_flight, self._states, self._engine):
            gauge.clear()
        for replica in replicas:
            self._in_flight.labels(replica.name).set(replica.in_flight)
            for state in State:
                self._states.labels(replica.name, state).set(replica.health.state is state)
            if replica.load is not None:
                self._engine.labels(replica.name, "running").set(replica.load.running)
                self._engine.labels(replica.name, "waiting").set(replica.load.waiting)
        return generate_latest(self.registry)
