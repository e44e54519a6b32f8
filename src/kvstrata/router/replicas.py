"""The replicas that the router knows now, and its requests to them."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvstrata.router.config import ReplicaConfig, RouterConfig
from kvstrata.router.headers import Headers
from kvstrata.router.health import USABLE, EngineLoad, Health, State, read_load
from kvstrata.router.upstream import EngineConnection, EngineError, EnginePool

log = logging.getLogger(__name__)

_LARGEST_ANSWER = 8 << 20


@dataclass(eq=False, slots=True)
class Attempt:
    """A request at a replica, from the moment at which it is chosen.

    Attributes:
        tokens: of its prompt; 0 when unknown.
        connection: that carries it, once there is one.
        heard: the loop's time at which the engine last said something of it, or got it.
        patience: seconds of silence after which it is given up.
    """

    tokens: int
    connection: EngineConnection | None = None
    heard: float = 0.0
    patience: float = float("inf")


class Served(msgspec.Struct, frozen=True):
    """A model or an adapter, as an engine lists it.

    Attributes:
        id: by which requests name it.
        root: where the engine has its files from: a directory there, or a name.
        parent: of an adapter the model that it belongs to; None for a model.
    """

    id: str
    root: str | None = None
    parent: str | None = None


@dataclass(eq=False, slots=True)
class Replica:
    """One engine as the router sees it.

    Attributes:
        config: where it is.
        pool: connections to it.
        health: what is believed of it.
        models: that it serves, or None while unknown: then it is given any model.
        served: the same with what the engine says of each, by name; empty while unknown.
        load: from its own metrics, or None when it has none.
        attempts: requests that it has from us now.
        tokens: of their prompts, where known.
        looking: the task that looks at its health.
    """

    config: ReplicaConfig
    pool: EnginePool
    health: Health = field(default_factory=Health)
    models: frozenset[str] | None = None
    served: Mapping[str, "Served"] = field(default_factory=dict)
    load: EngineLoad | None = None
    attempts: set[Attempt] = field(default_factory=set)
    tokens: int = 0
    looking: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Unique among the replicas."""
        return self.config.name

    @property
    def in_flight(self) -> int:
        """Requests that it has from us."""
        return len(self.attempts)

    def serves(self, model: str | None) -> bool:
        """Whether it may be given a request for `model`; None is a request that names none."""
        return model is None or self.models is None or model in self.models

    def describe(self) -> dict[str, Any]:
        """Its state as plain data for JSON."""
        return {
            "name": self.name,
            "url": self.config.url,
            "state": str(self.health.state),
            "why": self.health.why,
            "failures": self.health.failures,
            "in_flight": self.in_flight,
            "models": None if self.models is None else sorted(self.models),
            "engine_running": None if self.load is None else self.load.running,
            "engine_waiting": None if self.load is None else self.load.waiting,
        }


class _Whole:
    """Receives one short answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: Headers, length: int | None) -> None:
        self.status = status

    def data(self, data: bytes) -> None:
        self.body += data
        if len(self.body) > _LARGEST_ANSWER:
            self.failed(EngineError("sent an answer that is too long", sent=True))

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def failed(self, error: EngineError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def own_lines(replica: Replica) -> bytes:
    """Header lines of a request of the router's own, each ended."""
    lines = b"host: %b\r\n" % replica.config.authority.encode()
    if replica.config.api_key is not None:
        lines += b"authorization: Bearer %b\r\n" % replica.config.api_key.encode()
    return lines


