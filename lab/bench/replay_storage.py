"""One trace through several engines' memory tiers over one bounded storage tier, with a policy for writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.key import ChunkKey, group_of
from kvstrata.tiering.planner import LoadPlan, RequestShape, junction, plan_load
from kvstrata.tiering.usage import describe_use
from kvstrata.tiers.admission import Admission
from kvstrata.tiers.admission_sights import Prefixes, prefixes_of
from kvstrata.tiers.memory import MemoryTier
from lab.bench.replay import Step
from lab.bench.traces import BLOCK

FULLEST, FULL_ENOUGH = 0.97, 0.95
"""Between which shares of the bound the storage is kept, as `docs/decisions/0009-bounded-root.md` says."""


@dataclass(slots=True)
class Result:
    """What one replay came to.

    Attributes:
        served: tokens that need not be computed, from memory or storage.
        from_storage: those of them that memory alone could not have served.
        written: bytes that were written to storage.
    """

    served: int = 0
    from_storage: int = 0
    written: int = 0


@dataclass(slots=True)
class Storage:
    """Chunks by last use, oldest first; a use is a write or a read.

    Attributes:
        bound: bytes, or None for no bound.
        held: bytes of each chunk.
        used: bytes of all.
        written: bytes that were ever written.
    """

    bound: int | None
    held: dict[ChunkKey, int] = field(default_factory=dict)
    used: int = 0
    written: int = 0

    def write(self, key: ChunkKey, nbytes: int) -> None:
        """Store a chunk; no bytes are written when it is there."""
        if key in self.held:
            return
        self.held[key] = nbytes
        self.used += nbytes
        self.written += nbytes
        if self.bound is not None and self.used > FULLEST * self.bound:
            for oldest in list(self.held):
                if self.used <= FULL_ENOUGH * self.bound:
                    break
                self.used -= self.held.pop(oldest)

    def read(self, key: ChunkKey) -> None:
        """A chunk was read: it is the newest now."""
        self.held[key] = self.held.pop(key)


class Replica:
    """One engine: a memory tier and a policy over a storage tier that others share.

    Args:
        model: its groups.
        arena_bytes: of its memory tier.
        storage: shared.
        admission: its policy.
        counted: where what it serves is counted.
    """

    def __init__(
        self,
        model: Sequence[GroupGeometry],
        arena_bytes: int,
        storage: Storage,
        admission: Admission,
        counted: Result,
    ) -> None:
        self._memory = MemoryTier(memoryview(bytearray(arena_bytes)), {g.group: g for g in model})
        self._sizes = {geometry.group: geometry.slot_bytes for geometry in model}
        self._storage = storage
        self._admission = admission
        self._counted = counted
        self._withheld: set[ChunkKey] = set()

    def serve(self, shape: RequestShape, chain: Prefixes) -> None:
        """Serve one request, and keep what it leaves.

        Args:
            shape: of the request.
            chain: its prefixes, block by block.
        """
        memory, storage = self._memory, self._storage
        alone = plan_load(shape, memory.probe, exact=True)
        plan = plan_load(
            shape, lambda keys: [memory.held(k) or k in storage.held for k in keys], exact=True
        )
        self._counted.served += plan.boundary
        self._counted.from_storage += plan.boundary - alone.boundary
        self._admission.saw(chain, BLOCK, max(plan.boundary, plan.shared))
        loaded = self._load(plan)
        use = describe_use(shape, plan.boundary, [junction(shape, plan.shared)])
        if use is not None:
            memory.used(use)
            order = use.order()
            new = [key for key in order if memory.entry(key) is None]
            new = [
                k for k, place in zip(new, memory.reserve_all(new, "device"), strict=True) if place
            ]
            memory.commit_all([(key, 0) for key in new])
            self._withheld.update(new)
        memory.unpin(loaded)
        self._withheld.difference_update(memory.take_evicted())
        self._write([key for group in shape.groups for key in group.keys if key in self._withheld])

    def _load(self, plan: LoadPlan) -> list[ChunkKey]:
        memory = self._memory
        wanted = plan.keys()
        loaded = [key for key in wanted if memory.held(key)]
        memory.pin(loaded)
        missing = [key for key in wanted if not memory.held(key)]
        for key in missing:
            self._storage.read(key)
            if memory.reserve(key, "filesystem") is not None:
                memory.commit(key)
                memory.pin([key])
                loaded.append(key)
        return loaded

    def _write(self, keys: list[ChunkKey]) -> None:
        if not keys:
            return
        for key, worth in zip(keys, self._admission.admits(prefixes_of(keys)), strict=True):
            if worth:
                self._storage.write(key, self._sizes[group_of(key)])
                self._withheld.discard(key)


def chains(trace: Sequence[Step]) -> list[Prefixes]:
    """Prefixes of each request, block by block: those of the group whose chunks are blocks."""
    return [prefixes_of(step.shape.groups[0].keys) for step in trace]


def replay(
    trace: Sequence[Step],
    model: Sequence[GroupGeometry],
    arena_bytes: int,
    storage_bytes: int | None,
    policy: Callable[[], Admission],
    replicas: int,
) -> Result:
    """Serve a trace.

    Args:
        trace: of requests; the first goes to the first replica, the second to the second, and so on.
        model: its groups; the first one's chunks are blocks.
        arena_bytes: of each replica's memory tier.
        storage_bytes: bound of the storage that all share; None for no bound.
        policy: makes each replica's policy.
        replicas: engines.
    """
    result = Result()
    storage = Storage(storage_bytes)
    engines = [Replica(model, arena_bytes, storage, policy(), result) for _ in range(replicas)]
    for number, (step, chain) in enumerate(zip(trace, chains(trace), strict=True)):
        engines[number % replicas].serve(step.shape, chain)
    result.written = storage.written
    return result
