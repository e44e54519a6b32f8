"""The router's life: listening, looking after waits, reading its settings again, and its end."""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvloop

from kvstrata.compiled import Kept, kept
from kvstrata.errors import ConfigError
from kvstrata.router.application import Application
from kvstrata.router.chooser import Chooser, PolicyChooser
from kvstrata.router.config import RouterConfig, only_at_start
from kvstrata.router.downstream import ClientConnection
from kvstrata.router.fleet_chooser import BY_PROMPT, FleetChooser, follow
from kvstrata.router.preparing import MODULES, bring
from kvstrata.router.state_file import Keeping, StateFile
from kvstrata.routing.policies import make_policy

log = logging.getLogger(__name__)

_SWEEP = 0.5
_SETTLE = 0.2
_BACKLOG = 2048
_COLLECT = (10_000, 20, 10)
"""Thresholds of Python's collector of cycles, of which a request leaves none behind."""


class Router:
    """One router. `start` it, wait for `stopped`, and `drain` it.

    Args:
        config: the settings.
        read: reads them again, on request; raises ConfigError.
        chooser: decides where requests go; the policy that the settings name, if None.
    """

    def __init__(
        self,
        config: RouterConfig,
        read: Callable[[], RouterConfig] | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        self.config = config
        self._read = read
        self._server: asyncio.Server | None = None
        self._listening: socket.socket | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.stopped = asyncio.Event()
        self._follower: FleetChooser | None = None
        self._preparing: asyncio.Task[None] | None = None
        if chooser is None and config.policy in BY_PROMPT:
            policy = make_policy(config.policy, config.profile)
            chooser = self._follower = follow(policy, config.tokenizer)
        chooser = chooser or PolicyChooser(make_policy(config.policy, config.profile))
        self.application = Application(lambda: self.config, chooser, self.reload)
        self._keeping: Keeping | None = None
        if config.state is not None:
            self._keeping = Keeping(StateFile(Path(config.state)), chooser)

    @property
    def port(self) -> int:
        """That it listens at."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen. Raises ConfigError when that cannot be."""
        loop = asyncio.get_running_loop()
        if self._follower is not None:
            self._preparing = loop.create_task(bring(self._follower.start))
            if kept(MODULES) is Kept.ALL:
                await self._preparing
        if self._keeping is not None:
            await self._keeping.begin()
        clients = self.application.clients
        for replica in self.config.replica:
            self.application.replicas.add(replica)
        try:
            listening = _listen(self.config)
        except OSError as error:
            await self.application.replicas.close()
            where = f"{self.config.host}:{self.config.port}"
            raise ConfigError(f"cannot listen at {where}: {error.strerror or error}") from None
        self._listening = listening.dup()
        self._server = await loop.create_server(
            lambda: ClientConnection(clients), sock=listening, backlog=_BACKLOG
        )
        self._sweeping = loop.create_task(self._sweep())

    def reload(self) -> list[str]:
        """Read the settings again and follow them. Returns notes for people; raises ConfigError."""
        if self._read is None:
            return ["The router was started without a file to read again."]
        new = self._read()
        fixed = only_at_start(self.config, new)
        self.config = new
        self.application.replicas.replace(new.replica)
        self.application.line.wake()
        return [f"{name} takes effect when the router is started again" for name in fixed]

    def when_prepared(self, call: Callable[[], None]) -> None:
        """Call it once all that requests need is loaded: now, or later where it is compiled first."""
        if self._preparing is None or self._preparing.done():
            call()
        else:
            self._preparing.add_done_callback(lambda _: call())

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP)
            try:
                self.application.clients.sweep(loop.time())
                self.application.replicas.sweep(loop.time())
            except Exception:  # boundary: one connection's bug must not stop all time-outs
                log.exception("looking after time-outs failed")

    async def drain(self) -> None:
        """Take nothing new, finish what there is, and stop; every step is bounded.

        For a moment new connections are still taken, so that whoever sends requests here can see from
        `/health` that this ends. Every answer from then on closes its connection.
        """
        clients, config = self.application.clients, self.config
        clients.draining = True
        await asyncio.sleep(config.drain_grace)
        await self._take_last()
        # A connection that was taken just now may have a request that is not read yet.
        await asyncio.sleep(_SETTLE)
        clients.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(config.drain_timeout):
                while clients.connections:
                    await asyncio.sleep(0.02)
        await self.stop()

    async def _take_last(self) -> None:
        """Listen no more, and take the connections that wait to be taken.

        To close a listening socket resets those. A second handle keeps it open until none is left.
        """
        taken = []
        if self._server is not None:
            self._server.close()
        if self._listening is not None:
            self._listening.setblocking(False)
            with self._listening, contextlib.suppress(OSError):
                while True:
                    taken.append(self._listening.accept()[0])
            self._listening = None
        loop = asyncio.get_running_loop()
        for one in taken:
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(
                    lambda: ClientConnection(self.application.clients), one
                )

    async def stop(self) -> None:
        """Stop now."""
        if self._server is not None:
            self._server.close()
        if self._listening is not None:
            self._listening.close()
        if left := len(self.application.clients.connections):
            log.warning("%d connections are cut off at the end", left)
        self.application.clients.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self.application.replicas.close()
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait([self._preparing])
        if self._keeping is not None:
            await self._keeping.end()
        if self._follower is not None:
            self._follower.close()
        await asyncio.sleep(0)
        self.stopped.set()


def _listen(config: RouterConfig) -> socket.socket:
    """A socket that listens. Raises OSError."""
    found = socket.getaddrinfo(
        config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, _, _, _, address = found[0]
    return socket.create_server((address[0], config.port), family=family, backlog=_BACKLOG)


def _leave_alone() -> None:
    """Have what is there by now, mostly code, not looked through by the collector of cycles again.

    A sixth of a short request's time, and pauses of some ten milliseconds, go into that otherwise.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)


def _reload(router: Router) -> None:
    try:
        for note in router.reload():
            log.warning("%s", note)
    except ConfigError as error:
        log.error("the settings are not changed: %s", error)


async def _serve(router: Router, ready: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    await router.start()
    router.when_prepared(_leave_alone)
    ending = asyncio.Event()
    again = asyncio.Event()

    def end() -> None:
        (again if ending.is_set() else ending).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, _reload, router)
    ready(router.port)
    await ending.wait()
    log.info("ending: requests are finished first; a second signal ends at once")
    draining = loop.create_task(router.drain())
    at_once = loop.create_task(again.wait())
    await asyncio.wait([draining, at_once], return_when=asyncio.FIRST_COMPLETED)
    at_once.cancel()
    if not draining.done():
        draining.cancel()
        await router.stop()


def run(
    config: RouterConfig,
    read: Callable[[], RouterConfig] | None,
    ready: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what there is. SIGHUP reads the settings again.

    Args:
        config: the settings.
        read: reads them again.
        ready: called with the port once it is open.

    Raises:
        ConfigError: the address cannot be listened at, or the policy is not known.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * config.max_connections + 256
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))

    async def serve() -> None:
        await _serve(Router(config, read), ready)

    uvloop.run(serve())
