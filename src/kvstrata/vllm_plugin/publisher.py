"""vLLM's event publisher, which also keeps what the events add up to and answers for it.

Content and sequence number agree by construction: the thread that sends a batch applies it right after.
See `kvstrata.wire.snapshot` for the questions.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

import xxhash
import zmq
from vllm.distributed.kv_events import EventPublisherFactory, ZmqEventPublisher
from vllm.logger import init_logger
from vllm.utils.network_utils import get_ip

from kvstrata.wire.batches import WireError, decode_any
from kvstrata.wire.contents import Contents
from kvstrata.wire.snapshot import (
    ANSWER,
    END,
    VERSION,
    EngineFacts,
    Hashes,
    Header,
    Place,
    Question,
    encode,
)

logger = init_logger(__name__)

RECENT = 1024
"""Batches whose digests an answer gives; more than can be on their way to a subscriber that keeps up."""
PARTS = 10_000
"""Parts of an answer that are never dropped, whatever the ring's size: over a hundred million blocks."""
MAKING_SECONDS = 10.0
"""An engine that knows less of itself than it will is not answered for, but no longer than this."""
STORAGE = "STORAGE"
_QUESTIONS = {question.value: question for question in Question}
_LOOPBACK = ("127.", "localhost", "[::1]")


class Engine(Protocol):
    """What a publisher's engine says of itself, and hears of its publisher."""

    def facts(self) -> EngineFacts | None:
        """What a router has to know of the engine, as of now; called from the publisher's thread."""
        ...

    def connected(self, publisher: "SnapshotPublisher") -> None:
        """The publisher of this engine is there, and runs."""
        ...


_introduced: list[Engine] = []
"""The engine that was made last in this process and has no publisher yet; at most one."""


def introduce(engine: Engine) -> None:
    """Say who the next publisher of this process belongs to: vLLM makes it right after the connector."""
    _introduced[:] = [engine]


class Ring(deque[tuple[int, bytes]]):
    """vLLM's ring of batches for replay, and what all batches together come to.

    Used by the publisher's thread alone, except for `holds`.

    Attributes:
        sequence: of the last batch; -1 before the first.
        contents: what the engine holds.
        unreadable: batches that could not be read, so that the content lacks them.
    """

    def __init__(self, maxlen: int) -> None:
        super().__init__(maxlen=maxlen)
        self.sequence = -1
        self.contents = Contents()
        self.unreadable = 0

    def append(self, batch: tuple[int, bytes]) -> None:
        """A batch was sent."""
        super().append(batch)
        self.sequence, payload = batch
        try:
            self.contents.apply(decode_any(payload))
        except WireError as error:
            self._unreadable(str(error))
        except Exception:  # boundary: whatever a batch holds, the publisher goes on
            logger.exception("kvstrata: a batch of events could not be followed")
            self._unreadable("see above")

    def digests(self) -> Iterator[bytes]:
        """XXH3-128 of the last batches, oldest first."""
        last = list(islice(reversed(self), RECENT))
        return (xxhash.xxh3_128_digest(payload) for _, payload in reversed(last))

    def _unreadable(self, why: str) -> None:
        self.unreadable += 1
        if self.unreadable == 1:
            logger.warning(
                "kvstrata: batch %d of KV events cannot be read (%s); snapshots lack what it says",
                self.sequence,
                why,
            )


