"""What a router hears of an engine besides the events of its steps.

The engine's facts come with every answer of its publisher; the files that lay in the storage tier when the
engine started are told by a thread that looks through them once.
"""

import logging
import threading
import time
from collections.abc import Iterator

import msgspec
from vllm.distributed.kv_events import MEDIUM_STORAGE, BlockStored, KVEventBatch
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.kv_cache_utils import BlockHash, maybe_convert_block_hash
from vllm.v1.kv_offload.base import Locality

from kvstrata.chunks.key import ChunkKey, group_of, hash_of
from kvstrata.clock import Clock, MonotonicClock
from kvstrata.tiers.tier import Tier
from kvstrata.vllm_plugin.publisher import SnapshotPublisher
from kvstrata.wire.snapshot import EngineFacts, Place

logger = logging.getLogger("vllm.kvstrata")

MOST = 1 << 20
"""Chunks that are told of what lies in storage; the publisher keeps about 150 bytes of each."""
SLICE = 2048
"""Hashes in one event."""
WORK_SECONDS = 0.002
"""The thread works this long at a time, since the engine may wait for the interpreter meanwhile."""
REST = 4
"""Times as long as it worked it then rests."""
MOST_REST = 0.1
"""Seconds; where a slow file system took the time, and not the interpreter, there is no need to rest."""


class Announcer:
    """One engine as its publisher sees it (see `publisher.Engine`).

    Args:
        facts: of the engine, without what is known only later: the hash's seed and the storage.
        look_through: tell what storage holds at the start.
        clock: for the thread's pace.
    """

    def __init__(
        self, facts: EngineFacts, *, look_through: bool = True, clock: Clock | None = None
    ) -> None:
        self._facts = facts
        self._look_through = look_through
        self._clock = clock or MonotonicClock()
        self._publisher: SnapshotPublisher | None = None
        self._storage: Tier | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def facts(self) -> EngineFacts | None:
        """See `publisher.Engine`; None before the engine has drawn its hash's seed."""
        none_hash = getattr(kv_cache_utils, "NONE_HASH", None)
        if none_hash is None:
            return None
        return msgspec.structs.replace(self._facts, none_hash=none_hash, storage=self.owner)

    @property
    def owner(self) -> str | None:
        """Name of the storage in use; see `Tier.owner`."""
        return self._storage.owner if self._storage is not None else None

    @property
    def endpoints(self) -> tuple[str, str]:
        """Of events and of snapshots; empty where there is none."""
        if self._publisher is None:
            return "", ""
        return self._publisher.events_endpoint, self._publisher.snapshots_endpoint or ""

    def announced(self, key: ChunkKey) -> bool:
        """Whether followers of this engine may believe that storage holds a chunk; from any thread."""
        value = int.from_bytes(hash_of(key)[-8:], "big")
        place = Place(MEDIUM_STORAGE, group_of(key), self.owner)
        return self._publisher is not None and self._publisher.may_hold(place, value)

    def use(self, storage: Tier | None) -> None:
        """The engine reads and writes this storage from now on; an earlier one is told of no more."""
        self._storage = storage

    def connected(self, publisher: SnapshotPublisher) -> None:
        """See `publisher.Engine`; starts looking through what storage holds."""
        self._publisher = publisher
        if self._storage is not None and self._look_through:
            self._thread = threading.Thread(
                target=self._run,
                args=(publisher, self._storage),
                name="kvstrata-announcer",
                daemon=True,
            )
            self._thread.start()

    def stop(self) -> None:
        """Tell nothing more."""
        self._stopped.set()

    def _run(self, publisher: SnapshotPublisher, storage: Tier) -> None:
        try:
            begun = self._clock.now()
            count = self._tell(publisher, storage)
            logger.info(
                "kvstrata: told of %d chunks in %s within %.1f s",
                count,
                storage.owner,
                self._clock.now() - begun,
            )
        except Exception:  # boundary: a router that knows less is no reason to disturb an engine
            if not self._stopped.is_set():
                logger.exception("kvstrata: a router does not hear of all that storage holds")

    def _tell(self, publisher: SnapshotPublisher, storage: Tier) -> int:
        """Publish what storage holds, group by group; returns how many chunks."""
        waiting: dict[int, list[ChunkKey]] = {}
        count = 0
        for key in self._paced(storage.scan()):
            if self._storage is not storage:
                return count
            if count == MOST:
                logger.warning(
                    "kvstrata: %s holds more than %d chunks; a router is told of the first ones found, "
                    "and of others as they are used",
                    storage.owner,
                    MOST,
                )
                break
            count += 1
            keys = waiting.setdefault(group_of(key), [])
            keys.append(key)
            if len(keys) == SLICE:
                publisher.publish(_batch(waiting.pop(group_of(key)), storage.owner))
        for keys in waiting.values():
            if self._storage is storage and not self._stopped.is_set():
                publisher.publish(_batch(keys, storage.owner))
        return count

    def _paced(self, keys: Iterator[ChunkKey]) -> Iterator[ChunkKey]:
        """The keys until `stop`, with rests."""
        since = self._clock.now()
        for key in keys:
            yield key
            worked = self._clock.now() - since
            if worked >= WORK_SECONDS:
                if self._stopped.wait(min(worked * REST, MOST_REST)):
                    return
                since = self._clock.now()


def _batch(keys: list[ChunkKey], owner: str | None) -> KVEventBatch:
    """The event that chunks of one group lie in storage, in the form of vLLM's offloading events."""
    event = BlockStored(
        block_hashes=[maybe_convert_block_hash(BlockHash(hash_of(key))) for key in keys],
        parent_block_hash=None,
        token_ids=[],
        block_size=0,
        lora_id=None,
        medium=MEDIUM_STORAGE,
        lora_name=None,
        group_idx=group_of(keys[0]),
        locality=Locality.REMOTE.value,
        ownership=owner,
    )
    return KVEventBatch(ts=time.time(), events=[event])
