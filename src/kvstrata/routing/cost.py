"""Seconds to the first token of one request on one replica: a price for each way to resume.

**Prefill is not linear.** The token at position p looks back at p tokens, so what is left of a prompt of N
tokens behind B reusable ones costs

    per_token * (N - B)  +  per_pair * (N² - B²) / 2

where (N² - B²) / 2 = (N - B) * (B + (N - B) / 2): the new tokens times what they see on average. Layers with
a window or a state have a bounded past, which belongs to the first part.

**A load** pays each tier's latency once and its bytes at the tier's bandwidth. What comes from storage passes
through host memory, so it pays both. Reads of one replica share its way to storage: a read waits for those
that were begun before it.

**Three ways are enough.** Let B move between two reaches. The bytes of a load grow at most linearly with B,
what it saves grows with B² beside the linear part: as a function of B the price is concave, so that it is
least at an end. Loading half of what a tier has is never better than all of it or nothing, and the choice
is between the device alone, memory too, and storage too.

**Computing costs others too, loading does not.** A way is chosen by seconds in which those of computation
count `1 + crowd` times, where `crowd` is what a second of it adds to the waits of those behind.

**What overlaps.** A load needs no computation, and runs while others compute. But the engine looks for one
only when a step has tokens left to give, which behind a queue of prefills is when that queue is done. So
wait, load and prefill are added up, and `Profile.overlap` says which share of storage reads is hidden by the
wait nevertheless.
"""

import math

import msgspec

from kvstrata.errors import ConfigError
from kvstrata.routing.decision import Reach, Reuse, Terms

LEARNED = (
    "overhead",
    "compute",
    "attention",
    "memory_latency",
    "memory_transfer",
    "storage_latency",
    "storage_transfer",
    "wait",
)
"""Terms that have a factor, in the order of every vector of factors. Names as in `Terms`."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stated of a replica before anything is known. Round figures are good enough.

    Attributes:
        overhead_seconds: what a request costs whose prompt is all on the device.
        prefill_tokens_per_s: of short prompts.
        attention_doubles_at: tokens of a prompt that takes twice as long as its length says.
        memory_latency_seconds: of a load from host memory, whatever its size.
        memory_bytes_per_s: from host memory to the device.
        storage_latency_seconds: of a load from storage, whatever its size.
        storage_bytes_per_s: from storage to host memory, by all threads of one engine together.
        overlap: share of storage reads that goes on while the request waits for others, 0 to 1.
    """

    overhead_seconds: float = 0.02
    prefill_tokens_per_s: float = 10_000.0
    attention_doubles_at: float = 65_536.0
    memory_latency_seconds: float = 0.002
    memory_bytes_per_s: float = 10e9
    storage_latency_seconds: float = 0.005
    storage_bytes_per_s: float = 2e9
    overlap: float = 0.0

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if field == "overlap":
                if not 0 <= value <= 1:
                    raise ConfigError(f"profile: overlap is a share from 0 to 1, not {value}")
            elif not (math.isfinite(value) and value > 0):
                raise ConfigError(f"profile: {field} must be above 0, not {value}")

    def rates(self) -> tuple[float, ...]:
        """Seconds per unit, in the order of `LEARNED`: request, token, pair, load, byte, load, byte, s."""
        per_token = 1 / self.prefill_tokens_per_s
        return (
            self.overhead_seconds,
            per_token,
            2 * per_token / self.attention_doubles_at,
            self.memory_latency_seconds,
            1 / self.memory_bytes_per_s,
            self.storage_latency_seconds,
            1 / self.storage_bytes_per_s,
            1.0,
        )


class Work(msgspec.Struct, frozen=True, gc=False):
    """What a request makes a replica do.

    Attributes:
        left: tokens to compute, at least 1.
        before: tokens that are there before them.
        memory_bytes: loaded from memory alone.
        storage_bytes: loaded from storage, through memory.
        wait: seconds of computation queued before it.
        overlapped: seconds of storage reads that the wait hides, at most.
    """

    left: int
    before: int
    memory_bytes: int = 0
    storage_bytes: int = 0
    wait: float = 0.0
    overlapped: float = 0.0

    def units(self) -> tuple[float, ...]:
        """How much of each of `LEARNED` this is: times the rates, it is seconds."""
        moved = self.memory_bytes + self.storage_bytes
        return (
            1.0,
            float(self.left),
            self.left * (self.before + self.left / 2),
            1.0 if moved else 0.0,
            float(moved),
            1.0 if self.storage_bytes else 0.0,
            float(self.storage_bytes),
            self.wait,
        )


