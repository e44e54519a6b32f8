"""vLLM's KV event batches as they come over the wire.

A batch is msgpack: `[time, [events], data-parallel rank]` (`vllm.distributed.kv_events.KVEventBatch`).
Each event is a map with its kind under "type" (vLLM 0.30 and later) or an array that begins with it (older
engines). Fields and kinds that are not known here are passed over, and so is an event that cannot be read:
it is counted, and the rest of its batch counts. Token ids are never decoded, only counted.

What engines publish by far the most is read without an object for each event (`wire.scan`): `Batch.runs`
is the fast way to its blocks, `Batch.events` makes the objects when they are asked for.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import msgspec
import numpy as np
import numpy.typing as npt

MAX_BYTES = 64 << 20
"""Longest payload that is looked at."""
HASH_MASK = (1 << 64) - 1

WireHash = int | bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks became readable in a tier.

    Attributes:
        hashes: of the blocks, in the order of the prompt: the low 64 bits of vLLM's block hash.
        parent: hash of the block before the first, or None at the beginning of a prompt.
        tokens: that the event spans; 0 when it does not say. Of a windowed group it spans more blocks than
            there are hashes: only kept ones are named.
        block_tokens: tokens of one block; 0 when the event does not say.
        medium: GPU, CPU, STORAGE, or what another tier calls itself.
        group: KV cache group.
        kind: of the group's attention, as vLLM names it, or None.
        window: tokens of its sliding window, or None.
        lora: name of the LoRA adapter, or None.
        locality: LOCAL, REMOTE or None.
        owner: which of several such tiers, or None; of storage, the namespace and its place, so that all
            replicas which mount it are known to hold the blocks.
    """

    hashes: Sequence[int]
    parent: int | None
    tokens: int
    block_tokens: int
    medium: str
    group: int
    kind: str | None = None
    window: int | None = None
    lora: str | None = None
    locality: str | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks left a tier; see `Stored`."""

    hashes: Sequence[int]
    medium: str
    group: int
    locality: str | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Cleared:
    """The engine's device cache was emptied."""


Event = Stored | Removed | Cleared


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks that events of one kind name at one place.

    Attributes:
        stored: whether they became readable; else they left.
        hashes: uint64[n], as in `Stored`.
        medium, group, owner: as in `Stored`.
    """

    stored: bool
    hashes: npt.NDArray[np.uint64]
    medium: str
    group: int
    owner: str | None


_Where = tuple[str, int, str | None]
Piece = tuple[_Where, bool, npt.NDArray[np.uint64]] | None
"""Blocks that stored or removed events name at a place; None for `Cleared`."""


class EventsOnDemand(Sequence[Event]):
    """Events whose objects are made when they are asked for."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Blocks that they name."""

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """Neighbouring events of one kind and place at once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One published batch.

    Attributes:
        time: the engine's clock in seconds.
        rank: data-parallel rank, 0 when there is only one.
        events: those that could be read, in order.
        skipped: events that could not be read, or of an unknown kind.
    """

    time: float
    rank: int
    events: Sequence[Event]
    skipped: int

    @property
    def blocks(self) -> int:
        """Blocks that its events name."""
        if isinstance(self.events, EventsOnDemand):
            return self.events.blocks
        return sum(len(event.hashes) for event in self.events if not isinstance(event, Cleared))

    def runs(self) -> Iterator[Run | Cleared]:
        """The same as long runs of blocks. Only the order at one place, and around `Cleared`, is kept."""
        events = self.events
        pieces = events.pieces() if isinstance(events, EventsOnDemand) else _pieces(events)
        open_runs: dict[_Where, tuple[bool, list[npt.NDArray[np.uint64]]]] = {}
        for piece in pieces:
            if piece is None:
                yield from (_run(where, *run) for where, run in open_runs.items())
                open_runs.clear()
                yield Cleared()
                continue
            where, stored, hashes = piece
            run = open_runs.get(where)
            if run is not None and run[0] is stored:
                run[1].append(hashes)
                continue
            if run is not None:
                yield _run(where, *run)
            open_runs[where] = stored, [hashes]
        yield from (_run(where, *run) for where, run in open_runs.items())


def _run(where: _Where, stored: bool, hashes: list[npt.NDArray[np.uint64]]) -> Run:
    return Run(stored, hashes[0] if len(hashes) == 1 else np.concatenate(hashes), *where)


def _pieces(events: Iterable[Event]) -> Iterator[Piece]:
    for event in events:
        if isinstance(event, Cleared):
            yield None
            continue
        hashes = np.fromiter(event.hashes, np.uint64, len(event.hashes))
        yield (event.medium, event.group, event.owner), isinstance(event, Stored), hashes


