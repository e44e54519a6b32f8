"""What is worth a write: against a set of what was seen, and with traffic whose future is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.key import make_key
from kvstrata.tiers.admission import ADMISSIONS, Always, Kind, Measured, SecondSight
from kvstrata.tiers.admission_sights import WAYS, Prefixes, Sights, prefixes_of

STEP = 128


def prefixes(*numbers: int) -> Prefixes:
    return np.array(numbers, dtype=np.uint64)


def chain(name: int, length: int) -> Prefixes:
    return np.random.default_rng(name).integers(1, 2**63, length).astype(np.uint64)


def test_a_chunks_prefix_is_the_same_in_every_group() -> None:
    digest = bytes(range(32))
    found = prefixes_of([make_key(digest, group) for group in range(3)])
    assert len(set(found.tolist())) == 1
    assert found[0] == int.from_bytes(digest[-8:], "big")
    assert prefixes_of([make_key(bytes(32), 0)])[0] != found[0]
    assert len(prefixes_of([])) == 0


@given(st.lists(st.lists(st.integers(1, 60), max_size=8, unique=True), max_size=12))
def test_notes_are_those_of_a_dictionary_while_there_is_room(rounds: list[list[int]]) -> None:
    sights, model = Sights(1024), dict[int, int]()
    for number, names in enumerate(rounds, 1):
        places = sights.find(prefixes(*names))
        assert [place >= 0 for place in places] == [name in model for name in names]
        known = [name for name in names if name in model]
        seen = places[places >= 0]
        assert sights.notes(seen).tolist() == [model[name] for name in known]
        sights.note(seen, np.full(len(seen), number))
        new = [name for name in names if name not in model]
        assert not len(sights.add(prefixes(*new), np.full(len(new), number)))
        model.update(dict.fromkeys(names, number))


def test_the_oldest_is_forgotten_and_the_table_never_grows() -> None:
    sights = Sights(WAYS)
    size = sights.nbytes
    for name in range(1, 101):
        forgotten = sights.add(prefixes(name), np.array([name % 1000]))
        assert forgotten.tolist() == ([name - WAYS] if name > WAYS else [])
    places = sights.find(prefixes(*range(1, 101)))
    assert [name for name, place in enumerate(places, 1) if place >= 0] == list(range(93, 101))
    assert sights.nbytes == size


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 6)), max_size=20))
def test_second_sight_admits_exactly_what_was_there_before(
    requests: list[tuple[int, int, int]],
) -> None:
    policy, seen, twice = SecondSight(), set[int](), set[int]()
    for name, length, held in requests:
        prompt = chain(name, length)
        policy.saw(prompt, STEP, held * STEP)
        for place, one in enumerate(prompt.tolist()):
            if one in seen or place < held:
                twice.add(one)
            seen.add(one)
        everything = np.concatenate([chain(n, 6) for n in range(6)])
        assert policy.admits(everything).tolist() == [one in twice for one in everything.tolist()]


def test_always_admits_what_it_never_saw() -> None:
    policy = Always()
    assert not policy.learns
    assert policy.admits(chain(1, 5)).all()


@pytest.mark.parametrize("policy", [SecondSight, Measured])
def test_an_answer_that_is_asked_again_is_worth_it(policy: type[SecondSight | Measured]) -> None:
    one = policy()
    for name in range(500, 3000):  # answers that are never asked again
        one.offered(chain(name, 2))
    answer = chain(1, 3)
    one.offered(answer)
    assert not one.admits(answer).any()
    one.saw(answer, STEP, 0)
    assert one.admits(answer).all()


def test_what_never_comes_back_is_soon_not_written_and_what_does_is() -> None:
    policy = Measured()
    first = chain(10**6, 4)
    policy.saw(first, STEP, 0)
    assert policy.admits(first).all(), "nothing is known yet, so all is written"
    for name in range(400):
        policy.saw(chain(name, 4), STEP, 0)
    once = chain(10**6 + 1, 4)
    policy.saw(once, STEP, 0)
    assert not policy.admits(once).any()
    policy.saw(once, STEP, 0)
    assert policy.admits(once).all(), "a second time is worth a write, whatever its kind"
    for name in range(10**6 + 2, 10**6 + 200):  # from now on every prompt comes twice
        policy.saw(chain(name, 4), STEP, 0)
        policy.saw(chain(name, 4), STEP, 0)
    again = chain(2 * 10**6, 4)
    policy.saw(again, STEP, 0)
    assert policy.admits(again).all()


def test_kinds_are_told_apart() -> None:
    policy = Measured()
    stem = chain(1, 8)
    policy.saw(stem, STEP, 0)
    for name in range(2, 600):  # branches behind a beginning of many come back, fresh ones do not
        branch = np.concatenate([stem, chain(name, 4)])
        policy.saw(branch, STEP, 8 * STEP)
        policy.saw(branch, STEP, 8 * STEP)
        policy.saw(chain(10**6 + name, 12), STEP, 0)
    shares = policy.shares()
    octave = int(np.log2(10 * STEP))
    assert shares[Kind.BRANCHED, octave] > 0.9 > 0.1 > shares[Kind.FRESH, octave]
    branch, fresh = np.concatenate([stem, chain(10**7, 4)]), chain(10**7 + 1, 12)
    policy.saw(branch, STEP, 8 * STEP)
    policy.saw(fresh, STEP, 0)
    assert policy.admits(branch).all() and not policy.admits(fresh).any()


@pytest.mark.parametrize("name", ADMISSIONS)
def test_no_prefixes_are_no_trouble(name: str) -> None:
    policy = ADMISSIONS[name]()
    policy.saw(prefixes(), STEP, 0)
    policy.offered(prefixes())
    assert not len(policy.admits(prefixes()))
