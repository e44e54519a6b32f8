"""The storage tier that the options ask for."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import Clock
from kvstrata.errors import BadReason
from kvstrata.fileio.direct import Direct
from kvstrata.fileio.sharing import Sharing
from kvstrata.options import Options
from kvstrata.tiers.bounded import BoundedTier
from kvstrata.tiers.breaker import BreakerTier
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Done
from kvstrata.tiers.metered import MeteredTier
from kvstrata.tiers.recency import Recency
from kvstrata.tiers.shares import Bound
from kvstrata.tiers.spaces import Terms, declare
from kvstrata.tiers.sweep import read_usage
from kvstrata.tiers.tenants import QuotaTier
from kvstrata.tiers.tier import Bad, ReadOutcome, Tier, WriteOutcome
from kvstrata.vllm_plugin.processors import usable_processors
from kvstrata.vllm_plugin.seals import open_keyring

logger = logging.getLogger("vllm.kvstrata")


def io_threads(options: Options) -> int:
    """I/O threads: as the options say, else one for each processor that the engine may use.

    At least 2, so that one that hangs does not stop all; at most 16, more than any disk here asked for.
    """
    return options.io_threads or max(2, min(16, usable_processors()))


def open_storage(
    options: Options,
    namespace: Namespace,
    geometries: Mapping[int, GroupGeometry],
    clock: Clock,
    counters: m.Metrics,
    *,
    followed: bool = False,
) -> Tier | None:
    """The tier, measured; None where the options name no path.

    Args:
        options: the engine's.
        namespace: whose files are shared.
        geometries: by group index.
        clock: to measure durations.
        counters: where operations are counted.
        followed: whether events name the tier, so that it needs a name that others know.

    Raises:
        ConfigError: the path cannot be used.
    """
    if options.path is None:
        return None
    recency = Recency(options.ttl or 0.0, enabled=options.touch)
    tier = _open_files(options, Path(options.path), namespace, geometries, recency)
    if followed:
        tier.introduce()

    # Told from the start: what first appears with a fault does not rise for those who watch its rate.
    counters.count(m.READ_DEADLINES, 0)
    for reason in BadReason:
        counters.count(m.BAD_RECORDS, 0, (reason.value,))

    def observe(operation: str, outcome: ReadOutcome | WriteOutcome, seconds: float) -> None:
        """Count one operation; called in I/O threads."""
        nbytes = getattr(outcome, "nbytes", 0)
        if isinstance(outcome, Bad):
            counters.count(m.BAD_RECORDS, 1, (outcome.reason.value,))
        if nbytes:
            counters.count(m.BYTES, nbytes, ("filesystem", operation))
        counters.count(m.SECONDS, seconds, ("filesystem", operation))

    metered = MeteredTier(tier, clock, observe)
    watch = _Watch(options.path, counters)
    guarded = BreakerTier(metered, clock, options.read_deadline, watch)
    if tier.read_only:
        return guarded
    largest = max(geometry.payload_bytes for geometry in geometries.values())
    _declare(tier.directory, options, recency)
    bounded = _bounded(guarded, tier.directory, largest, options, clock, counters, recency)
    return _limited(bounded, Path(options.path), namespace, options, counters)


def _open_files(
    options: Options,
    root: Path,
    namespace: Namespace,
    geometries: Mapping[int, GroupGeometry],
    recency: Recency,
) -> FilesystemTier:
    """The files themselves.

    Raises:
        ConfigError: the path cannot be used.
    """
    tier = FilesystemTier(
        root,
        namespace,
        geometries,
        fsync=options.fsync,
        read_only=options.read_only,
        recency=recency,
        segment=options.segment,
        direct=Direct(options.direct),
        keyring=open_keyring(options),
        sharing=Sharing(options.shared_with),
        world_writable=options.world_writable,
    )
    tier.prepare()
    if tier.read_only and not options.read_only:
        logger.warning(
            "kvstrata: %s cannot be written; chunks are read from it, but none are stored",
            options.path,
        )
    return tier


def _declare(directory: Path, options: Options, recency: Recency) -> None:
    """Say what the engine asks of whoever evicts, and find out the file system's time."""
    terms = Terms(options.floor, options.weight, options.ttl or 0.0)
    try:
        recency.learn(declare(directory, terms, Sharing(options.shared_with)))
    except OSError as error:
        logger.warning(
            "kvstrata: cannot say in %s what this engine asks for (%s); options 'floor', 'weight' and "
            "'ttl' do not count for other engines until it can at a start",
            directory,
            error,
        )


def _bounded(
    tier: Tier,
    directory: Path,
    largest: int,
    options: Options,
    clock: Clock,
    counters: m.Metrics,
    recency: Recency,
) -> Tier:
    """The tier, within the bound that the options give."""
    nbytes, share = options.capacity or (None, None)
    bound = Bound(nbytes, share, options.keep_free)
    if not bound and options.ttl is None:
        return tier

    def looked(done: Done) -> None:
        """Count what one look led to; called by the keeper's thread."""
        counters.level(m.STORED_BYTES, done.usage.used, ("filesystem", "used"))
        if bound:
            counters.level(m.STORED_BYTES, done.usage.bound, ("filesystem", "bound"))
        if done.nbytes:
            counters.count(m.EVICTED_BYTES, done.nbytes, ("filesystem",))

    return BoundedTier(
        tier,
        directory,
        bound,
        largest,
        clock,
        looked,
        unused_after=options.unused_after,
        recency=recency,
        sharing=Sharing(options.shared_with),
    )


def _limited(
    tier: Tier, root: Path, namespace: Namespace, options: Options, counters: m.Metrics
) -> Tier:
    """The tier, within what the options leave to each tenant."""
    if options.tenants is None:
        return tier

    def bound() -> float:
        """Of the root, as its keeper found it."""
        usage = read_usage(root)
        return usage.bound if usage is not None and usage.bound else math.inf

    def looked(held: Mapping[str, float]) -> None:
        """Publish what tenants hold; called by the tier's thread."""
        for tenant, nbytes in held.items():
            counters.level(m.TENANT_BYTES, nbytes, ("filesystem", tenant))

    sharing = Sharing(options.shared_with)
    return QuotaTier(tier, root, namespace, options.tenants, bound, looked, sharing)


class _Watch:
    """Says once when storage is set aside, and once when it is taken back; called in any thread."""

    def __init__(self, path: str, counters: m.Metrics) -> None:
        self._path = path
        self._counters = counters
        for operation in ("read", "write"):
            counters.level(m.SET_ASIDE, 0, ("filesystem", operation))

    def changed(self, operation: str, set_aside: bool, why: str) -> None:
        """See `kvstrata.tiers.breaker.Observer`."""
        self._counters.level(m.SET_ASIDE, float(set_aside), ("filesystem", operation))
        if set_aside:
            logger.warning(
                "kvstrata: %ss at %s keep failing (%s); they are not tried any more but for a test now and "
                "then (metric kvstrata_set_aside)",
                operation,
                self._path,
                why,
            )
        else:
            logger.warning("kvstrata: %ss at %s work again", operation, self._path)

    def refused(self, operation: str) -> None:
        """See `kvstrata.tiers.breaker.Observer`."""
        self._counters.count(m.REFUSED, 1, ("filesystem", operation))
