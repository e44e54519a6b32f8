"""The price of a request on one replica, stated plainly: what the columns of `routing.ways` must equal."""

from dataclasses import dataclass

from kvstrata.routing.decision import Reach, Reuse, Terms


@dataclass(frozen=True)
class PlainSituation:
    rates: tuple[float, ...]
    crowd: float = 0.0
    read_wait: float = 0.0
    overlapped: float = 0.0

    def seconds(self, tokens: int, boundary: int) -> float:
        return (1 + self.crowd) * plain_device_seconds(self.rates, tokens, boundary)


@dataclass(frozen=True)
class PlainWay:
    seconds: float
    source: str
    tokens: int
    memory_bytes: int = 0
    storage_bytes: int = 0
    load_cap: int | None = None


def plain_device_seconds(rates: tuple[float, ...], tokens: int, boundary: int) -> float:
    left = tokens - boundary
    return left * (rates[1] + rates[2] * (boundary + left / 2))


def plain_best_way(
    situation: PlainSituation,
    reuse: Reuse | None,
    tokens: int,
    on_device: int,
    load_cap: int | None = None,
) -> PlainWay:
    most = tokens - 1
    device = min(on_device, most)
    source = "device" if device > 0 else "none"
    seconds = situation.seconds(tokens, device)
    if reuse is None or reuse.storage.tokens <= device:
        return PlainWay(seconds, source, device, 0, 0, load_cap)
    limit = most if load_cap is None else min(most, device + load_cap)
    best = PlainWay(seconds, source, device)
    for source, reach in (("memory", reuse.memory), ("storage", reuse.storage)):
        if reach.tokens > device and limit > device:
            way = _load(situation, source, reach, tokens, device, reuse.device.tokens, limit)
            if way.seconds < best.seconds:
                best = way
    cap = best.tokens - device if best.tokens < min(reuse.storage.tokens, limit) else load_cap
    return PlainWay(
        best.seconds, best.source, best.tokens, best.memory_bytes, best.storage_bytes, cap
    )


def _load(
    situation: PlainSituation,
    source: str,
    reach: Reach,
    tokens: int,
    device: int,
    indexed: int,
    limit: int,
) -> PlainWay:
    boundary = min(reach.tokens, limit)
    memory_bytes, storage_bytes = reach.memory_bytes, reach.storage_bytes
    if reach.tokens > limit or device > indexed:
        share = (boundary - device) / (reach.tokens - indexed)
        memory_bytes, storage_bytes = int(memory_bytes * share), int(storage_bytes * share)
    rates = situation.rates
    seconds = situation.seconds(tokens, boundary)
    moved = memory_bytes + storage_bytes
    if moved:
        seconds += rates[3] + rates[4] * moved
    if storage_bytes:
        reads = rates[5] + rates[6] * storage_bytes
        seconds += situation.read_wait + max(reads - situation.overlapped, 0.0)
    return PlainWay(seconds, source, boundary, memory_bytes, storage_bytes)


def plain_terms(
    situation: PlainSituation, way: PlainWay, tokens: int, wait: float, trust: float, fault: float
) -> Terms:
    rates, left = situation.rates, tokens - way.tokens
    stored, moved = way.storage_bytes, way.memory_bytes + way.storage_bytes
    computed = plain_device_seconds(rates, tokens, way.tokens)
    reads = rates[5] + rates[6] * stored if stored else 0.0
    return Terms(
        wait=rates[7] * (wait + situation.read_wait if stored else wait),
        overhead=rates[0],
        compute=rates[1] * left,
        attention=rates[2] * left * (way.tokens + left / 2),
        memory_latency=rates[3] if moved else 0.0,
        memory_transfer=rates[4] * moved,
        storage_latency=rates[5] if stored else 0.0,
        storage_transfer=rates[6] * stored,
        overlap=min(situation.overlapped, reads),
        doubt=(1 - trust) * (plain_device_seconds(rates, tokens, 0) - computed),
        fault=fault,
        burden=situation.crowd * computed,
    )
