"""What strangers find, plant and lay in the way: modes of files, links, pipes, roots that all may write."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.errors import BadReason, ConfigError
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Bad, Failed, Loaded, Missing, ReadOutcome, Stored

GEOMETRY = GroupGeometry(0, GroupKind.FULL, 16, 2, (32,))
NAMESPACE = Namespace("m", {"a": 1})


def open_tier(root: Path, **options: Sharing | bool) -> FilesystemTier:
    tier = FilesystemTier(root, NAMESPACE, {0: GEOMETRY}, **options)  # type: ignore[arg-type]
    tier.prepare()
    return tier


def key_of(number: int) -> ChunkKey:
    return make_key(hashlib.sha256(b"%d" % number).digest(), 0)


def store(tier: FilesystemTier, *numbers: int) -> list[object]:
    return list(
        tier.write_many([(key_of(one), memoryview(key_of(one) * 2)[:64], 0) for one in numbers])
    )


def read(tier: FilesystemTier, number: int) -> ReadOutcome:
    into = bytearray(64)
    outcome = tier.read(key_of(number), memoryview(into))
    assert not isinstance(outcome, Loaded) or into == (key_of(number) * 2)[:64]
    return outcome


def path_of(tier: FilesystemTier, number: int) -> Path:
    return tier.directory / relative_path(key_of(number))


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
@pytest.mark.parametrize("sharing", list(Sharing))
def test_modes_are_as_asked_whatever_the_mask(tmp_path: Path, umask: int, sharing: Sharing) -> None:
    before = os.umask(umask)
    try:
        tier = open_tier(tmp_path / "above" / "root", sharing=sharing)
        tier.introduce()
        store(tier, 0)
        store(tier, *range(1, 10))
    finally:
        os.umask(before)
    seen = [tmp_path / "above", *(tmp_path / "above").rglob("*")]
    wanted = {
        Sharing.USER: (0o700, 0o600),
        Sharing.GROUP: (0o2770, 0o660),
    }[sharing]
    assert {stat.S_IMODE(path.stat().st_mode) for path in seen if path.is_dir()} == {wanted[0]}
    assert {stat.S_IMODE(path.stat().st_mode) for path in seen if path.is_file()} == {wanted[1]}
    assert len([path for path in seen if path.is_file()]) == 12


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_root_that_everybody_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(ConfigError, match=r"everybody may write in .*world_writable"):
        open_tier(root)
    assert list(root.iterdir()) == []
    assert store(open_tier(root, world_writable=True), 0) == [Stored(64)]
    assert store(open_tier(root / "kvstrata"), 0) == [Stored(64)]  # only the root itself counts


def test_a_link_in_a_files_place_is_a_miss_and_replaced(tmp_path: Path) -> None:
    tier, other = open_tier(tmp_path / "root"), open_tier(tmp_path / "other")
    for number in range(9):
        store(other, number)
        path_of(tier, number).parent.mkdir(parents=True, exist_ok=True)
        path_of(tier, number).symlink_to(path_of(other, number))
    for number in range(9):
        outcome = read(tier, number)
        assert isinstance(outcome, Bad) and outcome.reason is BadReason.FOREIGN
        assert path_of(tier, number).is_symlink()
    store(tier, 0)
    store(tier, *range(1, 9))
    for number in range(9):
        assert read(tier, number) == Loaded(64) and not path_of(tier, number).is_symlink()
        assert read(other, number) == Loaded(64)


def test_nothing_is_written_renewed_or_removed_through_a_directory_that_is_a_link(
    tmp_path: Path,
) -> None:
    tier, other = open_tier(tmp_path / "root"), open_tier(tmp_path / "other")
    store(other, 0)
    path = path_of(other, 0)
    path.write_bytes(b"damaged, which condemns it")
    os.utime(path, (1, 1))
    path_of(tier, 0).parent.parent.symlink_to(path.parent.parent)
    outcome = read(tier, 0)
    assert isinstance(outcome, Bad) and outcome.reason is BadReason.TRUNCATED
    assert not tier.remove(key_of(0))
    (failed,) = store(tier, 0)
    assert isinstance(failed, Failed) and failed.reason == "ELOOP"
    assert all(isinstance(one, Failed | Stored) for one in store(tier, *range(9)))
    assert path.read_bytes() == b"damaged, which condemns it" and path.stat().st_mtime == 1
    files = [one for one in (tmp_path / "other").rglob("*") if one.is_file()]
    assert sorted(files) == sorted([path, other.directory / "namespace.json"])
    path_of(tier, 0).parent.parent.unlink()
    assert store(tier, 0) == [Stored(64)]


def test_a_namespace_that_is_a_link_is_not_written(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / NAMESPACE.directory_name).symlink_to(elsewhere)
    tier = open_tier(tmp_path / "root")
    (outcome,) = store(tier, 0)
    assert isinstance(outcome, Failed) and list(elsewhere.iterdir()) == []
    assert read(tier, 0) == Missing()


def test_pipes_and_directories_keep_nobody_waiting(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for number, make in enumerate((os.mkfifo, os.mkdir)):
        path_of(tier, number).parent.mkdir(parents=True, exist_ok=True)
        make(path_of(tier, number))
        outcome = read(tier, number)
        assert isinstance(outcome, Bad) and outcome.reason is BadReason.FOREIGN
    assert store(tier, 0) == [Stored(64)]
    path_of(tier, 0).unlink()
    os.mkfifo(path_of(tier, 0))
    assert store(tier, 0) == [Stored(64)] and read(tier, 0) == Loaded(64)


def test_a_pipe_as_description_or_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    (tier.directory / "namespace.json").unlink()
    os.mkfifo(tier.directory / "namespace.json")
    os.mkfifo(tmp_path / ".kvstrata-place")
    again = open_tier(tmp_path)
    again.introduce()
    assert again.owner is not None and store(again, 0) == [Stored(64)]


@pytest.mark.parametrize("length", [16, 32])
def test_names_are_digits_whatever_the_hash(length: int) -> None:
    for content in (b"/../../etc/passwd\0" * 2, b"\xff" * 32, b". /\\\n" * 8):
        path = relative_path(make_key(content[:length], 7))
        assert set(path) <= set("0123456789abcdef/.gkv") and ".." not in path
        assert [len(part) for part in path.split("/")] == [2, 2, 2 * length + 6]
