"""What namespaces may ask of an eviction: floors, weights, and those that nobody uses; and when they lie."""

import json
import math
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import NAMESPACE_FILE
from kvstrata.clock import MonotonicClock
from kvstrata.tiers.keeper import Keeper
from kvstrata.tiers.shares import BURST, HIGH, LOW, Bound, Claim, Held, Sample, evict
from kvstrata.tiers.spaces import (
    TERMS_FILE,
    Space,
    Terms,
    claims_of,
    declare,
    find_spaces,
    read_terms,
    remove_shell,
    windowed_groups,
)

DAY = 86_400.0
NOW = 1000.0
SIZE = 1000
SPACES = [f"{name}-{'0' * 32}" for name in "abc"]

claims = st.builds(
    Claim, st.sampled_from([0.0, 30.0, 1e9]), st.sampled_from([0.5, 1.0, 4.0]), st.booleans()
)
sizes = st.tuples(st.sampled_from(SPACES), st.integers(1, 9), st.integers(0, 999))


@given(
    st.lists(sizes, min_size=1, max_size=25),
    st.dictionaries(st.sampled_from(SPACES), claims, min_size=1),
    st.integers(0, 150),
)
@settings(max_examples=300, deadline=None)
def test_what_is_due_heeds_claims(
    files: list[tuple[str, int, int]], asked: dict[str, Claim], bound: int
) -> None:
    """Against a model that takes file after file; the sample is all that there is."""
    held = [Held(str(n), size, used, space=at) for n, (at, size, used) in enumerate(files)]
    seen = Sample(1.0, held)
    due = evict(seen, bound, 0, asked, NOW, burst=1.0, reach=1.0)
    used = sum(one.nbytes for one in held)
    assert (due is None) == (used <= HIGH * bound)
    if due is None:
        return
    assert due.nbytes == pytest.approx(used - LOW * bound)
    surplus = used - LOW * bound
    expected, in_spite = _model(held, asked, surplus)
    for one in expected:
        assert one.used <= due.of(one.space).until
    spare = _spare(held, asked)
    for space in asked:
        until = max((one.used for one in expected if one.space == space), default=-math.inf)
        nbytes = math.inf if in_spite else spare.get(space, 0.0)
        assert due.of(space).until == until and due.of(space).nbytes == nbytes


def _spare(held: list[Held], asked: dict[str, Claim]) -> dict[str, float]:
    spare = Counter[str]()
    for one in held:
        spare[one.space] += one.nbytes
    for space, claim in asked.items():
        if not claim.unused:
            spare[space] = max(spare[space] - claim.floor, 0.0)
    return dict(spare)


def _model(held: list[Held], asked: dict[str, Claim], surplus: float) -> tuple[list[Held], bool]:
    """The unused first, then by age divided by weight; and whether that had to be in spite of floors."""

    def rank(one: Held) -> tuple[bool, float]:
        claim = asked.get(one.space, Claim())
        return not claim.unused, (one.used - NOW) / claim.weight

    def take(spare: dict[str, float]) -> list[Held]:
        taken: list[Held] = []
        for one in sorted(held, key=rank):
            if sum(o.nbytes for o in taken) >= surplus:
                break
            mine = sum(o.nbytes for o in taken if o.space == one.space)
            if mine < spare.get(one.space, 0.0):
                taken.append(one)
        return taken

    taken = take(_spare(held, asked))
    if sum(one.nbytes for one in taken) < surplus:
        return take(dict.fromkeys(SPACES, math.inf)), True
    return taken, False


def fill(root: Path, space: str, count: int, age: float, step: float = 1.0) -> list[Path]:
    """Chunks of which each is a little older than the one before, and a description of the namespace."""
    made = []
    newest = _now(root) - age
    for number in range(count):
        digest = random.Random(f"{space}{number}").randbytes(32)
        path = root / space / relative_path(make_key(digest, 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE))
        os.utime(path, (newest - number * step,) * 2)
        made.append(path)
    describe(root / space, age)
    return made


def describe(directory: Path, age: float = 0.0) -> None:
    path = directory / NAMESPACE_FILE
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text('{"covers": {"groups": [{"group": 0, "kind": "full"}]}}')
    os.utime(path, (_now(directory) - age,) * 2)


def _now(directory: Path) -> float:
    probe = directory / "probe"
    probe.touch()
    found = probe.stat().st_mtime
    probe.unlink()
    return found


def evicted(root: Path, capacity: int, **options: float) -> int:
    """Looks until nothing more is to go; how many."""
    kept = Keeper(
        root, Bound(capacity), MonotonicClock(), print, chance=random.Random(1), **options
    )
    for number in range(80):
        done = kept.look()
        assert done is not None
        if not done.removed:
            return number
    raise AssertionError("there is no end of it")


def left(paths: list[Path]) -> int:
    return sum(path.exists() for path in paths)