class SnapshotPublisher(ZmqEventPublisher):
    """vLLM's ZMQ publisher, made with the same arguments.

    Without a `replay_endpoint` it chooses one beside `endpoint`.

    Attributes:
        events_endpoint: where events are published, as bound.
        snapshots_endpoint: where replays and snapshots are asked for, as bound; None where no endpoint
            could be had.
    """

    _replay_endpoint: str | None

    def __init__(
        self, data_parallel_rank: int, *args: Any, buffer_steps: int = 10_000, **kwargs: Any
    ) -> None:
        self._epoch = os.urandom(16)
        self._made = time.monotonic() + MAKING_SECONDS
        self._ring = Ring(buffer_steps)
        self._engine = _introduced.pop() if _introduced else None
        super().__init__(data_parallel_rank, *args, buffer_steps=buffer_steps, **kwargs)
        # Nothing can have been published yet: nobody else has this object.
        self._buffer = self._ring
        if self._engine is not None:
            self._engine.connected(self)

    @property
    def events_endpoint(self) -> str:
        """See above."""
        return str(self._endpoint)

    @property
    def snapshots_endpoint(self) -> str | None:
        """See above."""
        return self._replay_endpoint

    def may_hold(self, place: Place, value: int) -> bool:
        """Whether followers may believe that a block is there; yes in doubt. From any thread.

        Args:
            place: where.
            value: low 64 bits of the block's hash.
        """
        if self._event_queue.unfinished_tasks:
            return True  # what it is about is not known yet
        return value in self._ring.contents.held.get(place, ())

    def _socket_setup(self) -> None:
        """Bind vLLM's sockets; ours has room for a whole replay, which vLLM's gets only from 0.33 on."""
        wanted = self._replay_endpoint
        self._replay_endpoint = None  # so that vLLM binds none
        super()._socket_setup()
        replay = self._ctx.socket(zmq.ROUTER)
        # A reader says only now and then how far it has read, so twice an answer may seem to be unread.
        replay.setsockopt(zmq.SNDHWM, 2 * (max(self._ring.maxlen or 0, PARTS) + 1))
        try:
            if wanted is None:
                self._replay_endpoint = _bind(replay, beside(str(self._endpoint)))
            else:
                theirs = getattr(ZmqEventPublisher, "_bind", _bind)  # since 0.31
                self._replay_endpoint = theirs(replay, wanted)
        except (zmq.ZMQError, OSError, ValueError) as error:
            replay.close(linger=0)
            if wanted is not None:
                raise
            logger.warning(
                "kvstrata: no endpoint for snapshots beside %s (%s); give replay_endpoint in "
                "--kv-events-config",
                self._endpoint,
                error,
            )
            return
        self._replay = replay

    def _service_replay(self) -> None:
        """Answer a question; serve anything else as vLLM does."""
        assert self._replay is not None
        frames = self._replay.recv_multipart()
        if len(frames) == 3 and frames[2] in _QUESTIONS:
            self._answer(frames[0], _QUESTIONS[frames[2]])
            return
        # vLLM's own method takes the request from the socket.
        socket, self._replay = self._replay, _Unread(self._replay, frames)
        try:
            super()._service_replay()
        finally:
            self._replay = socket

    def _answer(self, client: bytes, question: Question) -> None:
        assert self._replay is not None
        facts = self._engine.facts() if self._engine is not None else None
        if self._engine is not None and facts is None and time.monotonic() < self._made:
            return  # vLLM draws its hash seed a moment later; whoever asked asks again
        header = Header(
            VERSION,
            self._epoch,
            self._ring.sequence,
            time.time(),
            self._dp_rank,
            tuple(self._ring.digests()) if question is Question.SNAPSHOT else (),
            facts,
        )
        held: Iterable[tuple[Place, Hashes, Hashes]] = ()
        if question is Question.SNAPSHOT:
            held = self._held(facts)
        for part in encode(header, held):
            self._replay.send_multipart((client, b"", self._topic_bytes, ANSWER, part))
        self._replay.send_multipart((client, b"", b"", END, b""))

    def _held(self, facts: EngineFacts | None) -> Iterator[tuple[Place, Hashes, Hashes]]:
        """The content, without storage that the engine has turned away from after a reset."""
        contents = self._ring.contents
        if facts is not None:
            for place in list(contents.held):
                if place.medium == STORAGE and place.owner != facts.storage:
                    del contents.held[place]
        return contents.parts()


class _Unread:
    """A socket whose next message has been received already."""

    def __init__(self, socket: Any, frames: list[bytes]) -> None:
        self._frames = frames
        self.send_multipart: Callable[..., Any] = socket.send_multipart

    def recv_multipart(self) -> list[bytes]:
        return self._frames


def beside(endpoint: str) -> str:
    """An endpoint for snapshots beside one for events: as widely reachable, and no more.

    Args:
        endpoint: of the events, as vLLM binds or connects it.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme != "tcp":
        return f"{endpoint}.replay"
    host = address.rpartition(":")[0]
    if host.startswith(_LOOPBACK):
        return "tcp://[::1]:0" if host == "[::1]" else "tcp://127.0.0.1:0"
    if host in ("*", "0.0.0.0", "[::]", "::"):
        return "tcp://[::]:0" if ":" in host else "tcp://*:0"
    own = get_ip()  # the events go out to somebody who collects them
    return f"tcp://[{own}]:0" if ":" in own else f"tcp://{own}:0"


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind; returns the endpoint, with the port that was chosen in place of 0."""
    if endpoint.startswith("tcp://["):
        socket.setsockopt(zmq.IPV6, 1)
    socket.bind(endpoint)
    if not (endpoint.startswith("tcp://") and endpoint.endswith(":0")):
        return endpoint
    port = socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
    return f"{endpoint[:-1]}{port}"


def register_publisher() -> None:
    """Put our publisher in the place of vLLM's, if vLLM's is the one that it was made for. Repeatable."""
    registry = getattr(EventPublisherFactory, "_registry", {})
    if registry.get("zmq") is SnapshotPublisher:
        return
    needed = ("_socket_setup", "_service_replay")
    if registry.get("zmq") is not ZmqEventPublisher or not all(
        hasattr(ZmqEventPublisher, name) for name in needed
    ):
        logger.warning(
            "kvstrata: this vLLM's publisher of KV events is not the one that kvstrata knows; events are "
            "published as vLLM does it, and a router gets no snapshots"
        )
        return
    registry["zmq"] = SnapshotPublisher
