"""A hybrid's boundary on disk goes as one: against a model of all files, with segments and on real ones."""

import json
import os
import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, group_of, hash_of, make_key, relative_path
from kvstrata.chunks.namespace import NAMESPACE_FILE, Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.keeper import Keeper
from kvstrata.tiers.ring import Contents, Directories, walk
from kvstrata.tiers.shares import Bound, Eviction, Held, Part
from kvstrata.tiers.spaces import windowed_groups
from kvstrata.tiers.sweep import sweep
from kvstrata.tiers.tier import Stored
from kvstrata.tiers.together import as_one, dependents

WINDOWED = {0: False, 1: True, 2: True, 3: False}
"""Two full groups and two windowed ones."""
SIZE = 1024
GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 1, (SIZE,)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 1, (SIZE,), window_tokens=17),
    2: GroupGeometry(2, GroupKind.STATE, 16, 1, (SIZE,)),
}
NAMESPACE = Namespace(
    "m", {"groups": [{"group": one.group, "kind": one.kind.value} for one in GEOMETRIES.values()]}
)


def digest_of(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def held(number: int, group: int, used: float, nbytes: float = 10.0) -> Held:
    key = make_key(digest_of(number), group)
    return Held(relative_path(key), nbytes, used, key=key, space="/s")


directories = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(1, 9), max_size=20
).map(lambda ages: [held(number, group, used) for (number, group), used in ages.items()])
"""What one directory may hold: chunks of five boundaries, of four groups and one that nobody knows."""


@given(directories, st.permutations(range(20)))
def test_ages_are_those_of_the_youngest_that_needs_it(files: list[Held], order: list[int]) -> None:
    files = [files[at] for at in order if at < len(files)]
    found = as_one(files, WINDOWED)
    assert sorted(one.path for one in found) == sorted(one.path for one in files)
    ages = {one.key: one.used for one in files}
    for one in found:
        boundary = {k: v for k, v in ages.items() if hash_of(k) == hash_of(one.key)}
        windows = [v for k, v in boundary.items() if WINDOWED.get(group_of(k))]
        known = [v for k, v in boundary.items() if group_of(k) in WINDOWED]
        match WINDOWED.get(group_of(one.key)):
            case True:
                assert one.used == max(windows)
            case False:
                assert one.used == max(known)
            case None:
                assert one.used == ages[one.key]


@given(directories)
def test_without_windows_beside_full_groups_each_file_is_for_itself(files: list[Held]) -> None:
    assert set(as_one(files, {})) == set(files)
    assert set(as_one(files, {0: False})) == set(files)


@given(
    directories, st.integers(0, 10), st.integers(0, 200), st.one_of(st.none(), st.integers(0, 90))
)
@settings(max_examples=300)
def test_however_much_is_due_no_boundary_is_left_half(
    files: list[Held], until: int, nbytes: int, spare: int | None
) -> None:
    """Of windows all or none, and the full groups' chunks never without them."""
    removed: list[str] = []
    parts = {} if spare is None else {"/s": Part(until, spare)}
    due = Eviction(until, nbytes, parts)
    contents = Contents(files=as_one(files, WINDOWED))
    real, os.unlink = os.unlink, removed.append  # type: ignore[assignment]
    try:
        swept = sweep(iter([(1, contents)]), due, 0.0, lambda: False, {"/s": WINDOWED})
    finally:
        os.unlink = real
    assert swept.removed == removed and swept.nbytes == 10.0 * len(removed)
    gone = set(removed)
    boundaries: dict[bytes, list[Held]] = defaultdict(list)
    for one in files:
        if group_of(one.key) in WINDOWED:
            boundaries[hash_of(one.key)].append(one)
    for members in boundaries.values():
        windows = [one.path in gone for one in members if WINDOWED[group_of(one.key)]]
        full = [one.path for one in members if not WINDOWED[group_of(one.key)]]
        assert len(set(windows)) <= 1
        if any(path in gone for path in full):
            assert all(windows)
            last_window = max(
                (removed.index(o.path) for o in members if o.path not in full), default=-1
            )
            assert all(removed.index(path) > last_window for path in full if path in gone)
    # What stays was younger than what went, or something that it belongs to was, or enough had gone.
    if nbytes > len(removed) * 10 and spare is None:
        for one in contents.files:
            assert (one.path in gone) == (one.used <= until)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=12),
    st.sampled_from([WINDOWED, {0: False}, {}, {0: True, 1: True}]),
)
def test_what_depends_on_chunks_are_the_windows_of_their_boundaries(
    chosen: list[tuple[int, int]], windowed: dict[int, bool]
) -> None:
    keys = [make_key(digest_of(number), group) for number, group in chosen]
    found = dependents(keys, windowed)
    touched = {digest_of(number) for number, group in chosen if group in windowed}
    model = {make_key(one, g) for one in touched for g in windowed if windowed[g]} - set(keys)
    assert len(found) == len(set(found)) and set(found) == model


