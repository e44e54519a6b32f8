"""The scheduler half: vLLM's offloading manager over our tiered cache."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadingManager,
    PrepareStoreOutput,
    RequestOffloadingContext,
)

from kvstrata import __version__
from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import GROUP_BYTES, ChunkKey, make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.tenants import tenant_mark
from kvstrata.clock import Clock, MonotonicClock
from kvstrata.doctor.findings import Finding
from kvstrata.options import Options
from kvstrata.sizes import format_size
from kvstrata.tiering.admitting import Keep
from kvstrata.tiering.cache import TieredCache
from kvstrata.tiering.planner import RequestShape
from kvstrata.tiering.runner import Runner
from kvstrata.tiering.writes import WITHIN_SECONDS
from kvstrata.tiers.admission import ADMISSIONS
from kvstrata.tiers.arena import Arena
from kvstrata.tiers.eviction_choice import POLICIES
from kvstrata.tiers.memory import MemoryTier
from kvstrata.tiers.tier import Tier
from kvstrata.vllm_plugin.announcer import Announcer
from kvstrata.vllm_plugin.copies import GroupSlots
from kvstrata.vllm_plugin.stats import to_vllm
from kvstrata.vllm_plugin.storage import io_threads, open_storage
from kvstrata.vllm_plugin.torn import StoreCheck
from kvstrata.vllm_plugin.turns import Turns
from kvstrata.vllm_plugin.worker import ArenaSlots

logger = logging.getLogger("vllm.kvstrata")

DRAIN_SECONDS = WITHIN_SECONDS
"""How long a graceful stop waits for chunks that are still to be written."""
MEASURE_SECONDS = 0.25
"""Gauges are measured at most this often while anything moves."""
IDLE_SECONDS = 0.003
"""An idle engine that waits for storage sleeps this long a step; without it, an engine that runs in the
caller's process would spin and keep the interpreter from the I/O threads."""
_HIT, _MISS = LookupResult.HIT, LookupResult.MISS
MEDIA = {"memory": Medium.CPU, "filesystem": Medium.STORAGE}


class Tenant(NamedTuple):
    """Whose request it is: what the connector says in a request's context.

    Attributes:
        name: see `tenant_name`.
    """

    name: bytes


