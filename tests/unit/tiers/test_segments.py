"""Chunks that share a file: what happens to one does not happen to the others."""

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstrata.chunks import segment
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, group_of, make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.errors import CONTENT_REASONS, BadReason, RecordError
from kvstrata.testing.damage import Damage, damage, forge
from kvstrata.tiers.catalog import check_record, iter_records, names_of
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.recency import TOUCH_SECONDS
from kvstrata.tiers.tier import Bad, Failed, Loaded, Missing, Present, ReadOutcome, Stored

NAMESPACE = Namespace("org/tiny", {"weights": "abc"})
GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 2, (500,)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 4, (4096,), window_tokens=32),
}
SIZE = GEOMETRIES[0].payload_bytes
SEGMENT = 20_000
"""20 chunks of group 0; of group 1 fewer than share a file."""
WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
BYTES_FOUND = set(Damage) - {Damage.OTHER_GEOMETRY}
"""What a look at a file without its engine finds."""


def keys_of(names: str | range, group: int = 0) -> list[ChunkKey]:
    return [make_key(hashlib.sha256(f"{name}".encode()).digest(), group) for name in names]


A, B, C, D, E, F = KEYS = keys_of("abcdef")


def open_tier(root: Path, segment: int = SEGMENT, **options: bool) -> FilesystemTier:
    tier = FilesystemTier(root / "kv", NAMESPACE, GEOMETRIES, segment=segment, **options)
    tier.prepare()
    return tier


@pytest.fixture
def tier(tmp_path: Path) -> FilesystemTier:
    return open_tier(tmp_path)


def payload_of(key: ChunkKey) -> memoryview:
    return memoryview(hashlib.shake_128(key).digest(GEOMETRIES[group_of(key)].payload_bytes))


def path_of(tier: FilesystemTier, key: ChunkKey) -> Path:
    return tier.directory / relative_path(key)


def write(tier: FilesystemTier, keys: Sequence[ChunkKey], first_block: int = 0) -> list[object]:
    return list(tier.write_many([(key, payload_of(key), first_block) for key in keys]))


def read(tier: FilesystemTier, keys: Sequence[ChunkKey], first_block: int = 0) -> list[ReadOutcome]:
    """The outcomes; the bytes of what is loaded are checked."""
    buffers = [bytearray(GEOMETRIES[group_of(key)].payload_bytes) for key in keys]
    views = [memoryview(into) for into in buffers]
    outcomes = tier.read_many([(k, v, first_block) for k, v in zip(keys, views, strict=True)])
    for key, into, outcome in zip(keys, buffers, outcomes, strict=True):
        start = first_block * GEOMETRIES[group_of(key)].block_bytes
        if isinstance(outcome, Loaded):
            assert into[start:] == payload_of(key)[start:]
            assert not any(into[:start])
        elif isinstance(outcome, Missing):
            assert not any(into)
    return outcomes


def inodes(tier: FilesystemTier, keys: Sequence[ChunkKey]) -> set[int]:
    return {path_of(tier, key).stat().st_ino for key in keys}


def temporaries(tier: FilesystemTier) -> list[Path]:
    return [file.path for file in iter_records(tier.directory) if file.temporary]


# What shares a file.


def test_chunks_of_one_store_are_one_file_with_a_name_for_each(tier: FilesystemTier) -> None:
    assert write(tier, KEYS) == [Stored(SIZE)] * 6
    assert len(inodes(tier, KEYS)) == 1
    assert path_of(tier, A).stat().st_nlink == 6
    assert temporaries(tier) == []
    assert read(tier, KEYS) == [Loaded(SIZE)] * 6
    assert read(tier, KEYS[::-1], 1) == [Loaded(500)] * 6
    assert write(tier, KEYS) == [Present()] * 6
    assert sorted(tier.scan()) == sorted(KEYS)


def test_a_single_chunk_is_the_record_that_it_always_was(tier: FilesystemTier) -> None:
    write(tier, [A])
    plain = open_tier(tier.root.parent / "plain", segment=0)
    write(plain, [A, B])
    assert len(inodes(plain, [A, B])) == 2
    assert path_of(tier, A).read_bytes() == path_of(plain, A).read_bytes()