def filled(
    root: Path, boundaries: int, together: int
) -> tuple[FilesystemTier, list[list[ChunkKey]]]:
    """A hybrid's boundaries, the older the lower their number; so many full chunks share a file."""
    tier = FilesystemTier(root, NAMESPACE, GEOMETRIES)
    tier.prepare()
    payload = memoryview(bytearray(SIZE))
    keys = [[make_key(digest_of(n), group) for group in GEOMETRIES] for n in range(boundaries)]
    for begin in range(0, boundaries, together):
        given = [(key, payload, 0) for one in keys[begin : begin + together] for key in one]
        assert all(isinstance(one, Stored) for one in tier.write_many(given))
        for at, one in enumerate(keys[begin : begin + together]):
            for key in one:
                used = 1e9 + begin + (at if together < 6 else 0)
                os.utime(tier.directory / relative_path(key), (used, used))
    return tier, keys


def evicted(root: Path, share: float) -> None:
    seen = Keeper(root, Bound(capacity=10**12), MonotonicClock(), print).look()
    assert seen is not None
    bound = Bound(capacity=int(share * seen.usage.used))
    kept = Keeper(root, bound, MonotonicClock(), print, chance=random.Random(1))
    for _ in range(60):
        done = kept.look()
        if done is None or not done.removed:
            return
    raise AssertionError("there is no end of it")


def test_the_groups_are_those_that_the_namespace_describes(tmp_path: Path) -> None:
    tier, _ = filled(tmp_path, 1, 1)
    assert windowed_groups(str(tier.directory)) == {0: False, 1: True, 2: True}


def test_on_disk_what_is_left_of_a_boundary_can_be_used(tmp_path: Path) -> None:
    tier, keys = filled(tmp_path, 200, 1)
    # Half of the boundaries' full chunks were used much later than their windows.
    for number in range(0, 200, 2):
        os.utime(tier.directory / relative_path(keys[number][0]), (1.5e9 + number,) * 2)
    evicted(tmp_path, 0.5)
    there = [tuple(tier.probe(one)) for one in keys]
    assert set(there) <= {(True, True, True), (True, False, False), (False, False, False)}
    # A window goes by its own age, a full chunk that longer prefixes use stays.
    assert all(full for full, *_ in there[0::2])
    assert (True, False, False) in there[0::2] and (False, False, False) in there[1::2]


def test_one_window_that_was_used_keeps_its_whole_boundary(tmp_path: Path) -> None:
    tier, keys = filled(tmp_path, 100, 1)
    for number in range(20):
        os.utime(tier.directory / relative_path(keys[number][2]), (1e9 + 10_000,) * 2)
    evicted(tmp_path, 0.6)
    there = [tier.probe(one) for one in keys]
    assert all(len(set(one)) == 1 for one in there)
    assert all(all(one) for one in there[:20]) and sum(all(one) for one in there) < 65


def test_segments_take_the_windows_of_their_boundaries_with_them(tmp_path: Path) -> None:
    tier, keys = filled(tmp_path, 160, 16)
    assert (tier.directory / relative_path(keys[0][0])).stat().st_nlink == 16
    # Windows that were written again later have files of their own, and are as young as can be.
    payload = memoryview(bytearray(SIZE))
    for one in keys[:64:5]:
        for key in one[1:]:
            tier.remove(key)
            assert isinstance(tier.write(key, payload), Stored)
    evicted(tmp_path, 0.4)
    there = [tuple(tier.probe(one)) for one in keys]
    assert not {(False, True, True), (False, True, False), (False, False, True)} & set(there)
    assert (False, False, False) in there and (True, True, True) in there


@pytest.mark.parametrize("group", [-1, 2**32, 10**30])
def test_a_group_that_no_key_can_name_does_not_stop_who_evicts(tmp_path: Path, group: int) -> None:
    """Nor does it let one namespace's description decide for all: there each file is for itself."""
    tier, keys = filled(tmp_path, 96, 16)
    groups = [{"group": 0, "kind": "full"}, {"group": group, "kind": "window"}]
    (tier.directory / NAMESPACE_FILE).write_text(json.dumps({"covers": {"groups": groups}}))
    assert windowed_groups(str(tier.directory)) == {}
    evicted(tmp_path, 0.5)
    assert not any(tier.probe(keys[0])) and 0 < sum(map(all, map(tier.probe, keys))) < 64


def test_one_hash_in_two_namespaces_is_two_boundaries(tmp_path: Path) -> None:
    """Prompts have the same hashes under every model: what one can spare says nothing of the other."""
    spaces = [f"{tmp_path}/{name}-{'0' * 32}" for name in "ab"]
    for number in range(40):
        for at, space in enumerate(spaces):
            path = Path(space, relative_path(make_key(digest_of(number), 0)))
            path.parent.mkdir(parents=True)
            path.write_bytes(bytes(SIZE))
            os.utime(path, (1e9 + number, 1e9 + number + at / 2))
    due = Eviction(2e9, 1e9, {spaces[1]: Part(2e9, 5 * SIZE)})
    swept = sweep(walk(Directories(spaces), 0), due, 0.0, lambda: False)
    gone = [sum(path.startswith(f"{space}/") for path in swept.removed) for space in spaces]
    assert gone == [40, 5]
    due = Eviction(2e9, SIZE)
    assert len(sweep(walk(Directories(spaces[1:]), 0), due, 0.0, lambda: False).removed) == 1
