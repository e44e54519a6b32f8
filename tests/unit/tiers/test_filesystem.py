"""The filesystem tier beside its contract: damage, other programs, and the directory itself."""

import errno
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, group_of, make_key, relative_path
from kvstrata.chunks.namespace import NAMESPACE_FILE, Namespace
from kvstrata.errors import CONTENT_REASONS, BadReason, ConfigError, RecordError
from kvstrata.fileio.publish import publish
from kvstrata.testing.damage import Damage, damage
from kvstrata.tiers.catalog import check_record
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.recency import TOUCH_SECONDS, Recency
from kvstrata.tiers.tier import Bad, Failed, Loaded, Missing, Present, Stored

NAMESPACE = Namespace("org/tiny", {"weights": "abc"})
GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 4, (500,)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 4, (300,), window_tokens=32),
}
KEY = make_key(hashlib.sha256(b"chunk").digest(), 0)
OTHER = make_key(hashlib.sha256(b"other").digest(), 0)


def open_tier(root: Path, namespace: Namespace = NAMESPACE, **options: Any) -> FilesystemTier:
    tier = FilesystemTier(root / "kv", namespace, GEOMETRIES, **options)
    tier.prepare()
    return tier


@pytest.fixture
def tier(tmp_path: Path) -> FilesystemTier:
    return open_tier(tmp_path)


def payload_of(key: ChunkKey) -> memoryview:
    return memoryview(hashlib.shake_128(key).digest(GEOMETRIES[group_of(key)].payload_bytes))


def path_of(tier: FilesystemTier, key: ChunkKey) -> Path:
    return tier.directory / relative_path(key)


def read(tier: FilesystemTier, key: ChunkKey = KEY, first_block: int = 0) -> object:
    """The outcome; when it is `Loaded`, the bytes are checked."""
    geometry = GEOMETRIES[group_of(key)]
    into = bytearray(geometry.payload_bytes)
    outcome = tier.read(key, memoryview(into), first_block)
    start = first_block * geometry.block_bytes
    if isinstance(outcome, Loaded):
        assert into[start:] == payload_of(key)[start:]
    return outcome


# Damage.


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", list(Damage))
def test_damage_is_named_and_condemned_files_go(
    tmp_path: Path, kind: Damage, read_only: bool
) -> None:
    writer = open_tier(tmp_path)
    writer.write(KEY, payload_of(KEY))
    writer.write(OTHER, payload_of(OTHER))
    path = path_of(writer, KEY)
    damage(path, kind)
    tier = open_tier(tmp_path, read_only=read_only)
    outcome = read(tier)
    assert isinstance(outcome, Bad)
    assert outcome.reason is kind.reason
    assert str(path) in outcome.detail
    condemned = kind.reason in CONTENT_REASONS and not read_only
    assert path.exists() != condemned
    assert isinstance(read(tier), Missing if condemned else Bad)
    assert isinstance(read(tier, OTHER), Loaded)


@pytest.mark.parametrize("kind", list(Damage))
def test_the_next_write_replaces_what_is_damaged(tier: FilesystemTier, kind: Damage) -> None:
    tier.write(KEY, payload_of(KEY))
    damage(path_of(tier, KEY), kind)
    outcome = tier.write(KEY, payload_of(KEY))
    if kind is Damage.BIT_FLIP:
        # Only reading the payload could tell, which a write does not; the next read finds it.
        assert outcome == Present()
        assert isinstance(read(tier), Bad)
        outcome = tier.write(KEY, payload_of(KEY))
    assert isinstance(outcome, Stored)
    assert isinstance(read(tier), Loaded)


def test_a_tail_is_not_spoiled_by_damage_before_it(tier: FilesystemTier) -> None:
    tier.write(KEY, payload_of(KEY))
    path = path_of(tier, KEY)
    content = bytearray(path.read_bytes())
    content[4096 + 500] ^= 1
    path.write_bytes(content)
    assert read(tier, first_block=2) == Loaded(1000)
    outcome = read(tier, first_block=1)
    assert isinstance(outcome, Bad) and outcome.reason is BadReason.CHECKSUM


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_file_is_bad_or_harmless(tier: FilesystemTier, data: st.DataObject) -> None:
    tier.remove(KEY)
    tier.write(KEY, payload_of(KEY), data.draw(st.sampled_from([0, 2])))
    path = path_of(tier, KEY)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        end = data.draw(st.sampled_from([len(content), 208]))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    ends = st.sampled_from([len(content), len(content) - 1, 4096, 4095, 100, 0])
    path.write_bytes(content[: data.draw(ends)])
    # `read` checks the bytes whenever the answer is Loaded.
    read(tier, first_block=data.draw(st.integers(0, 3)))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=7000))