class KVStrataManager(OffloadingManager):
    """Answers vLLM's scheduler; all answers come from memory at once.

    Attributes:
        turns: what resets lead to.
        withheld: whether nothing is to be stored.

    Args:
        options: the engine's.
        clock: for deadlines.
    """

    turns: Turns

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        self._options = options
        self._clock = clock or MonotonicClock()
        self._counters = m.Metrics()
        self._geometries: dict[int, GroupGeometry] = {}
        self._position: dict[int, int] = {}
        self._cache: TieredCache | None = None
        self._granted: Mapping[str, frozenset[ChunkKey]] = {}
        self._runner: Runner | None = None
        self._arena: Arena | None = None
        self._namespace: Namespace | None = None
        self._fingerprint = b""
        self._announcer: Announcer | None = None
        self._introduced = False
        self._check = StoreCheck()
        self._measured = -MEASURE_SECONDS
        self._was_busy = True
        self.withheld = False

    def start(
        self,
        arena: Arena,
        geometries: Sequence[GroupGeometry],
        namespace: Namespace,
        announcer: Announcer | None = None,
    ) -> None:
        """Begin to serve. Called once, when the engine's groups are known.

        Args:
            arena: attached by this process.
            geometries: in vLLM's order of offloaded groups.
            namespace: of this engine.
            announcer: of this engine, where its events are published.

        Raises:
            ConfigError: the arena is too small, or the path cannot be used.
        """
        self._geometries = {geometry.group: geometry for geometry in geometries}
        self._position = {geometry.group: index for index, geometry in enumerate(geometries)}
        self._arena = arena
        self._namespace = namespace
        self._fingerprint = namespace.fingerprint
        self.turns = Turns(namespace)
        self._announcer = announcer
        memory = MemoryTier(arena.data, self._geometries, POLICIES[self._options.eviction])
        storage = self._open_storage(namespace)
        if announcer is not None:
            announcer.use(storage)
        if storage is not None:
            threads = io_threads(self._options)
            self._runner = Runner(threads, self._clock, self._options.read_deadline)
        self._cache = TieredCache(
            memory,
            storage,
            self._geometries,
            self._runner,
            self._clock,
            read_deadline=self._options.read_deadline,
            store_queue=min(self._options.store_queue, arena.data_bytes // 2),
            counters=self._counters,
            announced=announcer.announced if announcer is not None else None,
            admission=ADMISSIONS[self._options.admission](),
        )
        self._granted = self._cache.loads.granted
        logger.info(
            "kvstrata: %s of host memory, %s; groups: %s",
            format_size(arena.data_bytes),
            f"files in {self._options.path}/{namespace.directory_name}" if storage else "no files",
            ", ".join(
                f"{g.group}: {g.kind.value}, {g.tokens_per_chunk} tokens in {g.payload_bytes} bytes"
                for g in geometries
            ),
        )

    @property
    def options(self) -> Options:
        """The engine's options."""
        return self._options

    @property
    def cache(self) -> TieredCache:
        """The tiered cache; only after `start`."""
        assert self._cache is not None
        return self._cache

    def publish(self, findings: Iterable[Finding]) -> None:
        """Let the engine's metrics say what was found at its start."""
        for finding in findings:
            self._counters.level(m.FINDING, 1, (finding.code, finding.severity.value))

    def _introduce(self, namespace: Namespace, value: float) -> None:
        """Say (1) that a namespace is in use, or (0) that it no longer is."""
        said = str(namespace.facts.get("hash_seed", "default"))
        seed = "set" if said.startswith("=") else said.partition(" ")[0]
        events, snapshots = self._announcer.endpoints if self._announcer is not None else ("", "")
        labels = (namespace.directory_name, seed, __version__, events, snapshots)
        self._counters.level(m.INFO, value, (*labels, self.cache.storage_owner or ""))

    # Loads.

    def poll_load(self, request: str, shape: RequestShape) -> bool:
        """See `Promotions.poll`."""
        return self.cache.loads.poll(request, shape)

    def covers(self, request: str, boundary: int) -> bool:
        """See `Promotions.covers`."""
        return self.cache.loads.covers(request, boundary)

    def junction(self, request: str) -> int:
        """See `Promotions.junction`."""
        return self.cache.loads.junction(request)

    def count_junction(self, reason: str) -> None:
        """A request keeps windowed groups at one more boundary than vLLM would."""
        self._counters.count(m.JUNCTIONS, 1, (reason,))

    def wait(self) -> None:
        """Give I/O threads a moment, while the engine has nothing else to do; see `IDLE_SECONDS`."""
        if self._runner is not None and not self.cache.loads.reserving:
            self._runner.wait(IDLE_SECONDS)

    def lookup(self, key: ChunkKey, req_context: Any) -> LookupResult:
        """HIT when the chunk is in memory, verified; else MISS. Never pending: see `poll_load`."""
        request = req_context.req_id
        if key in self._granted.get(request, ()):
            return _HIT
        return _HIT if self.cache.loads.readable(request, key) else _MISS

    def prepare_load(self, keys: Collection[ChunkKey], req_context: Any) -> LoadStoreSpec:
        """Pin chunks for the device; `complete_load` ends it."""
        ordered = list(keys)
        offsets = self.cache.pin_for_device(ordered)
        return self._slots(zip(ordered, offsets, strict=True))

    def complete_load(self, keys: Collection[ChunkKey], req_context: Any) -> None:
        """The device has them."""
        positions = getattr(req_context, "_offload_key_positions", {})
        self.cache.device_read(sorted(keys, key=lambda key: positions.get(key, 0)))

    def get_load_source(self, key: ChunkKey, req_context: Any) -> Any:
        """vLLM's name for the tier that a chunk came from for this request."""
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        in_memory = self.cache.loads.origin(req_context.req_id, key) == "memory"
        return CacheHitSource.HOST if in_memory else CacheHitSource.DISK

    def scheduled(self, request: str, computed: int, loaded: int, tokens: int) -> None:
        """The request got its blocks: count where its prompt comes from, and let its load go.

        Args:
            request: its id.
            computed: tokens from the device's own cache.
            loaded: tokens that the accepted load brings.
            tokens: of the request.
        """
        stored = self.cache.loads.stored_tokens(request, computed, loaded) if loaded else 0
        if self.cache.loads.junction(request):
            self.count_junction("shared")
        for tier, count in (
            ("device", computed),
            ("memory", loaded - stored),
            ("filesystem", stored),
            ("computed", tokens - computed - loaded),
        ):
            if count > 0:
                self._counters.count(m.TOKENS, count, (tier,))
        self.cache.loads.drop(request)

    # Stores.

    def prepare_store(
        self, keys: Collection[ChunkKey], req_context: Any
    ) -> PrepareStoreOutput | None:
        """Reserve places for new chunks. What is known already, or finds no place, is left out."""
        tenant = req_context.get_state(Tenant)
        mark = tenant_mark(tenant.name, self._fingerprint) if tenant is not None else None
        keep = req_context.get_state(Keep) or Keep.EVERYWHERE
        accepted = self.cache.prepare_store(keys, mark, keep) if not self.withheld else []
        return PrepareStoreOutput(
            keys_to_store=[key for key, _ in accepted],
            store_spec=self._slots(accepted),
            evicted_keys=[],
        )

    def check_store(
        self,
        sizes: Sequence[int],
        indices: Sequence[int],
        target: ArenaSlots,
        keys: Iterable[ChunkKey],
    ) -> None:
        """See `StoreCheck`."""
        self._check.check(sizes, indices, target, keys, self._position, self.cache.offset)

    def complete_store(
        self, keys: Collection[ChunkKey], req_context: Any, success: bool = True
    ) -> None:
        """The device's bytes are in their places: readable from now on, and queued for storage."""
        torn = self._check.torn(keys, success)
        self.cache.complete_store(keys, self._check.first_blocks, torn)
        self._check.ended(keys)

    # Housekeeping.

    def touch(self, keys: Collection[ChunkKey], req_context: Any) -> None:
        """See `TieredCache.touch`."""
        self.cache.touch(list(keys))

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        """Every request is offloaded chunk by chunk."""
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        """See `TieredCache.ended`."""
        self.cache.ended(req_context.req_id)

    def on_schedule_end(self, context: Any) -> None:
        """Once a step."""
        self.cache.tick()

    def has_pending_work(self) -> bool:
        """Keep the engine stepping while files are read or written, so that their end is noticed."""
        return self.cache.busy()

    def take_events(self) -> Iterable[OffloadingEvent]:
        """What became readable, or went, in each tier."""
        for event in self.cache.take_events():
            yield OffloadingEvent(
                keys=list(event.keys),
                medium=MEDIA[event.tier],
                removed=event.removed,
                locality=None if event.owner is None else Locality.REMOTE,
                ownership=event.owner,
            )

    def reset_cache(self) -> None:
        """Forget everything: vLLM's weights may have changed.

        Files from before stay for other engines; this one turns to another namespace, see `Turns`.
        """
        assert self._namespace is not None
        namespace = self.turns.next()
        storage = self._open_storage(namespace)
        self._introduce(self._namespace, 0)
        self._namespace = namespace
        self._fingerprint = namespace.fingerprint
        self.cache.reset(storage)
        if self._announcer is not None:
            self._announcer.use(storage)
        self._introduce(namespace, 1)
        self._check.clear()

    def get_stats(self) -> Any:
        """Counters since the last call, for vLLM's Prometheus endpoint."""
        if not self._introduced and self._namespace is not None:
            self._introduced = True  # only now: the publisher is made after this manager
            self._introduce(self._namespace, 1)
        busy = self.cache.busy()
        now = self._clock.now()
        if now - self._measured >= MEASURE_SECONDS or (self._was_busy and not busy):
            self._measured = now
            self.cache.measure()
        self._was_busy = busy
        return to_vllm(self._counters.take())

    def shutdown(self) -> None:
        """Write what is queued, for a limited time, and let go of the arena."""
        if self._announcer is not None:
            self._announcer.stop()
        if self._runner is not None and not self._runner.close(DRAIN_SECONDS):
            logger.warning(
                "kvstrata: stopped after %g s with chunks that were not written", DRAIN_SECONDS
            )
        if self._cache is not None:
            self._cache.close()
        if self._arena is not None:
            self._arena.seal()

    def _open_storage(self, namespace: Namespace) -> Tier | None:
        return open_storage(
            self._options,
            namespace,
            self._geometries,
            self._clock,
            self._counters,
            followed=self._announcer is not None,
        )

    def _slots(self, chunks: Iterable[tuple[ChunkKey, int]]) -> ArenaSlots:
        """The arena side of a transfer: offsets by group, in vLLM's order of groups."""
        offsets: dict[bytes, list[int]] = {make_key(b"", group): [] for group in self._geometries}
        for key, offset in chunks:
            offsets[key[-GROUP_BYTES:]].append(offset)
        groups = zip(self._geometries.values(), offsets.values(), strict=True)
        return ArenaSlots([_group_slots(geometry, found) for geometry, found in groups])


def _group_slots(geometry: GroupGeometry, offsets: Sequence[int]) -> GroupSlots:
    ranks = range(len(geometry.rank_block_bytes))
    return GroupSlots(
        np.array(offsets, dtype=np.int64),
        geometry.blocks_per_chunk,
        geometry.block_bytes,
        tuple(geometry.rank_offset(rank) for rank in ranks),
    )