def test_a_floor_is_kept_while_others_have_any(tmp_path: Path) -> None:
    old = fill(tmp_path, SPACES[0], 100, age=30 * DAY)
    young = fill(tmp_path, SPACES[1], 100, age=10)
    declare(tmp_path / SPACES[0], Terms(floor=60 * SIZE))
    evicted(tmp_path, 100 * SIZE)
    assert 60 <= left(old) <= 63
    assert left(old) + left(young) <= 97
    assert left(old[:40]) == 40 and left(young[:20]) == 20, "the youngest of each"
    evicted(tmp_path, 66 * SIZE)
    assert left(old) >= 60 and left(young) <= 6


def test_floors_larger_than_the_bound_do_not_block(tmp_path: Path) -> None:
    one = fill(tmp_path, SPACES[0], 100, age=500)
    other = fill(tmp_path, SPACES[1], 100, age=10)
    for space in SPACES[:2]:
        declare(tmp_path / space, Terms(floor=1e12))
    evicted(tmp_path, 80 * SIZE)
    assert left(one) + left(other) <= 80 * HIGH
    assert left(one) < left(other), "then age counts alone"


def test_a_weight_divides_ages(tmp_path: Path) -> None:
    """Of two namespaces in equal use the one that counts four times keeps files that are four times older."""
    light = fill(tmp_path, SPACES[0], 400, age=0, step=10)
    heavy = fill(tmp_path, SPACES[1], 400, age=0, step=10)
    declare(tmp_path / SPACES[1], Terms(weight=4.0))
    evicted(tmp_path, 400 * SIZE)
    assert left(heavy) / left(light) == pytest.approx(4.0, rel=0.25)


def test_a_namespace_that_nobody_uses_goes_first(tmp_path: Path) -> None:
    unused = fill(tmp_path, SPACES[0], 100, age=31 * DAY, step=0.0)
    old = fill(tmp_path, SPACES[1], 100, age=40 * DAY, step=0.0)
    describe(tmp_path / SPACES[1])  # an engine says that it is in use
    declare(tmp_path / SPACES[0], Terms(floor=1e9, weight=1000.0))
    describe(tmp_path / SPACES[0], 31 * DAY)
    evicted(tmp_path, 110 * SIZE, unused_after=30 * DAY)
    # But for what one eviction takes too much in the half of the directories that it sees.
    assert left(old) >= 95 and left(unused) <= 12
    evicted(tmp_path, 50 * SIZE, unused_after=30 * DAY)
    assert left(old) <= 50 and left(unused) <= 2


def test_while_there_is_room_what_nobody_uses_stays_and_only_its_shell_goes(tmp_path: Path) -> None:
    unused = fill(tmp_path, SPACES[0], 10, age=99 * DAY)
    fill(tmp_path, SPACES[1], 1, age=0)
    describe(tmp_path / SPACES[2], age=99 * DAY)
    declare(tmp_path / SPACES[2], Terms(floor=1.0))
    describe(tmp_path / SPACES[2], age=99 * DAY)
    evicted(tmp_path, 10**9)
    assert (tmp_path / SPACES[2]).exists(), "without an age that never happens"
    evicted(tmp_path, 10**9, unused_after=30 * DAY)
    assert not (tmp_path / SPACES[2]).exists() and left(unused) == 10
    for path in unused:
        path.unlink()
    describe(tmp_path / SPACES[0], 99 * DAY)
    evicted(tmp_path, 10**9, unused_after=30 * DAY)
    assert not (tmp_path / SPACES[0]).exists() and (tmp_path / SPACES[1]).exists()


@pytest.mark.parametrize(
    "name", ["notes.txt", "ab/notes.txt", "ab/cd/notes.txt", "ab/cd/.tmp-1-aa"]
)
def test_a_shell_with_anything_else_in_it_stays(tmp_path: Path, name: str) -> None:
    directory = tmp_path / SPACES[0]
    describe(directory)
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    assert not remove_shell(str(directory))
    assert path.read_text() == "mine" and (directory / NAMESPACE_FILE).exists()
    path.unlink()
    assert remove_shell(str(directory)) and not directory.exists()


@pytest.mark.parametrize("level", ["ab", "ab/cd"])
def test_a_shell_is_not_followed_elsewhere(tmp_path: Path, level: str) -> None:
    directory, elsewhere = tmp_path / SPACES[0], tmp_path / "elsewhere"
    describe(directory)
    (elsewhere / "cd").mkdir(parents=True)
    (directory / level).parent.mkdir(exist_ok=True)
    (directory / level).symlink_to(elsewhere)
    assert not remove_shell(str(directory))
    assert (elsewhere / "cd").is_dir()