def test_any_bytes_under_a_chunks_name_are_bad(tier: FilesystemTier, content: bytes) -> None:
    path = path_of(tier, KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert isinstance(read(tier), Bad)
    assert not path.exists()


def test_a_file_that_was_replaced_meanwhile_is_not_condemned(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.write(KEY, payload_of(KEY))
    path = path_of(tier, KEY)
    good = path.read_bytes()
    damage(path, Damage.BIT_FLIP)
    fstat = os.fstat

    def replace_after(fd: int) -> os.stat_result:
        status = fstat(fd)
        monkeypatch.undo()
        publish(str(path), [memoryview(good)])
        return status

    monkeypatch.setattr(os, "fstat", replace_after)
    assert isinstance(read(tier), Bad)
    assert isinstance(read(tier), Loaded)


def test_a_directory_in_a_chunks_place(tier: FilesystemTier) -> None:
    path_of(tier, KEY).mkdir(parents=True)
    assert isinstance(read(tier), Bad)
    outcome = tier.write(KEY, payload_of(KEY))
    assert isinstance(outcome, Failed) and outcome.reason == "EISDIR"
    assert list(tier.scan()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOENT, errno.ESTALE])
def test_what_cannot_be_looked_at_is_no_miss(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def stat(*_: object, **__: object) -> os.stat_result:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("kvstrata.tiers.filesystem.os.lstat", stat)
    absent = number in (errno.ENOENT, errno.ESTALE)
    assert tier.probe([KEY]) == [not absent]


def test_a_file_in_a_directorys_place(tier: FilesystemTier) -> None:
    path_of(tier, KEY).parent.parent.write_bytes(b"")
    assert read(tier) == Missing()
    assert tier.probe([KEY]) == [False]
    outcome = tier.write(KEY, payload_of(KEY))
    assert isinstance(outcome, Failed) and outcome.reason == "ENOTDIR"


@pytest.mark.parametrize(
    ("number", "reason"),
    [("EACCES", "permission"), ("EPERM", "permission"), ("EIO", "io"), ("EMFILE", "io")],
)
@pytest.mark.parametrize("call", ["open", "preadv"])
def test_errors_of_the_system_are_bad_and_condemn_nothing(
    tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch, number: str, reason: str, call: str
) -> None:
    tier.write(KEY, payload_of(KEY))

    def fail(*_args: object) -> int:
        raise OSError(getattr(errno, number), "planned")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        outcome = read(tier)
    assert isinstance(outcome, Bad) and outcome.reason.value == reason
    assert isinstance(read(tier), Loaded)


def test_a_stale_handle_is_a_miss(tier: FilesystemTier, monkeypatch: pytest.MonkeyPatch) -> None:
    tier.write(KEY, payload_of(KEY))

    def fail(*_args: object) -> int:
        raise OSError(errno.ESTALE, "planned")

    monkeypatch.setattr(os, "preadv", fail)
    assert read(tier) == Missing()


# What else lies about.


def test_temporary_and_foreign_files_are_no_chunks(tier: FilesystemTier) -> None:
    tier.write(KEY, payload_of(KEY))
    beside = path_of(tier, KEY)
    (beside.parent / ".tmp-1-0123456789abcdef").write_bytes(beside.read_bytes())
    (beside.parent / "notes.txt").write_text("hello")
    (beside.parent / (beside.name + "~")).write_bytes(b"")
    assert list(tier.scan()) == [KEY]


def test_other_namespaces_are_not_seen(tmp_path: Path, tier: FilesystemTier) -> None:
    other = open_tier(tmp_path, Namespace("org/tiny", {"weights": "other"}))
    tier.write(KEY, payload_of(KEY))
    assert read(other) == Missing()
    assert other.probe([KEY]) == [False]
    assert list(other.scan()) == []


def test_a_directory_that_vanishes_is_made_anew(tier: FilesystemTier) -> None:
    tier.write(KEY, payload_of(KEY))
    shutil.rmtree(tier.root)
    assert read(tier) == Missing()
    assert tier.probe([KEY]) == [False]
    assert list(tier.scan()) == []
    assert tier.remove(KEY) is False
    assert isinstance(tier.write(KEY, payload_of(KEY)), Stored)
    assert isinstance(read(tier), Loaded)
    assert (tier.directory / NAMESPACE_FILE).read_text() == NAMESPACE.to_json()


# Recency.


def test_reading_renews_a_files_time_but_rarely(tier: FilesystemTier) -> None:
    tier.write(KEY, payload_of(KEY))
    path = path_of(tier, KEY)
    old = time.time() - TOUCH_SECONDS - 60
    os.utime(path, (old, old))
    read(tier)
    assert path.stat().st_mtime > time.time() - 600
    recent = time.time() - TOUCH_SECONDS / 2
    os.utime(path, (recent, recent))
    read(tier)
    assert path.stat().st_mtime == pytest.approx(recent, abs=1)


@pytest.mark.parametrize("options", [{"recency": Recency(enabled=False)}, {"read_only": True}])
def test_nothing_is_touched_where_it_must_not_be(tmp_path: Path, options: dict[str, Any]) -> None:
    open_tier(tmp_path).write(KEY, payload_of(KEY))
    tier = open_tier(tmp_path, **options)
    path = path_of(tier, KEY)
    os.utime(path, (1e9, 1e9))
    assert isinstance(read(tier), Loaded)
    assert path.stat().st_mtime == 1e9


def test_a_bad_or_missing_chunk_is_not_renewed(tier: FilesystemTier) -> None:
    tier.write(KEY, payload_of(KEY), 2)
    path = path_of(tier, KEY)
    os.utime(path, (1e9, 1e9))
    assert read(tier) == Missing()
    assert path.stat().st_mtime == 1e9


# Preparing.


def test_the_constructor_touches_nothing(tmp_path: Path) -> None:
    FilesystemTier(tmp_path / "kv", NAMESPACE, GEOMETRIES)
    assert list(tmp_path.iterdir()) == []


def test_preparing_twice_and_describing(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "deep" / "er")
    open_tier(tmp_path / "deep" / "er")
    assert (tier.directory / NAMESPACE_FILE).read_text() == NAMESPACE.to_json()
    assert sorted(path.name for path in tier.directory.iterdir()) == [NAMESPACE_FILE]


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "kv").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"{tmp_path}/kv: Not a directory \(ENOTDIR\); give"):
        open_tier(tmp_path)