class Situation(msgspec.Struct, frozen=True, gc=False):
    """What a replica is like at the moment, for any request.

    Attributes:
        rates: seconds per unit, in the order of `LEARNED`.
        crowd: seconds that others wait for each second of computation.
        read_wait: seconds for which storage is busy with other reads when this request could begin its own.
        overlapped: seconds of storage reads that the request's wait hides.
    """

    rates: tuple[float, ...]
    crowd: float = 0.0
    read_wait: float = 0.0
    overlapped: float = 0.0

    def seconds(self, tokens: int, boundary: int) -> float:
        """Computation of `tokens` of which `boundary` are there, as it counts in a choice."""
        return (1 + self.crowd) * device_seconds(self.rates, tokens, boundary)


class Way(msgspec.Struct, frozen=True, gc=False):
    """One way to resume.

    Attributes:
        seconds: what ways of one replica are compared by.
        source: last tier that it needs, or "none".
        tokens: the boundary.
        memory_bytes, storage_bytes: to be loaded.
        load_cap: `max_load_tokens` that makes the engine take it; None where it does so by itself.
    """

    seconds: float
    source: str
    tokens: int
    memory_bytes: int = 0
    storage_bytes: int = 0
    load_cap: int | None = None


def device_seconds(rates: tuple[float, ...], tokens: int, boundary: int) -> float:
    """Seconds of computation, without wait and overhead, of `tokens` with `boundary` of them there."""
    left = tokens - boundary
    return left * (rates[1] + rates[2] * (boundary + left / 2))


def best_way(
    situation: Situation,
    reuse: Reuse | None,
    tokens: int,
    on_device: int,
    load_cap: int | None = None,
) -> Way:
    """The quickest way for a request on a replica.

    Args:
        situation: of the replica.
        reuse: what its index says; what that says beyond the prompt's last token but one counts as ending
            there, because one token is always computed.
        tokens: of the prompt, at least 1.
        on_device: tokens believed to be on the device: the index's, or more that were just sent there.
        load_cap: the client's own bound on tokens to load.
    """
    most = tokens - 1
    device = on_device if on_device < most else most
    source = "device" if device > 0 else "none"
    if reuse is None or reuse.storage.tokens <= device:
        return Way(situation.seconds(tokens, device), source, device, 0, 0, load_cap)
    limit = most if load_cap is None else min(most, device + load_cap)
    longest = min(reuse.storage.tokens, limit)
    best = Way(situation.seconds(tokens, device), source, device)
    for source, reach in (("memory", reuse.memory), ("storage", reuse.storage)):
        if reach.tokens > device and limit > device:
            way = _load(situation, source, reach, tokens, device, reuse.device.tokens, limit)
            if way.seconds < best.seconds:
                best = way
    # Without a cap the engine takes all that the tiers have.
    cap = best.tokens - device if best.tokens < longest else load_cap
    return best if cap is None else msgspec.structs.replace(best, load_cap=cap)


def _load(
    situation: Situation,
    source: str,
    reach: Reach,
    tokens: int,
    device: int,
    indexed: int,
    limit: int,
) -> Way:
    """Resume at a reach, or as near to it as `limit` lets."""
    boundary = reach.tokens
    memory_bytes, storage_bytes = reach.memory_bytes, reach.storage_bytes
    if boundary > limit or device > indexed:
        # Bytes are known for the whole way from the index's own boundary; of a part of it, a part.
        end = min(boundary, limit)
        share = (end - device) / (boundary - indexed)
        memory_bytes, storage_bytes = int(memory_bytes * share), int(storage_bytes * share)
        boundary = end
    rates = situation.rates
    seconds = situation.seconds(tokens, boundary)
    moved = memory_bytes + storage_bytes
    if moved:
        seconds += rates[3] + rates[4] * moved
    if storage_bytes:
        reads = rates[5] + rates[6] * storage_bytes
        seconds += situation.read_wait + max(reads - situation.overlapped, 0.0)
    return Way(seconds, source, boundary, memory_bytes, storage_bytes)


def terms_of(
    rates: tuple[float, ...],
    work: Work,
    *,
    doubt: float = 0.0,
    fault: float = 0.0,
    burden: float = 0.0,
) -> Terms:
    """Seconds by term of some work, beside what is no work of this request."""
    left, stored = work.left, work.storage_bytes
    moved = work.memory_bytes + stored
    storage_latency = rates[5] if stored else 0.0
    storage_transfer = rates[6] * stored
    return Terms(
        wait=rates[7] * work.wait,
        overhead=rates[0],
        compute=rates[1] * left,
        attention=rates[2] * left * (work.before + left / 2),
        memory_latency=rates[3] if moved else 0.0,
        memory_transfer=rates[4] * moved,
        storage_latency=storage_latency,
        storage_transfer=storage_transfer,
        overlap=min(work.overlapped, storage_latency + storage_transfer) if stored else 0.0,
        doubt=doubt,
        fault=fault,
        burden=burden,
    )
