"""What `kvstrata top` says of engines and of routers, from what changed between two looks. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvstrata.cli.watching import Change, grown, levels, quantiles, rates

OURS = "vllm:kvstrata_"
ROUTER = "kvstrata_router_"
TIERS = ("device", "memory", "filesystem")
"""That prompt tokens come from; what is computed comes from none."""
COMPUTED = "computed"
QUANTILES = (0.5, 0.9)
_STATES = ("up", "suspect", "new", "down", "leaving")


@dataclass(frozen=True, slots=True)
class Amount:
    """Of a counter: what was added between the looks, and all since the process began."""

    new: float
    all: float


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine, or all together.

    Attributes:
        restarted: a counter fell meanwhile.
        requests_per_s: finished.
        prompt_tokens_per_s: of prompts, cached or not.
        shares: of prompts' tokens by where they came from, `TIERS` and `COMPUTED`; empty without any.
        read_bytes_per_s: by tier, into the host arena.
        written_bytes_per_s: by tier, out of it.
        queues: I/O jobs that wait or run, by queue.
        dropped: chunks that were not stored, by reason.
        bad: stored chunks that could not be used, by reason.
        deadlines: requests that did not get their chunks in time.
        used: bytes below the path, as last estimated; None without a bound. All: each storage once.
        bound: bytes that they may be.
        set_aside: what is not tried because it keeps failing, such as "filesystem write".
        stuck: I/O threads in a call that does not return.
        load_wait: seconds from a first lookup until chunks are in memory, `QUANTILES`.
        ttft: seconds to the first token as the engine sees it, `QUANTILES`.
        running: requests in the engine's batch.
        waiting: requests in its queue.
        preempted: requests that lost their blocks.
        ours: whether it has told anything of kvstrata.
    """

    restarted: bool
    requests_per_s: float
    prompt_tokens_per_s: float
    shares: Mapping[str, float]
    read_bytes_per_s: Mapping[str, float]
    written_bytes_per_s: Mapping[str, float]
    queues: Mapping[str, float]
    dropped: Mapping[str, Amount]
    bad: Mapping[str, Amount]
    deadlines: Amount
    used: float | None
    bound: float | None
    set_aside: tuple[str, ...]
    stuck: float
    load_wait: tuple[float | None, ...]
    ttft: tuple[float | None, ...]
    running: float
    waiting: float
    preempted: Amount
    ours: bool


@dataclass(frozen=True, slots=True)
class RouterRow:
    """One router.

    Attributes:
        restarted: a counter fell meanwhile.
        answers_per_s: by status; 0 stands for an attempt without one.
        retried: attempts that were made again elsewhere.
        refused: requests that it refused, by code.
        shares: as of engines, with the router's names of sources.
        ttft: seconds to the first byte, `QUANTILES`.
        replicas: how many are in each state; those that are in none are left out.
        trust: how many replicas' events are in each state.
        alarms: replicas whose index disagrees with their answers.
        in_flight: requests at replicas.
        waiting: requests that wait for a replica with room.
    """

    restarted: bool
    answers_per_s: Mapping[str, float]
    retried: Amount
    refused: Mapping[str, Amount]
    shares: Mapping[str, float]
    ttft: tuple[float | None, ...]
    replicas: Mapping[str, float]
    trust: Mapping[str, float]
    alarms: tuple[str, ...]
    in_flight: float
    waiting: float


