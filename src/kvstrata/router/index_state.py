"""What is known of a replica's content, and how far it can be believed, as operators see it."""

from dataclasses import dataclass

from kvstrata.events.stream import Trust
from kvstrata.fleet.fleet import Fleet
from kvstrata.fleet.replica import Rank
from kvstrata.routing.shape import DEVICE, MEDIA, TIERS
from kvstrata.wire.snapshot import EngineFacts, Place


@dataclass(frozen=True, slots=True)
class Holding:
    """What a replica holds of one group in one tier.

    Attributes:
        tier: "device", "memory" or "storage".
        group: KV cache group.
        blocks: of the group's block size.
        tokens: that they cover.
        bytes: 0 where the engine does not tell the size of its blocks.
    """

    tier: str
    group: int
    blocks: int
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GroupState:
    """One KV cache group: `kind` of attention, `block_tokens`, and the `window` in tokens or 0."""

    group: int
    kind: str
    block_tokens: int
    window: int


@dataclass(frozen=True, slots=True)
class IndexState:
    """How it stands with what is known of one replica's content.

    Attributes:
        trust: "synced", "catching up" or "stale"; stale too when its events are not followed.
        why: it is not synced; empty when it is.
        age_seconds: since nothing was known to be missing; 0 while that is so.
        behind: batches of events that are known to be published and are not applied.
        ranks: data-parallel ranks that are followed.
        groups: as the engine tells them, or its events.
        holds: what it holds.
    """

    trust: str
    why: str
    age_seconds: float = 0.0
    behind: int = 0
    ranks: int = 0
    groups: tuple[GroupState, ...] = ()
    holds: tuple[Holding, ...] = ()


def index_state(fleet: Fleet, replica: str, now: float) -> IndexState:
    """How it stands with a replica that is followed.

    Args:
        fleet: that follows it.
        replica: its name.
        now: of the fleet's clock, seconds.

    Raises:
        KeyError: it is not followed.
    """
    known = fleet.replica(replica)
    trust, why = fleet.trust(replica)
    statuses = [fleet.status(rank) for rank in known.ranks]
    facts = known.facts
    if facts is None:
        why = why or next((rank.ignorance for rank in known.ranks if rank.ignorance), "")
    groups = () if facts is None else facts.groups
    return IndexState(
        str(trust.value),
        "" if trust is Trust.SYNCED and facts is not None else why,
        max(status.lag(now) for status in statuses),
        sum(status.behind for status in statuses),
        len(known.ranks),
        tuple(
            GroupState(one.group, one.kind, one.tokens_per_block, one.window_tokens)
            for one in groups
        ),
        _holdings(fleet, known.ranks, facts),
    )


def _holdings(
    fleet: Fleet, ranks: tuple[Rank, ...], facts: EngineFacts | None
) -> tuple[Holding, ...]:
    if facts is None:
        return ()
    held: dict[Place, int] = {}
    with fleet.reading() as index:
        for rank in ranks:
            for place, count in index.counts(rank.number).items():
                # Ranks that mount the same storage hold it together.
                shared = place.owner is not None
                before = held.get(place, 0)
                held[place] = max(before, count) if shared else before + count
    sizes = {group.group: group for group in facts.groups}
    found: dict[tuple[str, int], Holding] = {}
    for place, entries in held.items():
        tier, group = MEDIA.get(place.medium), sizes.get(place.group)
        if tier is None or group is None:
            continue
        # On the device an entry is a block, in tiers a chunk.
        blocks = entries * (1 if tier == DEVICE else max(group.blocks_per_chunk, 1))
        other = found.get((tier, place.group))
        blocks += other.blocks if other else 0
        found[tier, place.group] = Holding(
            tier,
            place.group,
            blocks,
            blocks * group.tokens_per_block,
            blocks * max(group.block_bytes, 0),
        )
    return tuple(sorted(found.values(), key=lambda one: (TIERS.index(one.tier), one.group)))