async def fetch(
    replica: Replica, target: bytes, lines: bytes, timeout: float, body: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body of a GET at a replica, or of a POST of JSON.

    Args:
        replica: whom to ask.
        target: path and query.
        lines: header lines, each ended, the host among them.
        timeout: seconds for all of it.
        body: of a POST; None for a GET.

    Raises:
        EngineError: no whole answer in that time.
    """
    receiver = _Whole()
    connection = None
    try:
        async with asyncio.timeout(timeout):
            # A new connection each time: a look at its health must see whether it takes one.
            connection = await replica.pool.connect(timeout)
            method = b"GET"
            if body is not None:
                method = b"POST"
                lines += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
            head = b"%b %b HTTP/1.1\r\n%bconnection: close\r\n\r\n" % (method, target, lines)
            connection.send(head, body or b"", receiver, last=True)
            await receiver.done
    except TimeoutError:
        raise EngineError(f"gave no answer within {timeout:g} s", sent=True) from None
    finally:
        if connection is not None and not receiver.done.done():
            connection.abort()
        receiver.done.cancel()
    return receiver.status, bytes(receiver.body)


class Replicas:
    """All replicas. They come and go at run time.

    Args:
        config: asked for the settings now in force.
        changed: called whenever a replica may take requests that it could not take before.
    """

    def __init__(self, config: Callable[[], RouterConfig], changed: Callable[[], None]) -> None:
        self._config = config
        self._changed = changed
        self._replicas: dict[str, Replica] = {}
        self.removed: Callable[[str], None] = lambda name: None
        self.told: Callable[[Replica, bytes], None] = lambda replica, metrics: None

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, name: str) -> Replica | None:
        """The replica of that name, or None."""
        return self._replicas.get(name)

    def add(self, config: ReplicaConfig) -> Replica:
        """Take a replica in; one that is leaving under the same name comes back."""
        old = self._replicas.get(config.name)
        if old is not None:
            if old.config == config:
                if old.health.state is State.LEAVING:
                    old.health = Health()
                    self._changed()
                return old
            self.remove(config.name)
            self._forget(old)
        pool = EnginePool(config, self._config().engine_keepalive)
        replica = self._replicas[config.name] = Replica(config, pool)
        self._changed()
        replica.looking = asyncio.get_running_loop().create_task(self._watch(replica))
        log.info("replica %s (%s) is added", config.name, config.url)
        return replica

    def remove(self, name: str) -> bool:
        """Give it nothing more; it goes when it has finished. False when there is none such."""
        replica = self._replicas.get(name)
        if replica is None:
            return False
        replica.health = replica.health.leaving()
        log.info("replica %s leaves, with %d requests to finish", name, replica.in_flight)
        if not replica.attempts:
            self._forget(replica)
        self._changed()
        return True

    def replace(self, wanted: Iterable[ReplicaConfig]) -> None:
        """Make the replicas those that are `wanted`."""
        listed = {one.name: one for one in wanted}
        for name in [name for name in self._replicas if name not in listed]:
            self.remove(name)
        for config in listed.values():
            self.add(config)

    def begin(self, replica: Replica, tokens: int) -> Attempt:
        """It is chosen for a request of `tokens` prompt tokens; `finished` has to follow."""
        attempt = Attempt(tokens)
        replica.attempts.add(attempt)
        replica.tokens += tokens
        return attempt

    def finished(self, replica: Replica, attempt: Attempt) -> None:
        """A request to it is over, well or not."""
        replica.attempts.remove(attempt)
        replica.tokens -= attempt.tokens
        if replica.health.state is State.LEAVING and not replica.attempts:
            self._forget(replica)
        self._changed()

    def failed(self, replica: Replica, why: str) -> None:
        """It took no connection, or broke one."""
        before = replica.health.state
        replica.health = replica.health.failed(why, self._config().probe_failures)
        after = replica.health.state
        if after is not before:
            log.warning("replica %s %s: %s", replica.name, why, after)
        if after is State.DOWN:
            # Each time: it was sent requests until it was down, and is silent to those too.
            self._give_up(replica)
            if before is not State.DOWN:
                self.removed(replica.name)
                self._changed()

    def _give_up(self, replica: Replica) -> None:
        """Break what a frozen engine holds, but not what it still answers."""
        config = self._config()
        silent = asyncio.get_running_loop().time() - config.probe_timeout
        for one in list(replica.attempts):
            if one.connection is not None and one.heard < silent:
                one.connection.fail(EngineError("is down", sent=True))

    def usable(self, model: str | None) -> list[Replica]:
        """Those that may be given a request for `model`: all that are up, or else all that may be."""
        found: list[Replica] = []
        for state in USABLE:
            found = [
                one
                for one in self._replicas.values()
                if one.health.state is state and one.serves(model)
            ]
            if found:
                break
        return found

    def models(self) -> frozenset[str] | None:
        """All models served, or None while some replica's are unknown."""
        known: set[str] = set()
        for one in self._replicas.values():
            if one.models is None:
                return None
            known |= one.models
        return frozenset(known)

    def sweep(self, now: float) -> None:
        """End silences and close unused connections; `now` is the loop's time."""
        for replica in list(self._replicas.values()):
            replica.pool.sweep(now)
            for one in list(replica.attempts):
                if one.connection is not None and now - one.heard >= one.patience:
                    one.connection.fail(EngineError("was silent for too long", sent=True))

    async def close(self) -> None:
        """Stop looking at replicas and close what is open."""
        tasks = [one.looking for one in self._replicas.values() if one.looking is not None]
        for replica in list(self._replicas.values()):
            self._forget(replica)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, replica: Replica) -> None:
        if replica.looking is not None:
            replica.looking.cancel()
        replica.pool.close()
        # Another one may have its name by now, and what is known then is that one's.
        if self._replicas.get(replica.name) is replica:
            del self._replicas[replica.name]
            self.removed(replica.name)

    async def _watch(self, replica: Replica) -> None:
        while True:
            try:
                await self._look(replica)
            except Exception:  # boundary: a bug in one look must not end all later ones
                log.exception("looking at replica %s failed", replica.name)
            await asyncio.sleep(self._config().probe_every)

    async def _look(self, replica: Replica) -> None:
        timeout = self._config().probe_timeout
        lines = own_lines(replica)
        try:
            status, _ = await fetch(replica, b"/health", lines, timeout)
        except EngineError as error:
            self.failed(replica, error.why)
            return
        if status != 200:
            self.failed(replica, f"answers /health with status {status}")
            return
        metrics = None
        try:
            served = _models(*await fetch(replica, b"/v1/models", lines, timeout))
            replica.models = None if served is None else frozenset(served)
            replica.served = served or {}
            status, text = await fetch(replica, b"/metrics", lines, timeout)
            metrics = text if status == 200 else None
        except EngineError:
            pass  # it is well all the same
        replica.load = None if metrics is None else read_load(metrics)
        if replica.health.state is not State.UP:
            replica.health = replica.health.well()
            self._changed()
        if metrics is not None:
            self.told(replica, metrics)


class _Models(msgspec.Struct):
    data: list[Served]


def _models(status: int, body: bytes) -> dict[str, Served] | None:
    if status != 200:
        return None  # it wants a key that the router does not have
    try:
        return {one.id: one for one in msgspec.json.decode(body, type=_Models).data}
    except (msgspec.DecodeError, RecursionError):
        return None