class WireError(ValueError):
    """Bytes that are not what they ought to be."""


class _Stored(msgspec.Struct, tag="BlockStored", tag_field="type", gc=False):
    block_hashes: list[WireHash]
    parent_block_hash: WireHash | None = None
    token_ids: msgspec.Raw = msgspec.Raw(b"\x90")
    block_size: int = 0
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: msgspec.Raw = msgspec.Raw(b"\xc0")
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved", tag_field="type", gc=False):
    block_hashes: list[WireHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared", tag_field="type", gc=False):
    pass


class _StoredRow(_Stored, tag="BlockStored", array_like=True, gc=False):
    pass


class _RemovedRow(_Removed, tag="BlockRemoved", array_like=True, gc=False):
    pass


class _ClearedRow(_Cleared, tag="AllBlocksCleared", array_like=True, gc=False):
    pass


class _Batch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[_Stored | _Removed | _Cleared]
    data_parallel_rank: int | None = None


class _RawBatch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


_BATCH = msgspec.msgpack.Decoder(_Batch)
_RAW_BATCH = msgspec.msgpack.Decoder(_RawBatch)
_MAP = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared)
_ROW = msgspec.msgpack.Decoder(_StoredRow | _RemovedRow | _ClearedRow)
_UNREADABLE = (msgspec.DecodeError, RecursionError, ValueError, OverflowError)


def decode(payload: bytes) -> Batch:
    """Read one batch.

    Raises:
        WireError: it is no batch at all: not msgpack, of another shape, or longer than `MAX_BYTES`.
    """
    if len(payload) > MAX_BYTES:
        raise WireError(f"{len(payload)} bytes; at most {MAX_BYTES} are looked at")
    return _reader()(payload) or decode_any(payload)


@cache
def _reader() -> Callable[[bytes], Batch | None]:
    from kvstrata.wire.scanned import read

    return read


def decode_any(payload: bytes) -> Batch:
    """`decode` without compiled code: for batches that are not plain, and inside engines. Slower, and equal.

    Raises:
        WireError: as `decode`.
    """
    try:
        batch = _BATCH.decode(payload)
        events = [_event(wire) for wire in batch.events]
    except _UNREADABLE:
        return _decode_one_by_one(payload)
    return Batch(batch.ts, batch.data_parallel_rank or 0, events, 0)


def low_bits(value: WireHash) -> int:
    """The part of a block hash that names the block here: its low 64 bits."""
    if isinstance(value, bytes):
        return int.from_bytes(value[-8:], "big")
    return value & HASH_MASK


def _decode_one_by_one(payload: bytes) -> Batch:
    try:
        batch = _RAW_BATCH.decode(payload)
    except _UNREADABLE as error:
        raise WireError(str(error)) from None
    events, skipped = [], 0
    for raw in batch.events:
        try:
            decoder = _ROW if _is_array(memoryview(raw)) else _MAP
            events.append(_event(decoder.decode(raw)))
        except _UNREADABLE:
            skipped += 1
    return Batch(batch.ts, batch.data_parallel_rank or 0, events, skipped)


def _event(wire: _Stored | _Removed | _Cleared) -> Event:
    if isinstance(wire, _Stored):
        return Stored(
            [low_bits(value) for value in wire.block_hashes],
            None if wire.parent_block_hash is None else low_bits(wire.parent_block_hash),
            _array_length(wire.token_ids),
            _small(wire.block_size),
            wire.medium or "GPU",
            _small(wire.group_idx or 0),
            wire.kv_cache_spec_kind,
            wire.kv_cache_spec_sliding_window,
            wire.lora_name,
            wire.locality,
            wire.ownership,
        )
    if isinstance(wire, _Removed):
        hashes = [low_bits(value) for value in wire.block_hashes]
        return Removed(
            hashes, wire.medium or "GPU", _small(wire.group_idx or 0), wire.locality, wire.ownership
        )
    return Cleared()


def _small(value: int) -> int:
    """A size or an index: hostile ones must not become gigabytes elsewhere."""
    if not 0 <= value < 1 << 24:
        raise ValueError(f"{value} is no size or index")
    return value


def _is_array(raw: memoryview) -> bool:
    return 0x90 <= raw[0] <= 0x9F or raw[0] in (0xDC, 0xDD)


def _array_length(raw: msgspec.Raw) -> int:
    """Entries of a msgpack array, from its head alone."""
    view = memoryview(raw)
    if 0x90 <= view[0] <= 0x9F:
        return view[0] & 0x0F
    if view[0] == 0xDC:
        return int.from_bytes(view[1:3], "big")
    if view[0] == 0xDD:
        return int.from_bytes(view[1:5], "big")
    raise ValueError("token ids are no array")