def engine_row(changes: Sequence[Change]) -> EngineRow:
    """The row of an engine, or of several taken as one."""
    used, bound = _stored(changes)
    prompts = grown(changes, f"{OURS}tokens_total", "tier")
    return EngineRow(
        restarted=any(change.restarted for change in changes),
        requests_per_s=_sum(rates(changes, "vllm:request_success_total", "")),
        prompt_tokens_per_s=_sum(rates(changes, f"{OURS}tokens_total", "")),
        shares=_shares(prompts),
        read_bytes_per_s=rates(changes, f"{OURS}bytes_total", "tier", direction="read"),
        written_bytes_per_s=rates(changes, f"{OURS}bytes_total", "tier", direction="write"),
        queues=levels(changes, f"{OURS}queue_depth", "queue"),
        dropped=_amounts(changes, f"{OURS}writes_dropped_total", "reason"),
        bad=_amounts(changes, f"{OURS}bad_records_total", "reason"),
        deadlines=_amount(changes, f"{OURS}read_deadlines_total"),
        used=used,
        bound=bound,
        set_aside=_set_aside(changes),
        stuck=_sum(levels(changes, f"{OURS}stuck_threads")),
        load_wait=quantiles(changes, f"{OURS}load_wait_seconds", QUANTILES),
        ttft=quantiles(changes, "vllm:time_to_first_token_seconds", QUANTILES),
        running=_sum(levels(changes, "vllm:num_requests_running")),
        waiting=_sum(levels(changes, "vllm:num_requests_waiting")),
        preempted=_amount(changes, "vllm:num_preemptions_total"),
        ours=any(name.startswith(OURS) for change in changes for name in change.after.series),
    )


def router_row(change: Change) -> RouterRow:
    """The row of a router."""
    one = [change]
    states = levels(one, f"{ROUTER}replica_state", "state")
    alarms = levels(one, f"{ROUTER}index_alarm", "replica")
    return RouterRow(
        restarted=change.restarted,
        answers_per_s=rates(one, f"{ROUTER}requests_total", "status"),
        retried=_amount(one, f"{ROUTER}retries_total"),
        refused=_amounts(one, f"{ROUTER}refusals_total", "code"),
        shares=_shares(grown(one, f"{ROUTER}prompt_tokens_total", "source")),
        ttft=quantiles(one, f"{ROUTER}ttft_seconds", QUANTILES),
        replicas={state: states[state] for state in _STATES if states.get(state)},
        trust={
            state: count
            for state, count in levels(one, f"{ROUTER}index_trust", "state").items()
            if count
        },
        alarms=tuple(sorted(name for name, value in alarms.items() if value)),
        in_flight=_sum(levels(one, f"{ROUTER}in_flight")),
        waiting=_sum(levels(one, f"{ROUTER}waiting")),
    )


def _sum(by_label: Mapping[str, float]) -> float:
    return sum(by_label.values())


def _shares(tokens: Mapping[str, float]) -> dict[str, float]:
    whole = sum(tokens.values())
    return {name: count / whole for name, count in tokens.items()} if whole > 0 else {}


def _amounts(changes: Sequence[Change], name: str, by: str) -> dict[str, Amount]:
    new = grown(changes, name, by)
    return {
        label: Amount(new.get(label, 0.0), value)
        for label, value in sorted(levels(changes, name, by).items())
    }


def _amount(changes: Sequence[Change], name: str) -> Amount:
    return Amount(_sum(grown(changes, name)), _sum(levels(changes, name)))


def _set_aside(changes: Sequence[Change]) -> tuple[str, ...]:
    found = {
        f"{dict(labels).get('tier', '')} {dict(labels).get('operation', '')}"
        for change in changes
        for labels, value in change.after.series.get(f"{OURS}set_aside", {}).items()
        if value
    }
    return tuple(sorted(found))


def _stored(changes: Sequence[Change]) -> tuple[float | None, float | None]:
    """Used bytes and their bound: engines of one path say the same of it, and it counts once.

    A path has a name where engines announce what they hold; where not, equal bounds are taken for one path's.
    """
    places: dict[str, dict[str, float]] = {}
    for change in changes:
        told: dict[str, float] = {}
        for labels, value in change.after.series.get(f"{OURS}stored_bytes", {}).items():
            what = dict(labels).get("what", "")
            told[what] = max(told.get(what, 0.0), value)
        if told:
            place = places.setdefault(_place(change) or f"bound {told.get('bound')}", {})
            for what, value in told.items():
                place[what] = max(place.get(what, 0.0), value)
    if not places:
        return None, None
    used, bound = (
        sum(place.get(what, 0.0) for place in places.values()) for what in ("used", "bound")
    )
    return used, bound


def _place(change: Change) -> str:
    """The name of the place where an engine's files lie; empty if it tells none."""
    for labels, value in change.after.series.get(f"{OURS}info", {}).items():
        name = dict(labels).get("storage", "").rpartition("@")[2]
        if value and name:
            return name
    return ""
