"""What a request would cost on each replica, by its cheapest way to resume.

**Three ways are enough**: from the device alone, with memory, with storage. Let the boundary B move between
two reaches. The bytes of a load grow at most linearly with B, what it saves grows with B² beside the linear
part: as a function of B the price is concave, so that it is least at an end. Loading half of what a tier
has is never better than all of it or nothing.

**Computing costs others too, loading does not.** A way is chosen by seconds in which those of computation
count `1 + crowd` times, where `crowd` is what a second of it adds to the waits of those behind.

`choose_way` and `add_up` are the rule, for one replica. They are plain Python that numba can compile as it
is: `price_each` runs the compiled form for the whole fleet once `warm` has brought it, and the plain one
before and without numba. Both give the same, to the last bit.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from kvstrata.routing.cost import Vector
from kvstrata.routing.decision import Terms

NONE, DEVICE, MEMORY, STORAGE = range(4)
SOURCES = ("none", "device", "memory", "storage")
"""Names of what a way needs last, by number; see `Appraisal.source`."""
UNCAPPED = -1.0


class Standing(NamedTuple):
    """A replica as one request finds it: figures only.

    What the index says beyond the prompt's last token but one counts as ending there, because one token is
    always computed.

    Attributes:
        wait: seconds of computation queued there.
        trust: share of what is said of its reuse that holds, 0 to 1.
        fault: seconds set on it because it failed lately.
        crowd: seconds that others wait for each second of computation.
        read_wait: seconds for which storage is busy with other reads when this request could begin its own.
        overlapped: seconds of storage reads that the request's wait hides.
        device: tokens believed to be on the device: the index's, or more that were just sent there.
        indexed: of those, what the index says.
        memory: tokens that the index says are there with memory; no fewer than `indexed`.
        storage: the same with storage; no fewer than `memory`.
        memory_bytes: to be loaded from memory to resume at `memory`.
        passing_bytes: to be loaded from memory to resume at `storage`.
        storage_bytes: to be loaded from storage for that.
        per_request, per_token, per_pair, per_load, per_byte, per_read, per_stored_byte, per_wait: seconds
            per unit, in the order of `cost.LEARNED`.
    """

    wait: float
    trust: float
    fault: float
    crowd: float
    read_wait: float
    overlapped: float
    device: float
    indexed: float
    memory: float
    storage: float
    memory_bytes: float
    passing_bytes: float
    storage_bytes: float
    per_request: float
    per_token: float
    per_pair: float
    per_load: float
    per_byte: float
    per_read: float
    per_stored_byte: float
    per_wait: float


class Price(msgspec.Struct, gc=False):
    """What a request costs on a replica.

    Attributes:
        score: seconds by which replicas are compared.
        first_token: seconds to the first token, if nothing goes wrong.
        offered: tokens that it could reuse, whether or not it is worth while.
        seconds: what ways of one replica are compared by.
        source: the last tier that the way needs; see `SOURCES`.
        tokens: where it resumes.
        memory_bytes, storage_bytes: to be loaded.
        load_cap: `max_load_tokens` that makes the engine take this way; `UNCAPPED` where it does by itself.
        wait and what follows: see `decision.Terms`.
    """

    score: float = 0.0
    first_token: float = 0.0
    offered: float = 0.0
    seconds: float = 0.0
    source: float = 0.0
    tokens: float = 0.0
    memory_bytes: float = 0.0
    storage_bytes: float = 0.0
    load_cap: float = UNCAPPED
    wait: float = 0.0
    overhead: float = 0.0
    compute: float = 0.0
    attention: float = 0.0
    memory_latency: float = 0.0
    memory_transfer: float = 0.0
    storage_latency: float = 0.0
    storage_transfer: float = 0.0
    overlap: float = 0.0
    doubt: float = 0.0
    fault: float = 0.0
    burden: float = 0.0

    @property
    def terms(self) -> Terms:
        """The same, as they are shown."""
        return Terms(**{name: getattr(self, name) for name in Terms.__struct_fields__})


def choose_way(here: Any, tokens: float, load_cap: float, price: Any) -> None:
    """The cheapest way; of equal ones, the one that loads least.

    Args:
        here: a `Standing`.
        tokens: of the prompt, at least 1.
        load_cap: the client's own bound on tokens to load, or `UNCAPPED`.
        price: a `Price`, of which the way is set.
    """
    most = tokens - 1
    device = min(here.device, most)
    limit = most if load_cap < 0 else min(device + load_cap, most)
    price.seconds = math.inf
    for tier in range(DEVICE, STORAGE + 1):
        memory_bytes = storage_bytes = 0.0
        end = device
        if tier != DEVICE:
            reach = here.memory if tier == MEMORY else here.storage
            end = min(reach, limit)
            if end <= device:
                continue
            memory_bytes = here.memory_bytes if tier == MEMORY else here.passing_bytes
            storage_bytes = here.storage_bytes if tier == STORAGE else 0.0
            if reach > limit or device > here.indexed:
                # Bytes are known for the whole way from the index's own boundary; of a part of it, a part.
                share = (end - device) / (reach - here.indexed)
                memory_bytes = float(math.floor(memory_bytes * share))
                storage_bytes = float(math.floor(storage_bytes * share))
        left, moved = tokens - end, memory_bytes + storage_bytes
        computed = left * (here.per_token + here.per_pair * (end + left / 2))
        seconds = (1 + here.crowd) * computed
        if moved > 0:
            seconds += here.per_load + here.per_byte * moved
        if storage_bytes > 0:
            reads = here.per_read + here.per_stored_byte * storage_bytes
            seconds += here.read_wait + max(reads - here.overlapped, 0.0)
        if seconds < price.seconds:
            price.seconds = seconds
            price.source = float(tier if end > 0 else NONE)
            price.tokens = end
            price.memory_bytes = memory_bytes
            price.storage_bytes = storage_bytes
    # Without a cap the engine takes all that the tiers have.
    short = price.tokens < min(here.storage, limit)
    price.load_cap = price.tokens - device if short else load_cap
    price.offered = max(price.tokens, here.storage)


def add_up(here: Any, tokens: float, price: Any) -> None:
    """Seconds by term of a way.

    Args:
        here: a `Standing`.
        tokens: of the prompt.
        price: a `Price` whose tokens and bytes are set; terms and sums are set here.
    """
    there, stored = price.tokens, price.storage_bytes
    left, moved = tokens - there, price.memory_bytes + price.storage_bytes
    read_wait = here.read_wait if stored > 0 else 0.0
    price.wait = here.per_wait * (here.wait + read_wait)
    price.overhead = here.per_request
    price.compute = here.per_token * left
    price.attention = here.per_pair * (left * (there + left / 2))
    price.memory_latency = here.per_load if moved > 0 else 0.0
    price.memory_transfer = here.per_byte * moved
    price.storage_latency = here.per_read if stored > 0 else 0.0
    price.storage_transfer = here.per_stored_byte * stored
    price.overlap = min(here.overlapped, price.storage_latency + price.storage_transfer)
    computed = price.compute + price.attention
    # A wrong index costs what it is thought to spare.
    whole = tokens * (here.per_token + here.per_pair * (tokens / 2))
    price.doubt = (1 - here.trust) * max(whole - computed, 0.0)
    price.fault = here.fault
    price.burden = here.crowd * computed
    price.first_token = (
        price.wait
        + price.overhead
        + price.compute
        + price.attention
        + price.memory_latency
        + price.memory_transfer
        + price.storage_latency
        + price.storage_transfer
        - price.overlap
    )
    price.score = price.first_token + price.doubt + price.fault + price.burden


class Prices(NamedTuple):
    """Of all replicas, in their order.

    Attributes:
        score, first_token, offered: see `Price`.
        at: makes the whole of one.
    """

    score: list[float]
    first_token: list[float]
    offered: list[float]
    at: Callable[[int], Price]


def price_each(
    standings: Sequence[Sequence[float]], rates: Vector, tokens: int, load_cap: int | None
) -> Prices:
    """Price a request on each replica.

    Args:
        standings: for each, the figures of `Standing` before the rates.
        rates: float64 (replicas, 8), in the order of `cost.LEARNED`.
        tokens: of the prompt, at least 1.
        load_cap: the client's own bound on tokens to load.
    """
    cap = UNCAPPED if load_cap is None else float(max(load_cap, 0))
    if ready():
        rows = np.concatenate((np.array(standings, np.float64), rates), axis=1)
        columns = np.empty((len(Price.__struct_fields__), len(rows)))
        _fast()(rows, float(tokens), cap, columns)
        score, first_token, offered = columns[:3].tolist()
        return Prices(score, first_token, offered, lambda at: Price(*columns[:, at].tolist()))
    prices = []
    for figures, believed in zip(standings, rates.tolist(), strict=True):
        here, price = Standing(*figures, *believed), Price()
        choose_way(here, float(tokens), cap, price)
        add_up(here, float(tokens), price)
        prices.append(price)
    return Prices(
        [one.score for one in prices],
        [one.first_token for one in prices],
        [one.offered for one in prices],
        prices.__getitem__,
    )


def ready() -> bool:
    """Whether the compiled form is at hand."""
    return _fast.cache_info().currsize > 0


def warm() -> None:
    """Bring the compiled form; takes seconds on a machine's first time."""
    _fast()


@functools.cache
def _fast() -> Callable[[Vector, float, float, Vector], None]:
    # Numba comes with it, which those who route by load alone need not have.
    from kvstrata.routing.pricing_compiled import price_all

    ones = np.ones((1, len(Standing._fields)))
    price_all(ones, 1.0, UNCAPPED, np.empty((len(Price.__struct_fields__), 1)))
    return price_all