def test_segments_are_full_at_their_size_and_hold_one_group(tier: FilesystemTier) -> None:
    many, large = keys_of(range(50)), keys_of(range(5), group=1)
    mixed = [key for pair in zip(many[:5], large, strict=True) for key in pair] + many[5:]
    assert all(isinstance(outcome, Stored) for outcome in write(tier, mixed))
    links = sorted(
        {
            path.stat().st_ino: path.stat().st_nlink
            for path in (path_of(tier, key) for key in many)
        }.values()
    )
    assert links == [10, 20, 20]
    assert len(inodes(tier, large)) == 5, "so few large ones gain nothing by sharing"
    assert all(isinstance(outcome, Loaded) for outcome in read(tier, mixed))


def test_names_appear_in_the_order_of_the_chain(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked: list[str] = []
    link = os.link

    def record(source: str, target: str) -> None:
        assert all(tier.probe([key])[0] for key in KEYS[: len(linked)])
        link(source, target)
        linked.append(target)

    monkeypatch.setattr(os, "link", record)
    write(tier, KEYS)
    assert linked == [str(path_of(tier, key)) for key in KEYS]


def test_records_beside_segments(tier: FilesystemTier) -> None:
    write(tier, [B])
    assert write(tier, KEYS) == [Stored(SIZE), Present(), *[Stored(SIZE)] * 4]
    write(open_tier(tier.root.parent, segment=0), keys_of("xy"))
    assert read(tier, [*KEYS, *keys_of("xyz")]) == [*[Loaded(SIZE)] * 8, Missing()]


def test_a_file_is_opened_once_for_all_that_it_holds(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tier, KEYS)
    opened: list[str] = []
    open_ = os.open

    def record(path: str, flags: int, mode: int = 0o777) -> int:
        opened.append(path)
        return open_(path, flags, mode)

    monkeypatch.setattr(os, "open", record)
    assert read(tier, KEYS) == [Loaded(SIZE)] * 6
    assert opened == [str(path_of(tier, A))]


# Removal, and what takes a place.


def test_removal_takes_a_name_and_the_last_one_the_bytes(tier: FilesystemTier) -> None:
    write(tier, KEYS)
    for count, key in enumerate(KEYS, 1):
        assert tier.remove(key) and not tier.remove(key)
        assert read(tier, KEYS) == [*[Missing()] * count, *[Loaded(SIZE)] * (6 - count)]
        left = list(iter_records(tier.directory))
        assert len(left) == 6 - count
    assert write(tier, KEYS) == [Stored(SIZE)] * 6


def test_bytes_are_counted_once(tier: FilesystemTier) -> None:
    write(tier, KEYS)
    size = path_of(tier, A).stat().st_size
    assert size - 6 < sum(file.size for file in iter_records(tier.directory)) <= size
    tier.remove(A)
    assert size - 6 < sum(file.size for file in iter_records(tier.directory)) <= size


def test_all_names_of_a_file_are_known_from_each(tier: FilesystemTier) -> None:
    write(tier, KEYS, 1)
    write(tier, [F, *keys_of("x")])
    tier.remove(B)
    left = {path_of(tier, key) for key in (A, C, D, E)}
    for path in left:
        names = names_of(path)
        assert names[0] == path and set(names) == left and len(names) == 4
    inode = {path_of(tier, key).stat().st_ino for key in (F, *keys_of("x"))}
    assert set(names_of(path_of(tier, F))) == {path_of(tier, key) for key in (F, *keys_of("x"))}
    assert len(inode) == 1
    write(tier, keys_of("y"))
    assert names_of(path_of(tier, keys_of("y")[0])) == [path_of(tier, keys_of("y")[0])]


def test_more_complete_chunks_leave_the_segment(tier: FilesystemTier) -> None:
    write(tier, KEYS, 1)
    before = path_of(tier, A).stat().st_ino
    assert write(tier, [B, C]) == [Stored(SIZE)] * 2
    assert write(tier, KEYS, 1) == [Present()] * 6
    outcomes = read(tier, KEYS)
    assert outcomes == [Missing(), Loaded(SIZE), Loaded(SIZE), *[Missing()] * 3]
    assert read(tier, KEYS, 1) == [Loaded(500)] * 6
    assert path_of(tier, A).stat().st_ino == before != path_of(tier, B).stat().st_ino
    assert temporaries(tier) == []


# Damage.


@pytest.mark.parametrize("kind", list(Damage))
@pytest.mark.parametrize("together", [True, False])
def test_damage_is_named_and_only_what_is_bad_goes(
    tier: FilesystemTier, kind: Damage, together: bool
) -> None:
    write(tier, KEYS)
    write(tier, keys_of("xy"))
    damage(path_of(tier, C), kind)
    outcomes = read(tier, KEYS) if together else [read(tier, [key])[0] for key in KEYS]
    bad = {key for key, one in zip(KEYS, outcomes, strict=True) if isinstance(one, Bad)}
    if kind is Damage.TRUNCATED:
        assert bad == {C, D, E, F}
    else:
        assert bad == ({C} if kind in (Damage.BIT_FLIP, Damage.SWAPPED_KEY) else set(KEYS))
    for key, outcome in zip(KEYS, outcomes, strict=True):
        if isinstance(outcome, Bad):
            assert outcome.reason is kind.reason
            assert str(path_of(tier, key)) in outcome.detail
            assert path_of(tier, key).exists() != (kind.reason in CONTENT_REASONS)
    assert read(tier, keys_of("xy")) == [Loaded(SIZE)] * 2
    assert all(
        isinstance(outcome, Stored if key in bad else Present)
        for key, outcome in zip(KEYS, write(tier, KEYS), strict=True)
    )
    assert read(tier, KEYS) == [Loaded(SIZE)] * 6


def test_a_good_copy_is_found_where_the_segments_is_bad(tier: FilesystemTier) -> None:
    write(tier, KEYS)
    damage(path_of(tier, C), Damage.BIT_FLIP)
    other = tier.root / "aside"
    write(second := open_tier(other), [C])
    path_of(second, C).replace(path_of(tier, C))
    assert read(tier, KEYS) == [Loaded(SIZE)] * 6


def test_a_forged_chunk_is_found_by_nobody_below_the_model(tier: FilesystemTier) -> None:
    write(tier, KEYS)
    forge(path_of(tier, C), 1)
    for key in KEYS:
        check_record(path_of(tier, key))
    into = bytearray(SIZE)
    assert tier.read(C, memoryview(into)) == Loaded(SIZE) and into != payload_of(C)
    assert read(tier, [A, B, D, E, F]) == [Loaded(SIZE)] * 5


@pytest.mark.parametrize("kind", sorted(BYTES_FOUND))
def test_the_catalog_sees_what_the_tier_sees(tier: FilesystemTier, kind: Damage) -> None:
    write(tier, KEYS)
    for key in KEYS:
        assert check_record(path_of(tier, key)).key == key
    damage(path_of(tier, C), kind)
    with pytest.raises(RecordError) as caught:
        check_record(path_of(tier, C))
    assert caught.value.reason is kind.reason
    if kind is Damage.BIT_FLIP:
        assert check_record(path_of(tier, C), deep=False).key == C
        assert check_record(path_of(tier, B)).key == B


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_segment_is_bad_or_harmless(
    tier: FilesystemTier, data: st.DataObject
) -> None:
    for key in KEYS:
        tier.remove(key)
    write(tier, KEYS, data.draw(st.sampled_from([0, 1])))
    path = path_of(tier, A)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        end = data.draw(st.sampled_from([len(content), 800]))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), 9000, 4096, 4095, 0]))])
    for first_block in (0, 1):
        for outcome in read(tier, data.draw(st.permutations(KEYS)), first_block):
            assert isinstance(outcome, Loaded | Missing | Bad)


