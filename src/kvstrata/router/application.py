"""What the router answers at which path."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kvstrata import __version__
from kvstrata.router.access import check_admin, check_key
from kvstrata.router.admin import JSON, Admin
from kvstrata.router.asking import ask
from kvstrata.router.chooser import Chooser
from kvstrata.router.config import RouterConfig
from kvstrata.router.downstream import ClientConnection, Clients
from kvstrata.router.explain import DECISIONS, EXPLAIN, asked_about
from kvstrata.router.headers import to_engine, value_of
from kvstrata.router.inbound import Request
from kvstrata.router.journal import Journal
from kvstrata.router.line import Line
from kvstrata.router.metrics import Meters
from kvstrata.router.page import PATHS, page
from kvstrata.router.proxy import Proxy, new_id
from kvstrata.router.refusals import RefusedError, engine_failed, unavailable
from kvstrata.router.replicas import Replica, Replicas, fetch
from kvstrata.router.standing import state_of
from kvstrata.router.upstream import EngineError

log = logging.getLogger(__name__)

FORWARDED = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/score",
        "/v1/rerank",
        "/v2/rerank",
        "/score",
        "/rerank",
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
    }
)
"""Paths of the engines that take a body with a model in it."""
_OWN = frozenset({"/health", "/metrics", "/v1/models"})
_LISTING = 10.0


class Application:
    """Answers every request.

    Args:
        config: asked for the settings now in force.
        chooser: decides where requests go.
        reload: see `Admin`.

    Attributes:
        chooser: as given.
    """

    def __init__(
        self,
        config: Callable[[], RouterConfig],
        chooser: Chooser,
        reload: Callable[[], list[str]],
    ) -> None:
        self._config = config
        self._id = new_id().encode()
        self.line = Line()
        self.meters = Meters()
        self.journal = Journal(self.meters)
        self._started = time.time()
        self.replicas = Replicas(config, self.line.wake)
        self.chooser = chooser
        self.replicas.removed = chooser.forget
        self.replicas.told = chooser.metrics
        self.clients = Clients(config, self.check, self.handle)
        self._proxy = Proxy(config, self.replicas, self.line, chooser, self.journal, self._id)
        self._admin = Admin(
            self.replicas, chooser, reload, time.monotonic, self._state, self._decision
        )

    def check(self, request: Request) -> None:
        """Judge a request by its head. Raises RefusedError."""
        try:
            self._check(request)
        except RefusedError as refusal:
            self.meters.refused(refusal.code)
            raise

    def _check(self, request: Request) -> None:
        path, config = request.path, self._config()
        if path.startswith("/admin/"):
            check_admin(request, config.admin_key)
            return
        allowed = _methods(path)
        if not allowed:
            text = f"The router has no {path:.200}."
            raise RefusedError(404, "not_found", text)
        if request.method not in allowed.split(", "):
            text = f"{path} takes {allowed}, not {request.method:.20}."
            raise RefusedError(405, "method_not_allowed", text, allow=allowed)
        if path in PATHS or path in ("/health", "/metrics"):
            return  # for browsers, load balancers and Prometheus, which have no keys
        check_key(request, config.api_keys)
        if value_of(request.headers, b"x-kvstrata-router") == self._id:
            text = "The router is a replica of itself; remove it from its replicas."
            raise RefusedError(508, "loop", text, kind="server_error")

    async def handle(self, request: Request, client: ClientConnection) -> None:
        """Answer a whole request. Raises RefusedError."""
        try:
            await self._answer(request, client)
        except RefusedError as refusal:
            self.meters.refused(refusal.code)
            raise

    async def _answer(self, request: Request, client: ClientConnection) -> None:
        if request.path in FORWARDED:
            await self._proxy.forward(ask(request, new_id()), client)
        elif request.path == "/health":
            self._health(client)
        elif request.path == "/metrics":
            kind = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
            client.respond(200, kind, self._metrics())
        elif request.path in PATHS:
            client.respond(200, *page(request.path))
        elif request.path == "/v1/models":
            await self._models(request, client)
        elif request.path == EXPLAIN:
            record = await self._proxy.explain(asked_about(request, new_id(), FORWARDED))
            client.respond(200, JSON, msgspec.json.encode(record.as_dict()))
        elif request.path.startswith(DECISIONS):
            found = self._decision(request.path.removeprefix(DECISIONS))
            client.respond(200, JSON, msgspec.json.encode(found))
        else:
            self._admin.answer(request, client)

    def _health(self, client: ClientConnection) -> None:
        if self.clients.draining:
            raise unavailable("draining", "The router is shutting down.", 1)
        if not self.replicas.usable(None):
            raise unavailable("no_replica_up", "No replica can be used.", 1)
        client.respond(200, [], b"")

    def _metrics(self) -> bytes:
        clients, chooser, now = self.clients, self.chooser, time.monotonic()
        replicas = list(self.replicas)
        standings = {
            one.name: (chooser.index_of(one.name, now), chooser.drift.describe(one.name))
            for one in replicas
        }
        return self.meters.text(
            replicas, standings, len(self.line), len(clients.connections), clients.buffered
        )

    def _decision(self, identity: str) -> dict[str, Any]:
        record = self.journal.ledger.get(identity)
        if record is None:
            text = "No such decision is known; only the last some thousand are remembered."
            raise RefusedError(404, "decision_not_found", text)
        return record.as_dict()

    def _state(self) -> dict[str, Any]:
        clients = self.clients
        router = {
            "id": self._id.decode(),
            "version": __version__,
            "started": self._started,
            "now": time.time(),
            "waiting": len(self.line),
            "connections": len(clients.connections),
            "in_flight": sum(one.in_flight for one in self.replicas),
            "buffered_bytes": clients.buffered,
        }
        return state_of(router, self.replicas, self.chooser, self.journal, time.monotonic())

    async def _models(self, request: Request, client: ClientConnection) -> None:
        """All models of all replicas that can be used, each once."""
        replicas = self.replicas.usable(None)
        if not replicas:
            raise unavailable("no_replica_up", "No replica can be used.", 1)
        answers = await asyncio.gather(*[self._ask(one, request) for one in replicas])
        lists = [_listed(body) for status, body in answers if status == 200]
        if not lists:
            status, body = answers[0]
            if status == 0:
                raise engine_failed(replicas[0].name, "gave no list of its models")
            client.respond(status, JSON, body)
            return
        client.respond(200, JSON, _merged(lists))

    async def _ask(self, replica: Replica, request: Request) -> tuple[int, bytes]:
        keep = not self._config().api_keys
        lines = to_engine(request.headers, replica.config, self._id, keep_authorization=keep)
        try:
            return await fetch(replica, b"/v1/models", lines, _LISTING)
        except EngineError as error:
            log.warning("replica %s %s when asked for its models", replica.name, error.why)
            return 0, b""


def _methods(path: str) -> str:
    """Those that a path takes; empty if it is none of ours."""
    if path in FORWARDED or path == EXPLAIN:
        return "POST"
    readable = path in _OWN or path in PATHS or path.startswith(DECISIONS)
    return "GET, HEAD" if readable else ""


def _listed(body: bytes) -> list[Any]:
    try:
        data = msgspec.json.decode(body)["data"]
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
        return []
    return data if isinstance(data, list) else []


def _merged(lists: Sequence[list[Any]]) -> bytes:
    found: dict[str, Any] = {}
    for listed in lists:
        for one in listed:
            if isinstance(one, dict) and isinstance(one.get("id"), str):
                found.setdefault(one["id"], one)
    return msgspec.json.encode({"object": "list", "data": list(found.values())})