@given(
    st.lists(
        st.tuples(
            st.floats(0, 99), st.sampled_from([0.0, 5.0]), st.one_of(st.none(), st.floats(0, 99))
        ),
        max_size=5,
    ),
    st.sampled_from([0.0, 30.0]),
)
@settings(deadline=None)
def test_who_is_used_is_known_by_its_stamp_or_its_youngest_file(
    told: list[tuple[float, float, float | None]], unused_after: float
) -> None:
    spaces = [
        Space(str(n), Terms(floor=floor), stamped=100 - stamp)
        for n, (stamp, floor, _) in enumerate(told)
    ]
    newest = {str(n): 100 - age for n, (*_, age) in enumerate(told) if age is not None}
    found = claims_of(spaces, newest, 100.0, unused_after)
    for n, (stamp, floor, age) in enumerate(told):
        unused = unused_after > 0 and min(stamp, math.inf if age is None else age) > unused_after
        assert found.get(str(n), Claim()) == Claim(floor, 1.0, unused)
        assert (str(n) in found) == bool(floor or unused)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"covers": null}',
        '{"covers": {"groups": {"0": "full"}}}',
        '{"covers": {"groups": [{"group": 0, "kind": "telepathy"}]}}',
        '{"covers": {"groups": [{"group": [0], "kind": "full"}]}}',
        '{"covers": {"groups": [{"group": 1e999, "kind": "full"}]}}',
        '{"covers": {"groups": [{"group": -1, "kind": "window"}, {"group": 0, "kind": "full"}]}}',
        '{"covers": {"groups": [{"group": 99999999999, "kind": "state"}, {"group": 0, "kind": "full"}]}}',
        '{"covers": {"groups": '
        + json.dumps([{"group": n, "kind": "state"} for n in range(9)])
        + "}}",
        "[" * 100_000,
    ],
)
def test_a_description_that_lies_does_not_keep_anything(tmp_path: Path, text: str) -> None:
    paths = fill(tmp_path, SPACES[0], 60, age=10)
    (tmp_path / SPACES[0] / NAMESPACE_FILE).write_text(text)
    evicted(tmp_path, 30 * SIZE)
    # Each by itself: the youngest stay, and no more goes than is too much.
    assert 28 <= left(paths) <= 29 and left(paths[:20]) == 20


def test_groups_of_which_one_is_not_known_say_nothing(tmp_path: Path) -> None:
    describe(tmp_path)
    assert windowed_groups(str(tmp_path)) == {0: False}
    groups = [{"group": 0, "kind": "full"}, {"group": 1, "kind": "of a later release"}]
    (tmp_path / NAMESPACE_FILE).write_text(json.dumps({"covers": {"groups": groups}}))
    assert windowed_groups(str(tmp_path)) == {}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ('{"floor": 5.0, "weight": 2, "ttl": 9}', Terms(5.0, 2.0, 9.0)),
        ('{"floor": -5, "weight": -2, "ttl": -9}', Terms(0.0, 1e-6, 0.0)),
        ('{"weight": 1e300}', Terms(weight=1e6)),
        ('{"weight": 0, "of a later release": 1}', Terms(weight=1e-6)),
        ('{"floor": "much"}', Terms()),
        ('{"floor": NaN}', Terms()),
        ('{"floor": 1' + "0" * 400 + "}", Terms()),
        ("[1, 2]", Terms()),
        ("", Terms()),
        ("{" + " " * 5000 + '"floor": 1}', Terms()),
    ],
)
def test_terms_that_lie_are_none(tmp_path: Path, text: str, terms: Terms) -> None:
    (tmp_path / TERMS_FILE).write_text(text)
    found = read_terms(str(tmp_path))
    assert found == terms and all(map(math.isfinite, (found.floor, found.weight, found.ttl)))


def test_what_an_engine_declares_is_what_others_read(tmp_path: Path) -> None:
    directory = tmp_path / SPACES[0]
    describe(directory, age=50 * DAY)
    now = declare(directory, Terms(floor=7.0, ttl=60.0))
    (space,) = find_spaces(tmp_path)
    assert space.terms == Terms(floor=7.0, ttl=60.0) and space.stamped == now
    assert space.windowed == {0: False}
    declare(directory, Terms())
    assert not (directory / TERMS_FILE).exists() and read_terms(str(directory)) == Terms()
    (directory / NAMESPACE_FILE).unlink()
    (space,) = find_spaces(tmp_path)
    assert space.stamped == -math.inf, "nobody says that it is used"
    with pytest.raises(FileNotFoundError):
        declare(directory, Terms())


def test_links_are_no_namespaces(tmp_path: Path) -> None:
    describe(tmp_path / "elsewhere")
    (tmp_path / SPACES[0]).symlink_to(tmp_path / "elsewhere")
    describe(tmp_path / SPACES[1])
    assert [one.path for one in find_spaces(tmp_path)] == [str(tmp_path / SPACES[1])]


@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 9))
@settings(deadline=None)
def test_at_most_a_twentieth_goes_at_a_time(held: int, bound: int, chunk: int) -> None:
    """However far down the bound fell; or what eight writers' chunks take, where that is more."""
    seen = Sample(1.0, [Held(str(n), 1.0, n) for n in range(held)])
    due = evict(seen, bound, chunk)
    if due is not None:
        assert due.nbytes <= max(BURST * held, 8 * chunk)