def test_an_unreadable_place_costs_only_the_chunks_in_it(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tier, KEYS)
    table = segment.decode(path_of(tier, A).read_bytes())
    bad = range(table.entries[C].offset, table.entries[D].offset)
    preadv = os.preadv

    def fail(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        end = offset + sum(map(len, buffers))
        if offset < bad.stop and end > bad.start:
            raise OSError(errno.EIO, "no such sector")
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", fail)
    outcomes = read(tier, KEYS)
    assert isinstance(outcomes[2], Bad) and outcomes[2].reason is BadReason.IO
    assert [one for i, one in enumerate(outcomes) if i != 2] == [Loaded(SIZE)] * 5
    assert path_of(tier, C).exists()


# Recency.


def test_recency_is_renewed_once_for_the_file(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tier, KEYS)
    long_ago = time.time() - 2 * TOUCH_SECONDS
    os.utime(path_of(tier, A), (long_ago, long_ago))
    touched: list[int] = []
    utime = os.utime

    def record(fd: int) -> None:
        touched.append(fd)
        utime(fd)

    monkeypatch.setattr(os, "utime", record)
    read(tier, KEYS)
    read(tier, KEYS)
    assert len(touched) == 1
    assert path_of(tier, F).stat().st_mtime > long_ago + TOUCH_SECONDS


# File systems without links, full ones, and writers that die.


@pytest.mark.parametrize("number", WITHOUT_LINKS)
def test_without_links_each_chunk_has_its_file(
    tier: FilesystemTier,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def fail(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    assert write(tier, KEYS) == [Stored(SIZE)] * 6
    assert write(tier, keys_of("xyz")) == [Stored(SIZE)] * 3
    assert len(inodes(tier, [*KEYS, *keys_of("xyz")])) == 9
    assert read(tier, KEYS) == [Loaded(SIZE)] * 6
    assert temporaries(tier) == []
    assert len(caplog.records) == (number != errno.EMLINK)


def test_a_link_that_fails_costs_its_chunk(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def fail(source: str, target: str) -> None:
        if target == str(path_of(tier, C)):
            raise OSError(errno.ENOSPC, "full")
        link(source, target)

    monkeypatch.setattr(os, "link", fail)
    outcomes = write(tier, KEYS)
    assert isinstance(outcomes[2], Failed) and outcomes[2].reason == "ENOSPC"
    assert outcomes[:2] + outcomes[3:] == [Stored(SIZE)] * 5
    monkeypatch.undo()
    assert read(tier, KEYS) == [Loaded(SIZE), Loaded(SIZE), Missing(), *[Loaded(SIZE)] * 3]
    assert write(tier, KEYS)[2] == Stored(SIZE)


def test_what_cannot_be_written_is_nowhere(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwritev", fail)
    outcomes = write(tier, KEYS)
    assert all(isinstance(one, Failed) and one.reason == "ENOSPC" for one in outcomes)
    assert list(iter_records(tier.directory)) == []


class Killed(BaseException):
    """The process ends here: nothing behind it runs."""


def steps() -> Iterator[tuple[str, int]]:
    for call, times in (("open", 1), ("pwritev", 1), ("link", 6), ("rename", 1), ("unlink", 1)):
        yield from ((call, turn) for turn in range(times))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("call", "turn"), list(steps()))
def test_a_writer_that_dies_leaves_whole_chunks(
    tmp_path: Path, call: str, turn: int, after: bool
) -> None:
    tier = open_tier(tmp_path)
    write(tier, [B], 1)  # which makes the writer replace it, by rename
    pid = os.fork()
    if pid == 0:
        real, count = getattr(os, call), [0]

        def die(*args: object, **kwargs: object) -> object:
            writes = call != "open" or bool(int(str(args[1])) & os.O_CREAT)
            if writes and count[0] == turn and not after:
                os._exit(9)
            answer = real(*args, **kwargs)
            if writes and count[0] == turn:
                os._exit(9)
            count[0] += writes
            return answer

        setattr(os, call, die)
        write(tier, KEYS)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert all(isinstance(one, Loaded | Missing) for one in read(tier, KEYS))
    for path in temporaries(tier):
        path.unlink()  # as whoever clears up does, sooner or later
    outcomes = read(tier, KEYS)
    assert all(isinstance(one, Loaded | Missing) for one in outcomes)
    assert read(tier, [B], 1) == [Loaded(500)]
    held = [isinstance(one, Loaded) for i, one in enumerate(outcomes) if i != 1]
    assert held == sorted(held, reverse=True), "the chain has a hole"
    write(tier, KEYS)
    assert read(tier, KEYS) == [Loaded(SIZE)] * 6


def test_fsync_covers_the_file_before_its_names_and_each_directory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = open_tier(tmp_path, fsync=True)
    seen: list[str] = []
    fsync, link = os.fsync, os.link

    def record_fsync(fd: int) -> None:
        seen.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    def record_link(source: str, target: str) -> None:
        seen.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "link", record_link)
    write(tier, KEYS)
    first_link, last_link = seen.index("link"), len(seen) - seen[::-1].index("link")
    assert "/.tmp-" in seen[first_link - 1]
    synced = seen[last_link:]
    assert {str(path_of(tier, key).parent) for key in KEYS} <= set(synced)
    assert len(synced) == len(set(synced))


# Two processes, and everything in any order.


def test_two_processes_write_and_remove_the_same_chunks(tmp_path: Path) -> None:
    keys = keys_of(range(40))
    open_tier(tmp_path)
    children = []
    for seed in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                tier = open_tier(tmp_path)
                for turn in range(30):
                    part = keys[(turn * (7 + seed)) % 30 :][:10]
                    assert all(isinstance(o, Stored | Present) for o in write(tier, part))
                    assert all(isinstance(o, Loaded | Missing) for o in read(tier, keys))
                    tier.remove(part[turn % 10])
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    tier = open_tier(tmp_path)
    assert temporaries(tier) == []
    write(tier, keys)
    assert read(tier, keys) == [Loaded(SIZE)] * 40


some = st.lists(st.sampled_from(keys_of(range(9))), min_size=1, max_size=9, unique=True)


class SegmentMachine(RuleBasedStateMachine):
    """Two tiers at one place, one of which packs, against a dictionary; chunks are damaged in between."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="kvstrata-test-"))
        self.packing = open_tier(self.place, segment=6 * SIZE)
        self.plain = open_tier(self.place, segment=0)
        self.model: dict[ChunkKey, int] = {}
        self.bad: set[ChunkKey] = set()

    @rule(keys=some, first_block=st.integers(0, 1), packing=st.booleans())
    def write(self, keys: list[ChunkKey], first_block: int, packing: bool) -> None:
        outcomes = write(self.packing if packing else self.plain, keys, first_block)
        for key, outcome in zip(keys, outcomes, strict=True):
            if self.model.get(key, 2) <= first_block:
                assert outcome == Present()
            else:
                assert outcome == Stored(SIZE - 500 * first_block)
                self.model[key] = first_block
                self.bad.discard(key)

    @rule(keys=some, first_block=st.integers(0, 1), packing=st.booleans())
    def read(self, keys: list[ChunkKey], first_block: int, packing: bool) -> None:
        outcomes = read(self.packing if packing else self.plain, keys, first_block)
        for key, outcome in zip(keys, outcomes, strict=True):
            if self.model.get(key, 2) > first_block:
                assert outcome == Missing()
            elif key in self.bad:
                assert isinstance(outcome, Bad) and outcome.reason is BadReason.CHECKSUM
                self.bad.remove(key)
                del self.model[key]
            else:
                assert outcome == Loaded(SIZE - 500 * first_block)

    @rule(keys=some)
    def remove(self, keys: list[ChunkKey]) -> None:
        for key in keys:
            assert self.plain.remove(key) == (self.model.pop(key, None) is not None)
            self.bad.discard(key)

    @rule(keys=some)
    def damage(self, keys: list[ChunkKey]) -> None:
        for key in keys:
            if key in self.model and key not in self.bad:
                damage(path_of(self.plain, key), Damage.BIT_FLIP)
                self.bad.add(key)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert sorted(self.plain.scan()) == sorted(self.model)
        assert self.packing.probe(list(self.model)) == [True] * len(self.model)
        assert temporaries(self.plain) == []

    def teardown(self) -> None:
        shutil.rmtree(self.place)


TestSegmentMachine = SegmentMachine.TestCase
