"""The price of a way to resume, against what it is defined by."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.errors import ConfigError
from kvstrata.routing import pricing
from kvstrata.routing.appraising import appraise
from kvstrata.routing.cost import LEARNED, Profile, Work
from kvstrata.routing.decision import Appraisal, Candidate, Reach, Reuse, Terms
from kvstrata.routing.pricing import SOURCES, UNCAPPED, Price, Standing, add_up, choose_way
from tests.unit.routing.plain_ways import PlainSituation, PlainWay, plain_best_way, plain_terms

PROFILE = Profile()
ROUNDING = 1e-12
"""Seconds; a difference of two prices is off by what its terms are."""
BYTES = 100_000


def situation(profile: Profile = PROFILE, **others: float) -> PlainSituation:
    return PlainSituation(profile.rates(), **others)


def standing(
    here: PlainSituation,
    offered: Reuse | None,
    on_device: int,
    wait: float = 0.0,
    trust: float = 1.0,
    fault: float = 0.0,
) -> Standing:
    known = offered or Reuse()
    return Standing(
        wait,
        trust,
        fault,
        here.crowd,
        here.read_wait,
        here.overlapped,
        on_device,
        known.device.tokens,
        known.memory.tokens,
        known.storage.tokens,
        known.memory.memory_bytes,
        known.storage.memory_bytes,
        known.storage.storage_bytes,
        *here.rates,
    )


def best_way(
    here: PlainSituation, offered: Reuse, tokens: int, on_device: int, cap: int | None = None
) -> PlainWay:
    price = Price()
    choose_way(standing(here, offered, on_device), tokens, UNCAPPED if cap is None else cap, price)
    return PlainWay(
        price.seconds,
        SOURCES[int(price.source)],
        int(price.tokens),
        int(price.memory_bytes),
        int(price.storage_bytes),
        None if price.load_cap == UNCAPPED else int(price.load_cap),
    )


def reuse(device: int, memory: int, storage: int) -> Reuse:
    """Every token costs the same bytes, wherever it lies."""
    in_memory = (memory - device) * BYTES
    return Reuse(
        Reach(device),
        Reach(memory, in_memory),
        Reach(storage, in_memory, (storage - memory) * BYTES),
    )


def plain_seconds(profile: Profile, tokens: int, device: int, memory: int, boundary: int) -> float:
    """Stated anew: every token one by one, every byte by its tier, none faster from below than from above."""
    per_token = 1 / profile.prefill_tokens_per_s
    per_pair = 2 * per_token / profile.attention_doubles_at
    seconds = sum(per_token + per_pair * (place + 0.5) for place in range(boundary, tokens))
    if boundary > device:
        seconds += profile.memory_latency_seconds
        seconds += (boundary - device) * BYTES / profile.memory_bytes_per_s
    if boundary > memory:
        seconds += max(profile.storage_latency_seconds, profile.memory_latency_seconds)
        slower = min(profile.storage_bytes_per_s, profile.memory_bytes_per_s)
        seconds += (boundary - memory) * BYTES / slower
    return seconds


profiles = st.builds(
    Profile,
    prefill_tokens_per_s=st.floats(100, 1e6),
    attention_doubles_at=st.floats(100, 1e6),
    memory_latency_seconds=st.floats(1e-5, 1.0),
    memory_bytes_per_s=st.floats(1e6, 1e11),
    storage_latency_seconds=st.floats(1e-5, 1.0),
    storage_bytes_per_s=st.floats(1e5, 1e10),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, int]:
    tokens = draw(st.integers(1, 400))
    device, memory, storage = sorted(draw(st.integers(0, tokens - 1)) for _ in range(3))
    return tokens, device, memory, storage


@given(profiles, cases())
def test_no_boundary_is_quicker_than_the_way_that_is_chosen(
    profile: Profile, case: tuple[int, int, int, int]
) -> None:
    tokens, device, memory, storage = case
    way = best_way(situation(profile), reuse(device, memory, storage), tokens, device)
    every = [
        plain_seconds(profile, tokens, device, memory, boundary)
        for boundary in range(device, storage + 1)
    ]
    assert way.seconds == pytest.approx(min(every), rel=1e-9)
    assert every[way.tokens - device] == pytest.approx(min(every), rel=1e-9)


@given(profiles, cases())
def test_a_cap_is_told_exactly_when_the_engine_would_go_further(
    profile: Profile, case: tuple[int, int, int, int]
) -> None:
    tokens, device, memory, storage = case
    way = best_way(situation(profile), reuse(device, memory, storage), tokens, device)
    if way.load_cap is None:
        assert way.tokens == max(device, storage)
    else:
        assert device + way.load_cap == way.tokens < storage


@given(profiles, cases(), st.integers(0, 400))
def test_a_clients_own_cap_is_never_exceeded(
    profile: Profile, case: tuple[int, int, int, int], cap: int
) -> None:
    tokens, device, memory, storage = case
    way = best_way(situation(profile), reuse(device, memory, storage), tokens, device, cap)
    assert device <= way.tokens <= device + cap
    assert way.load_cap is not None and way.load_cap <= cap


@given(profiles, cases(), st.integers(0, 400))
def test_what_was_just_sent_there_need_not_be_loaded(
    profile: Profile, case: tuple[int, int, int, int], sent: int
) -> None:
    tokens, device, memory, storage = case
    on_device = max(device, sent)
    offered = reuse(device, memory, storage)
    way = best_way(situation(profile), offered, tokens, on_device)
    without = best_way(situation(profile), offered, tokens, device)
    assert way.tokens >= min(on_device, tokens - 1)
    assert way.seconds <= without.seconds * (1 + 1e-9)
    assert way.memory_bytes + way.storage_bytes <= max(storage - on_device, 0) * BYTES


@st.composite
def replicas(draw: st.DrawFn, tokens: int) -> tuple[PlainSituation, Reuse | None, int, float]:
    """How it is, what its index says, tokens believed to be on the device, and seconds of its queue."""
    here = situation(
        draw(profiles),
        crowd=draw(st.floats(0, 4)),
        read_wait=draw(st.floats(0, 1)),
        overlapped=draw(st.sampled_from([0.0, 0.5])),
    )
    ends = st.integers(0, 2 * tokens)  # an index may know of more than this prompt's beginning
    device, memory, storage = sorted(draw(ends) for _ in range(3))
    known = draw(st.booleans())
    sent = draw(st.one_of(st.just(0), st.integers(0, 2 * tokens)))
    offered = reuse(device, memory, storage) if known else None
    return here, offered, max(sent, device) if known else sent, draw(st.floats(0, 5))


@st.composite
def fleets(draw: st.DrawFn):
    tokens = draw(st.integers(1, 400))
    cap = draw(st.one_of(st.none(), st.integers(0, 400)))
    return tokens, cap, draw(st.lists(replicas(tokens), min_size=1, max_size=5))


@given(fleets(), st.floats(0, 1), st.sampled_from([0.0, 1.5]))
@pytest.mark.parametrize("compiled", [False, True])
def test_every_replica_has_the_price_that_is_stated_anew(compiled, fleet, trust, fault) -> None:
    tokens, cap, drawn = fleet
    places = [
        standing(here, offered, on_device, wait, trust, fault)
        for here, offered, on_device, wait in drawn
    ]
    figures, rates = [one[:-8] for one in places], np.array([one[-8:] for one in places])
    with pytest.MonkeyPatch.context() as patch:
        if compiled:
            pricing.warm()
        else:
            patch.setattr(pricing, "ready", lambda: False)
        prices = pricing.price_each(figures, rates, tokens, cap)
    for place, (here, offered, on_device, wait) in enumerate(drawn):
        way = plain_best_way(here, offered, tokens, on_device, cap)
        terms = plain_terms(here, way, tokens, wait, trust, fault)
        told = appraise(Candidate(name="a", reuse=offered), places[place], prices.at(place))
        assert told == Appraisal(
            replica="a",
            score=pytest.approx(terms.score, rel=1e-12, abs=ROUNDING),
            terms=told.terms,
            tokens=way.tokens,
            device_tokens=min(on_device, way.tokens),
            predicted_tokens=max(
                min(on_device, way.tokens) - (offered.device.tokens if offered else 0), 0
            ),
            source=way.source,
            memory_bytes=way.memory_bytes,
            storage_bytes=way.storage_bytes,
            load_cap=way.load_cap,
            reuse=offered,
            trust=trust,
        )
        assert told.terms.score == told.score == prices.score[place]
        assert told.terms.first_token == prices.first_token[place]
        assert prices.offered[place] == max(way.tokens, offered.storage.tokens if offered else 0)
        for name in Terms.__struct_fields__:
            expected = pytest.approx(getattr(terms, name), rel=1e-12, abs=ROUNDING)
            assert getattr(told.terms, name) == expected


@given(fleets())
def test_compiled_and_plain_prices_are_equal_to_the_last_bit(fleet) -> None:
    tokens, cap, drawn = fleet
    pricing.warm()
    places = [standing(here, offered, there, wait) for here, offered, there, wait in drawn]
    figures, rates = [one[:-8] for one in places], np.array([one[-8:] for one in places])
    fast = pricing.price_each(figures, rates, tokens, cap)
    for place, here in enumerate(places):
        price = Price()
        choose_way(here, float(tokens), UNCAPPED if cap is None else float(cap), price)
        add_up(here, float(tokens), price)
        assert fast.at(place) == price


@given(profiles, cases(), st.floats(0, 4), st.floats(0, 1))
def test_terms_add_up_to_what_ways_are_compared_by(
    profile: Profile, case: tuple[int, int, int, int], crowd: float, read_wait: float
) -> None:
    tokens, device, memory, storage = case
    here = situation(profile, crowd=crowd, read_wait=read_wait)
    place, price = standing(here, reuse(device, memory, storage), device), Price()
    choose_way(place, tokens, UNCAPPED, price)
    add_up(place, tokens, price)
    terms = price.terms
    assert terms.score - terms.overhead == pytest.approx(price.seconds, rel=1e-9)
    wait = read_wait if price.storage_bytes else 0.0
    left = tokens - price.tokens
    work = Work(left, price.tokens, price.memory_bytes, price.storage_bytes, wait)
    units = zip(here.rates, work.units(), strict=True)
    assert terms.first_token == pytest.approx(sum(rate * unit for rate, unit in units))


def test_terms_are_named_like_the_factors() -> None:
    assert set(LEARNED) <= set(Terms.__struct_fields__)


def test_attention_doubles_where_it_is_stated() -> None:
    profile = Profile(prefill_tokens_per_s=1000, attention_doubles_at=8000)
    assert best_way(situation(profile), Reuse(), 8000, 0).seconds == pytest.approx(16.0)
    # The second half looks back at the first: three times its attention.
    second = best_way(situation(profile), reuse(4000, 4000, 4000), 8000, 4000).seconds
    assert second == pytest.approx(4.0 + 8.0 * 3 / 4)


@pytest.mark.parametrize(
    ("storage_bytes_per_s", "source", "cap"),
    [(10e9, "storage", None), (100e6, "memory", 4000)],
)
def test_a_slow_disk_is_not_read_but_memory_is(
    storage_bytes_per_s: float, source: str, cap: int | None
) -> None:
    here = situation(Profile(storage_bytes_per_s=storage_bytes_per_s))
    way = best_way(here, reuse(1000, 5000, 9000), 10_000, 1000)
    assert (way.source, way.load_cap) == (source, cap)


def test_the_fuller_the_fleet_the_sooner_a_load_is_worth_while() -> None:
    profile = Profile(storage_bytes_per_s=700e6)
    offered = reuse(0, 0, 8000)
    assert best_way(situation(profile), offered, 8100, 0).source == "none"
    assert best_way(situation(profile, crowd=2.0), offered, 8100, 0).source == "storage"
    assert best_way(situation(profile, crowd=2.0, read_wait=5.0), offered, 8100, 0).source == "none"


def test_a_read_that_the_wait_hides_costs_nothing() -> None:
    profile = Profile(storage_bytes_per_s=700e6)
    way = best_way(situation(profile, overlapped=60.0), reuse(0, 0, 8000), 8100, 0)
    assert way.source == "storage" and way.load_cap is None


@pytest.mark.parametrize(
    "bad",
    [
        {"prefill_tokens_per_s": 0.0},
        {"storage_bytes_per_s": -1.0},
        {"memory_latency_seconds": math.nan},
        {"overhead_seconds": math.inf},
        {"prefill_tokens_per_s": 1e-300},
        {"overlap": 1.5},
    ],
)
def test_a_profile_that_makes_no_sense_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Profile(**bad)
