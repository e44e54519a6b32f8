"""The storage part of the eviction benchmark: what its replay serves and writes, what its figures mean."""

import itertools
from collections.abc import Sequence

import pytest

from kvstrata.chunks.key import make_key
from kvstrata.tiers.admission import ADMISSIONS
from lab.bench import eviction_storage
from lab.bench.eviction_storage import Case
from lab.bench.replay import MODELS, Step, limits, steps
from lab.bench.replay_storage import Result, Storage, replay
from lab.bench.traces import STORAGE_TRACES, trace

COUNT = 80
CASES = list(itertools.product(STORAGE_TRACES, eviction_storage.MODEL_NAMES))


def replayed(name: str, model: str) -> tuple[Sequence[Step], int, int]:
    """The trace, the bytes of everything distinct, and the tokens served with room for all of it."""
    found = steps(trace(STORAGE_TRACES[name](5), COUNT), MODELS[model])
    limit = limits(found, MODELS[model])
    return found, limit.distinct_bytes, limit.served


@pytest.mark.parametrize(("name", "model"), CASES)
def test_with_room_for_all_and_every_write_all_is_served_and_nothing_is_written_twice(
    name: str, model: str
) -> None:
    found, distinct, served = replayed(name, model)
    for engines in (1, 3):
        every = {
            policy: replay(found, MODELS[model], distinct, None, make, engines)
            for policy, make in ADMISSIONS.items()
        }
        assert every["always"].served == served
        assert every["always"].written == distinct
        for one in every.values():
            assert one.served <= served and one.written <= distinct
            assert 0 <= one.from_storage <= one.served
        assert every["second-sight"].written <= every["measured"].written


def test_a_bound_is_kept_and_what_was_read_last_stays() -> None:
    storage = Storage(100)
    first, second, *others = (make_key(number.to_bytes(16, "big"), 0) for number in range(12))
    storage.write(first, 10)
    storage.write(second, 10)
    storage.read(first)
    for key in others:
        storage.write(key, 10)
        assert storage.used == sum(storage.held.values()) <= 97
    assert first not in storage.held and second not in storage.held
    storage.read(others[3])
    for number in range(12, 18):
        storage.write(make_key(number.to_bytes(16, "big"), 0), 10)
    assert others[3] in storage.held and others[4] not in storage.held
    assert storage.written == 180
    storage.write(others[3], 10)
    assert storage.written == 180, "it is there"


def test_the_same_figures_each_time() -> None:
    first, again = (eviction_storage.cases_of("mixture", "full", 40, 3) for _ in range(2))
    assert first == again
    assert {(case.engines, case.percent) for case in first} == {
        (engines, percent)
        for engines in eviction_storage.ENGINES
        for percent in eviction_storage.PERCENTS
    }


def test_the_figures_are_of_the_policies_that_they_name() -> None:
    mib = eviction_storage.MIB

    def case(served: int, written: int) -> Case:
        return Case(
            "t",
            "full",
            1,
            20,
            1000,
            {
                "always": Result(100, 50, 10 * mib),
                "second-sight": Result(50, 0, 1 * mib),
                "measured": Result(served, 40, written * mib),
            },
        )

    figures = eviction_storage.figures([case(100, 5), case(81, 5)])
    assert figures["served_vs_always_measured"] == pytest.approx(0.9)
    assert figures["worst_served_vs_always_measured"] == pytest.approx(0.81)
    assert figures["written_vs_always_measured"] == pytest.approx(0.5)
    assert figures["served_per_byte_vs_always_measured"] == pytest.approx(1.8)
    assert figures["from_storage_per_MiB_measured"] == pytest.approx(8)
    assert figures["from_storage_per_MiB_second-sight"] == 0
