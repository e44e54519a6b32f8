"""Asking an engine for all that it holds, over the socket that answers vLLM's replay requests.

A replay request is one frame, the first sequence number as 8 bytes (vLLM's `ZmqEventPublisher`). A question
here is one frame too, longer, and as a number so large that a publisher that does not know it has no such
batch: it answers with the end marker alone. A publisher that does know it sends one message for each part
of the answer, `[topic, ANSWER, part]`, and then the same end marker. Parts are msgpack: first a `Header`,
then, of a snapshot, any number of `Part`s.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.wire.batches import WireError

VERSION = 1
ANSWER = b"\xff" * 7 + b"\xfe"
"""Stands where a replayed batch has its sequence number."""
END = b"\xff" * 8
"""vLLM's end of an answer, in the same place."""
MOST_HASHES = 1 << 20
"""Hashes in one part."""

Hashes = npt.NDArray[np.uint64]


class Question(Enum):
    """What can be asked."""

    STATE = b"\xff" * 8 + b"kvstrata state"
    """The header alone: which life the engine lives, and how far it has published."""
    SNAPSHOT = b"\xff" * 8 + b"kvstrata snapshot"
    """The header, and what the engine holds."""


class GroupFacts(msgspec.Struct, frozen=True):
    """One KV cache group; see `GroupGeometry`."""

    group: int
    kind: str
    tokens_per_block: int
    blocks_per_chunk: int
    block_bytes: int
    window_tokens: int = 0
    extra_tokens: int = 0


class EngineFacts(msgspec.Struct, frozen=True):
    """What a router has to know of an engine besides its blocks.

    Attributes:
        model: as the engine names it.
        hash_algorithm: vLLM's `prefix_caching_hash_algo`.
        none_hash: parent of every prompt's first block, which the seed decides; 16 or 32 bytes.
        hash_tokens: tokens of one hash; every group's block is a multiple.
        alignment_tokens: hits in the device's cache are multiples of it (vLLM's scheduler block size).
        groups: all groups that share prefixes, by index; those that no tier takes have a chunk of 0 blocks.
        storage: names the namespace and its place, as events of the storage tier do; None without one.
        device_blocks: blocks of the device's cache.
        release: of this package.
        retention_tokens: tokens between places where windowed groups are kept besides the ends of prompts
            (vLLM's `prefix_cache_retention_interval`): 0 for none, 1 where all blocks are kept.
    """

    model: str
    hash_algorithm: str
    none_hash: bytes
    hash_tokens: int
    alignment_tokens: int
    groups: tuple[GroupFacts, ...]
    storage: str | None = None
    device_blocks: int = 0
    release: str = ""
    retention_tokens: int = 0


class Header(msgspec.Struct, frozen=True):
    """How an answer begins.

    Attributes:
        version: of this format.
        epoch: 16 random bytes, drawn when the engine starts.
        sequence: number of the last batch that the content includes; -1 when there was none.
        time: the engine's clock, seconds since 1970.
        rank: data-parallel rank.
        recent: XXH3-128 digests of the last batches' payloads, ending with `sequence`: a subscriber that
            gets one of them late knows it for what it is.
        facts: None where the engine does not run this package's connector.
    """

    version: int
    epoch: bytes
    sequence: int
    time: float
    rank: int
    recent: tuple[bytes, ...] = ()
    facts: EngineFacts | None = None


class Part(msgspec.Struct, frozen=True):
    """Blocks or chunks of one group in one tier.

    Attributes:
        medium: as in events.
        group: KV cache group.
        hashes: low 64 bits of each hash, little endian, one after the other, each once.
        again: those of them that the tier holds more than once, repeated as often as they are there again.
        owner: as in events.
    """

    medium: str
    group: int
    hashes: bytes
    again: bytes = b""
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """One group in one tier.

    Attributes:
        medium: GPU, CPU, STORAGE, or what another tier calls itself.
        group: KV cache group.
        owner: which of several such tiers; see `Stored`.
    """

    medium: str
    group: int
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole answer.

    Attributes:
        header: see `Header`.
        held: by place: the hashes held (uint64, each once), and those that are there again (uint64).
    """

    header: Header
    held: Mapping[Place, tuple[Hashes, Hashes]]


_ENCODER = msgspec.msgpack.Encoder()
_HEADER = msgspec.msgpack.Decoder(Header)
_PART = msgspec.msgpack.Decoder(Part)


def encode(header: Header, held: Iterable[tuple[Place, Hashes, Hashes]] = ()) -> Iterator[bytes]:
    """The parts of an answer, in order."""
    yield _ENCODER.encode(header)
    for place, hashes, again in held:
        extra = again.astype("<u8").tobytes()
        for low in range(0, len(hashes), MOST_HASHES):
            chunk = hashes[low : low + MOST_HASHES].astype("<u8").tobytes()
            yield _ENCODER.encode(Part(place.medium, place.group, chunk, extra, place.owner))
            extra = b""


def decode(parts: Iterable[bytes]) -> Snapshot:
    """Read an answer.

    Raises:
        WireError: no part, one that cannot be read, or another version.
    """
    pieces: dict[Place, tuple[list[Hashes], list[Hashes]]] = {}
    header: Header | None = None
    for part in parts:
        try:
            if header is None:
                header = _HEADER.decode(part)
                continue
            value = _PART.decode(part)
            hashes, again = _hashes(value.hashes), _hashes(value.again)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise WireError(f"an answer of another form: {error}") from None
        found = pieces.setdefault(Place(value.medium, value.group, value.owner), ([], []))
        found[0].append(hashes)
        found[1].append(again)
    if header is None:
        raise WireError("an empty answer")
    if header.version != VERSION:
        raise WireError(
            f"the engine's kvstrata speaks version {header.version} of the snapshot format, this one "
            f"{VERSION}; run the same release on both sides"
        )
    held = {
        place: (np.concatenate(hashes), np.concatenate(again))
        for place, (hashes, again) in pieces.items()
    }
    return Snapshot(header, held)


def group_facts(geometry: GroupGeometry) -> GroupFacts:
    """A geometry as it is told."""
    return GroupFacts(
        geometry.group,
        geometry.kind.value,
        geometry.tokens_per_block,
        geometry.blocks_per_chunk,
        geometry.block_bytes,
        geometry.window_tokens,
        geometry.extra_tokens,
    )


def _hashes(data: bytes) -> Hashes:
    return np.frombuffer(data, "<u8").astype(np.uint64, copy=False)
