"""One request's way: wait for room, choose, send, try again elsewhere while nothing was answered."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from kvstrata.router.asking import Asked, with_load_cap
from kvstrata.router.chooser import Chooser, Result
from kvstrata.router.config import RouterConfig
from kvstrata.router.downstream import ClientConnection
from kvstrata.router.headers import to_engine
from kvstrata.router.journal import Journal, record_of
from kvstrata.router.ledger import Record
from kvstrata.router.line import Line
from kvstrata.router.refusals import RefusedError, engine_failed, unavailable
from kvstrata.router.relay import Relay
from kvstrata.router.replicas import Attempt, Replica, Replicas
from kvstrata.router.upstream import EngineConnection, EngineError
from kvstrata.routing.decision import Decision, RequestView

log = logging.getLogger(__name__)


class Proxy:
    """Sends requests to replicas and their answers to clients.

    Args:
        config: asked for the settings now in force.
        replicas: that there are.
        line: where requests wait for room.
        chooser: decides where one goes.
        journal: is told what happens.
        router_id: of this router, to recognise its own requests.
    """

    def __init__(
        self,
        config: Callable[[], RouterConfig],
        replicas: Replicas,
        line: Line,
        chooser: Chooser,
        journal: Journal,
        router_id: bytes,
    ) -> None:
        self._config = config
        self._replicas = replicas
        self._line = line
        self._chooser = chooser
        self._journal = journal
        self._router_id = router_id

    async def forward(self, asked: Asked, client: ClientConnection) -> None:
        """Answer `asked` through a replica.

        Raises:
            RefusedError: no replica could answer it, and nothing was sent to the client.
        """
        self._known(asked.fields.model)
        view = await self._view(asked)
        tried: set[str] = set()
        second_tries = self._config().retries
        last: RefusedError | None = None
        held: Relay | None = None
        while True:
            try:
                decision, replica, attempt = await self._room(view, asked, tried)
            except RefusedError as refusal:
                if held is not None:
                    _give(held, client)
                    return
                raise (last or refusal) from None
            tried.add(replica.name)
            run = _Run(self, asked, view, decision, replica, attempt, client)
            again = second_tries > 0
            try:
                relay = await run.through(again)
            except EngineError as error:
                self._replicas.failed(replica, error.why)
                last = engine_failed(replica.name, error.why)
                if error.sent and not again:
                    raise last from None
                second_tries -= error.sent
            else:
                if relay is None:
                    return
                held, second_tries = relay, second_tries - 1
            self._journal.meters.retried(replica.name)

    async def explain(self, asked: Asked) -> Record:
        """What would be decided for `asked` now. Nothing is sent, and nothing changes.

        Raises:
            RefusedError: no replica could take it.
        """
        model = asked.fields.model
        self._known(model)
        view = await self._view(asked)
        usable = self._replicas.usable(model)
        if not usable:
            raise self._nobody(model)
        most = self._config().max_in_flight
        free = [one for one in usable if one.in_flight < most]
        # It would wait for the first one with room; which that is, nobody knows.
        decision = self._chooser.choose(view, free or usable, time.monotonic())
        return record_of(asked, view, decision)

    async def _view(self, asked: Asked) -> RequestView:
        begun = time.monotonic()
        view = await self._chooser.view(asked)
        self._journal.meters.viewed(time.monotonic() - begun)
        return view

    def _known(self, model: str | None) -> None:
        models = self._replicas.models()
        if model is not None and models is not None and model not in models and len(self._replicas):
            raise RefusedError(
                404,
                "model_not_found",
                f"No replica serves the model {model!r:.200}. Served are: {', '.join(sorted(models))}.",
                param="model",
            )

    async def _room(
        self, view: RequestView, asked: Asked, tried: set[str]
    ) -> tuple[Decision, Replica, Attempt]:
        """A replica with room, chosen and taken."""
        config, model = self._config(), asked.fields.model

        free: list[Replica] = []

        def fits() -> bool:
            # Without any usable replica there is nothing to wait for: go on, and be told so.
            usable = [one for one in self._replicas.usable(model) if one.name not in tried]
            free[:] = [one for one in usable if one.in_flight < config.max_in_flight]
            return bool(free) or not usable

        waited = bool(tried) or not len(self._line)
        until = time.monotonic() + config.max_wait
        while not (waited and fits()):
            left = max(until - time.monotonic(), 0.001)
            await self._line.wait(fits, config.max_waiting, left)
            waited = True
        try:
            if not free:
                raise self._nobody(model)
            now = time.monotonic()
            decision = self._chooser.choose(view, free, now)
            seconds = time.monotonic() - now
            replica = next(one for one in free if one.name == decision.chosen)
            self._chooser.sent(view, decision, now)
            self._journal.decided(asked, view, decision, seconds)
            return decision, replica, self._replicas.begin(replica, view.tokens or 0)
        finally:
            self._line.wake()  # there may be room for the next one too

    def _nobody(self, model: str | None) -> RefusedError:
        if not len(self._replicas):
            text = "The router has no replicas. Add one: --replica, its configuration, or the admin API."
            return unavailable("no_replicas", text, 5)
        named = "; ".join(
            f"{one.name} is {one.health.state}" + (f" ({one.health.why})" if one.health.why else "")
            for one in list(self._replicas)[:8]
        )
        wanted = "" if model is None else f" for the model {model!r:.200}"
        return unavailable("no_replica_up", f"No replica can be used{wanted}: {named}.", 2)

    async def connection(self, replica: Replica, *, fresh: bool = False) -> EngineConnection:
        """An open connection, a new one if it has to be `fresh`. Raises EngineError."""
        kept = None if fresh else replica.pool.idle()
        return kept or await replica.pool.connect(self._config().connect_timeout)

    def heads(self, asked: Asked, replica: Replica, body: bytes) -> bytes:
        """Request line and headers for an engine."""
        request, config = asked.request, self._config()
        lines = to_engine(
            request.headers,
            replica.config,
            self._router_id,
            keep_authorization=not config.api_keys,
        )
        target = request.path.encode("latin-1")
        if request.query:
            target += b"?" + request.query
        first = b"%b %b HTTP/1.1\r\n" % (request.method.encode(), target)
        return b"%b%bcontent-length: %d\r\n\r\n" % (first, lines, len(body))

    def begun(self, run: "_Run", first: float) -> None:
        """The first bytes of a streamed answer are there."""
        self._chooser.begun(run.asked.id, run.replica.name, first - run.sent, first)

    def over(self, run: "_Run", relay: Relay | None, failed: bool) -> None:
        """An attempt is over: say so to all who count it."""
        now = time.monotonic()
        first = relay.first if relay is not None else 0.0
        result = Result(
            id=run.asked.id,
            replica=run.replica.name,
            status=0 if relay is None else relay.status,
            ttft=first - run.sent if first else None,
            seconds=now - run.sent,
            streamed=relay is not None and relay.streamed,
            tail=b"" if relay is None else relay.tail(),
            failed=failed,
        )
        self._replicas.finished(run.replica, run.attempt)
        self._chooser.observed(result, run.view, run.decision, now)
        self._journal.ended(run.asked, run.view, run.decision, result)

    @property
    def settings(self) -> RouterConfig:
        """The settings now in force."""
        return self._config()


class _Run:
    """One attempt at one replica."""

    def __init__(
        self,
        proxy: Proxy,
        asked: Asked,
        view: RequestView,
        decision: Decision,
        replica: Replica,
        attempt: Attempt,
        client: ClientConnection,
    ) -> None:
        self._proxy = proxy
        self._client = client
        self.decision = decision
        self.view = view
        self.asked = asked
        self.replica = replica
        self.attempt = attempt
        self.sent = time.monotonic()

    async def through(self, again: bool) -> Relay | None:
        """Send it and pass the answer on.

        Args:
            again: whether an answer that says that the engine could not is held back.

        Returns:
            None when the client has its answer, whole or broken off; the relay that holds one back.

        Raises:
            EngineError: there is no answer, and nothing was sent to the client.
        """
        relay: Relay | None = None
        failed = True
        try:
            relay = self._send(await self._proxy.connection(self.replica), again)
            try:
                end = await relay.done
            except EngineError as error:
                if not error.unread:
                    raise
                self.attempt.connection = None
                fresh = await self._proxy.connection(self.replica, fresh=True)
                relay = self._send(fresh, again)
                end = await relay.done
            failed = end != "whole" or relay.status in (500, 502, 503, 504)
            if end == "broken":
                relay.break_off(self.replica.name)
            return relay if end == "held" else None
        except asyncio.CancelledError:
            failed = False
            raise
        finally:
            carrier = self.attempt.connection
            if carrier is not None and (relay is None or relay.unfinished):
                carrier.abort()
            self._proxy.over(self, relay, failed)

    def _send(self, connection: EngineConnection, again: bool) -> Relay:
        settings, asked = self._proxy.settings, self.asked
        body = asked.request.body
        cap = self.decision.load_cap
        if cap is not None and cap != self.view.load_cap:
            body = with_load_cap(asked, cap)
        marks = asked.id.encode(), self.replica.name.encode()
        relay = Relay(
            self._client,
            connection,
            self.attempt,
            marks,
            hold=again,
            idle=settings.idle_timeout,
            begun=lambda relay: self._proxy.begun(self, relay.first),
        )
        self.attempt.connection = connection
        self.attempt.heard = asyncio.get_running_loop().time()
        self.attempt.patience = settings.answer_timeout
        self.sent = time.monotonic()
        connection.send(self._proxy.heads(asked, self.replica, body), body, relay)
        return relay


def _give(held: Relay, client: ClientConnection) -> None:
    """Send the client an answer that was held back."""
    client.start(held.status, held.lines, len(held.body))
    client.feed(bytes(held.body))
    client.finish()


def new_id() -> str:
    """An id for a request and its decision."""
    return secrets.token_hex(8)
