"""The helpers that damage records do what they say, and nothing more."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.errors import BadReason, RecordError
from kvstrata.testing.damage import Damage, damage, forge
from kvstrata.tiers.catalog import check_record
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Loaded

NAMESPACE = Namespace("org/tiny", {"weights": "abc"})
GEOMETRIES = {0: GroupGeometry(0, GroupKind.FULL, 16, 3, (402,))}
KEY = make_key(hashlib.sha256(b"chunk").digest(), 0)


@pytest.fixture
def payload() -> np.ndarray:
    generator = np.random.default_rng(3)
    numbers = generator.normal(size=400).astype(np.float32)
    return np.frombuffer(numbers.tobytes()[: GEOMETRIES[0].payload_bytes], np.uint8)


@pytest.fixture
def tier(tmp_path: Path, payload: np.ndarray) -> FilesystemTier:
    tier = FilesystemTier(tmp_path, NAMESPACE, GEOMETRIES)
    tier.prepare()
    tier.write(KEY, memoryview(payload))
    return tier


@pytest.fixture
def path(tier: FilesystemTier) -> Path:
    return tier.directory / relative_path(KEY)


@pytest.mark.parametrize("kind", list(Damage))
def test_every_kind_is_found_for_its_own_reason(path: Path, kind: Damage) -> None:
    before = path.stat()
    check_record(path)
    damage(path, str(kind))
    if kind is not Damage.OTHER_GEOMETRY:  # only the engine knows how many tokens a block has
        with pytest.raises(RecordError) as caught:
            check_record(path)
        assert caught.value.reason is kind.reason
    after = path.stat()
    assert after.st_ino == before.st_ino
    sizes = {Damage.EMPTY: 0, Damage.TRUNCATED: before.st_size - 1}
    assert after.st_size == sizes.get(kind, before.st_size)


def test_there_is_damage_for_every_reason_that_bytes_can_give() -> None:
    not_bytes = {BadReason.PERMISSION, BadReason.IO, BadReason.SET_ASIDE}
    keys_alone = {BadReason.SEALED}  # the bytes are right, and who reads them lacks the key
    assert {kind.reason for kind in Damage} == set(BadReason) - not_bytes - keys_alone


def test_no_such_kind(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="moths"):
        damage(path, "moths")
    assert path.read_bytes() == before


def test_only_a_valid_record_can_be_damaged(path: Path) -> None:
    damage(path, Damage.EMPTY)
    with pytest.raises(RecordError):
        damage(path, Damage.BIT_FLIP)
    with pytest.raises(RecordError):
        forge(path, 1)


def test_a_forged_record_is_valid_and_wrong(
    path: Path, tier: FilesystemTier, payload: np.ndarray
) -> None:
    forge(path, 1)
    check_record(path)
    into = bytearray(len(payload))
    assert tier.read(KEY, memoryview(into)) == Loaded(len(payload))
    size = GEOMETRIES[0].block_bytes
    for block in range(3):
        # Half a word at the end of a block stays as it is.
        span = slice(block * size, block * size + size // 4 * 4)
        was = payload[span].view(np.float32)
        now = np.frombuffer(into[span], np.float32)
        assert np.isfinite(now).all()
        assert not np.isin(now, was).any()
        assert sorted(-now) == sorted(was)


def test_forging_follows_its_seed(path: Path) -> None:
    original = path.read_bytes()
    seen = set()
    for seed in (1, 2, 1):
        path.write_bytes(original)
        forge(path, seed)
        seen.add(path.read_bytes())
    assert len(seen) == 2
    assert original not in seen


def test_a_partial_record_can_be_forged(tier: FilesystemTier, payload: np.ndarray) -> None:
    other = make_key(hashlib.sha256(b"partial").digest(), 0)
    tier.write(other, memoryview(payload), 2)
    forge(tier.directory / relative_path(other), 1)
    into = memoryview(bytearray(len(payload)))
    assert isinstance(tier.read(other, into, 2), Loaded)
    assert into[804:] != payload[804:].tobytes()