def test_a_namespace_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / NAMESPACE.directory_name).write_bytes(b"")
    with pytest.raises(ConfigError, match=NAMESPACE.directory_name):
        open_tier(tmp_path)


def test_a_missing_root_is_not_made_by_one_who_only_reads(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file or directory \(ENOENT\)"):
        open_tier(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_before_the_first_writer(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    reader = open_tier(tmp_path, read_only=True)
    assert list((tmp_path / "kv").iterdir()) == []
    assert read(reader) == Missing()
    open_tier(tmp_path).write(KEY, payload_of(KEY))
    assert isinstance(read(reader), Loaded)
    outcome = reader.write(OTHER, payload_of(OTHER))
    assert isinstance(outcome, Failed) and outcome.reason == "read_only"


def test_an_edited_description_is_refused(tmp_path: Path, tier: FilesystemTier) -> None:
    path = tier.directory / NAMESPACE_FILE
    document = json.loads(path.read_text())
    document["covers"]["weights"] = "xyz"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="describes another engine"):
        open_tier(tmp_path)


def test_one_model_under_two_names_is_one_namespace(tmp_path: Path) -> None:
    open_tier(tmp_path, Namespace("/models/a/tiny", NAMESPACE.facts)).write(KEY, payload_of(KEY))
    assert isinstance(read(open_tier(tmp_path, Namespace("org/tiny", NAMESPACE.facts))), Loaded)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'"covers"', b"7"])
def test_a_damaged_description_is_written_anew(
    tmp_path: Path, tier: FilesystemTier, content: bytes
) -> None:
    path = tier.directory / NAMESPACE_FILE
    path.write_bytes(content)
    open_tier(tmp_path, read_only=True)
    assert path.read_bytes() == content
    open_tier(tmp_path)
    assert path.read_text() == NAMESPACE.to_json()


# What the catalog sees.


def test_the_catalog_agrees_with_the_tier(tier: FilesystemTier) -> None:
    tier.write(KEY, payload_of(KEY), 1)
    header = check_record(path_of(tier, KEY))
    assert (header.key, header.first_block, header.namespace) == (KEY, 1, NAMESPACE.fingerprint)


def test_verifying_does_not_hang_on_a_pipe(tier: FilesystemTier) -> None:
    path = path_of(tier, KEY)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(RecordError, match="not a file"):
        check_record(path)
