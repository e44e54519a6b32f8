"""Sealed files: what was stored comes back, and nothing that anybody else made or moved does."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key, relative_path
from kvstrata.chunks.keyring import COPIED_BYTES, Keyring
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.record import NO_TENANT, describe, encode
from kvstrata.chunks.sealing import SealKind
from kvstrata.chunks.segment import encode as encode_segment
from kvstrata.chunks.segment import lay_out
from kvstrata.errors import BadReason
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Bad, Loaded, Missing, Present, ReadOutcome, Stored

KINDS = list(SealKind)
OLD, NEW = bytes(range(32)), bytes(range(1, 33))
SMALL = GroupGeometry(0, GroupKind.FULL, 16, 3, (30, 7))


def namespace_of(kind: SealKind | None, name: str = "m") -> Namespace:
    return Namespace(name, {"seal": kind and kind.name, "name": name})


def open_tier(
    root: Path,
    kind: SealKind | None,
    keys: Sequence[bytes] = (OLD,),
    geometry: GroupGeometry = SMALL,
    name: str = "m",
    namespace: Namespace | None = None,
) -> FilesystemTier:
    tier = FilesystemTier(
        root,
        namespace or namespace_of(kind, name),
        {0: geometry},
        keyring=None if kind is None else Keyring(keys, kind),
    )
    tier.prepare()
    return tier


def key_of(number: int) -> ChunkKey:
    return make_key(hashlib.sha256(b"%d" % number).digest(), 0)


def payload_of(key: ChunkKey, geometry: GroupGeometry = SMALL) -> bytes:
    return hashlib.shake_128(key).digest(geometry.payload_bytes)


def store(tier: FilesystemTier, keys: Sequence[ChunkKey], geometry: GroupGeometry = SMALL) -> None:
    done = tier.write_many([(key, memoryview(payload_of(key, geometry)), 0) for key in keys])
    assert all(isinstance(one, Stored) for one in done)


def read(
    tier: FilesystemTier, key: ChunkKey, geometry: GroupGeometry = SMALL, first: int = 0
) -> ReadOutcome:
    """Reads, and checks that bytes that are said to be the chunk's are."""
    into = bytearray(geometry.payload_bytes)
    outcome = tier.read(key, memoryview(into), first)
    if isinstance(outcome, Loaded):
        at = first * geometry.block_bytes
        assert into == bytes(at) + payload_of(key, geometry)[at:]
    return outcome


def path_of(tier: FilesystemTier, key: ChunkKey) -> Path:
    return tier.directory / relative_path(key)


def reason_of(outcome: ReadOutcome) -> BadReason:
    assert isinstance(outcome, Bad), outcome
    return outcome.reason


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    blocks=st.integers(1, 300),
    size=st.integers(1, 5000) | st.sampled_from([COPIED_BYTES, COPIED_BYTES + 1, (1 << 20) + 5]),
    count=st.integers(1, 9),
    first=st.integers(0, 5),
    wanted=st.integers(0, 5),
)
def test_what_was_sealed_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    kind: SealKind,
    blocks: int,
    size: int,
    count: int,
    first: int,
    wanted: int,
) -> None:
    blocks = min(blocks, max(1, (3 << 20) // size // count))
    first, wanted = min(first, blocks - 1), min(wanted, blocks - 1)
    geometry = GroupGeometry(0, GroupKind.FULL, 16, blocks, (size,))
    root = tmp_path_factory.mktemp("root")
    tier = open_tier(root, kind, geometry=geometry)
    keys = [key_of(number) for number in range(count)]
    payloads = {key: memoryview(payload_of(key, geometry)) for key in keys}
    stored = tier.write_many([(key, payloads[key], first) for key in keys])
    assert stored == [Stored((blocks - first) * size)] * count
    assert tier.write_many([(key, payloads[key], first) for key in keys]) == [Present()] * count
    for key in keys:
        outcome = read(tier, key, geometry, wanted)
        expected = Loaded((blocks - wanted) * size) if first <= wanted else Missing()
        assert outcome == expected
    buffers = [bytearray(geometry.payload_bytes) for _ in keys]
    together = tier.read_many(
        [(key, memoryview(buffer), first) for key, buffer in zip(keys, buffers, strict=True)]
    )
    assert together == [Loaded((blocks - first) * size)] * count
    assert [bytes(one[first * size :]) for one in buffers] == [
        bytes(payloads[key][first * size :]) for key in keys
    ]
    shutil.rmtree(root)


@pytest.mark.parametrize("count", [1, 8])
def test_only_encrypted_files_hide_what_they_hold(tmp_path: Path, count: int) -> None:
    keys = [key_of(number) for number in range(count)]
    for kind in KINDS:
        tier = open_tier(tmp_path / kind.name, kind)
        store(tier, keys)
        content = path_of(tier, keys[-1]).read_bytes()
        readable = [payload_of(keys[-1])[at : at + 8] in content for at in range(0, 104, 8)]
        assert all(readable) if kind is SealKind.AUTHENTICATED else not any(readable)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 6])
def test_any_changed_byte_is_refused_or_means_nothing(
    tmp_path: Path, kind: SealKind, count: int
) -> None:
    """Every byte of the header, of the table and of all blocks; behind these nothing means anything."""
    tier = open_tier(tmp_path, kind)
    keys = [key_of(number) for number in range(count)]
    key = keys[count // 2]
    store(tier, keys)
    path = path_of(tier, key)
    good = path.read_bytes()
    refused = 0
    # The first pages whole, then the parts of pages that blocks stand on.
    places = [at for at in range(len(good)) if at < 700 or at % 4096 < 112 or at % 97 == 0]
    for at in places:
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        path.unlink(missing_ok=True)
        path.write_bytes(bad)
        outcome = read(tier, key)
        if isinstance(outcome, Bad):
            refused += 1
        else:
            assert outcome == Loaded(111) and at >= 4096
    assert refused == sum(1 for at in places if at < 4096) + 111


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    for path, content in ((one, second), (other, first)):
        path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_counts_under_its_own_name_alone(tmp_path: Path, kind: SealKind) -> None:
    tier = open_tier(tmp_path, kind)
    for number in (0, 1):
        store(tier, [key_of(number)])
    _swap(path_of(tier, key_of(0)), path_of(tier, key_of(1)))
    assert reason_of(read(tier, key_of(0))) is BadReason.KEY
    assert reason_of(read(tier, key_of(1))) is BadReason.KEY


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_counts_in_its_own_namespace_alone(tmp_path: Path, kind: SealKind) -> None:
    tier, other = (open_tier(tmp_path, kind, name=name) for name in ("m", "n"))
    key = key_of(0)
    store(tier, [key])
    store(other, [key])
    moved = bytearray(path_of(other, key).read_bytes())
    path_of(tier, key).write_bytes(moved)
    assert reason_of(read(tier, key)) is BadReason.NAMESPACE
    moved[16:32] = tier._namespace.fingerprint
    path_of(tier, key).write_bytes(moved)
    assert reason_of(read(tier, key)) is BadReason.HEADER


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_tags_count_in_their_own_place_alone(tmp_path: Path, kind: SealKind) -> None:
    tier = open_tier(tmp_path, kind)
    key = key_of(0)
    store(tier, [key])
    path = path_of(tier, key)
    good = path.read_bytes()
    swapped = bytearray(good)
    swapped[4096 : 4096 + 37], swapped[4133 : 4133 + 37] = good[4133:4170], good[4096:4133]
    path.write_bytes(swapped)
    assert reason_of(read(tier, key)) is BadReason.CHECKSUM
    swapped[176:192], swapped[192:208] = good[192:208], good[176:192]  # their tags, too
    path.write_bytes(swapped)
    assert reason_of(read(tier, key)) is BadReason.HEADER
    tenant = bytearray(good)
    tenant[56] ^= 1
    path.write_bytes(tenant)
    assert reason_of(read(tier, key)) is BadReason.HEADER


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [False, True])
def test_a_planted_file_is_nothing(tmp_path: Path, kind: SealKind, together: bool) -> None:
    """Whoever can write the directory knows everything but the key; the next write takes its place."""
    tier = open_tier(tmp_path / "root", kind)
    keys = [key_of(number) for number in range(8 if together else 1)]
    forger = open_tier(tmp_path / "forged", None, namespace=tier._namespace)
    store(forger, keys)
    for key in keys:
        path_of(tier, key).parent.mkdir(parents=True)
        path_of(tier, key).write_bytes(path_of(forger, key).read_bytes())
    assert {reason_of(read(tier, key)) for key in keys} == {BadReason.VERSION}
    assert all(path_of(tier, key).exists() for key in keys)
    store(tier, keys)
    assert [read(tier, key) for key in keys] == [Loaded(111)] * len(keys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 8])
def test_keys_are_replaced_one_after_the_other(tmp_path: Path, kind: SealKind, count: int) -> None:
    keys = [key_of(number) for number in range(count)]
    store(open_tier(tmp_path, kind, [OLD]), keys)
    both = open_tier(tmp_path, kind, [NEW, OLD])
    assert [read(both, key) for key in keys] == [Loaded(111)] * count
    later = [key_of(number) for number in range(100, 100 + count)]
    store(both, later)
    new = open_tier(tmp_path, kind, [NEW])
    assert [read(new, key) for key in later] == [Loaded(111)] * count
    before = {key: path_of(new, key).stat().st_ino for key in keys}
    assert {reason_of(read(new, key)) for key in keys} == {BadReason.SEALED}
    assert {key: path_of(new, key).stat().st_ino for key in keys} == before
    store(new, keys)  # what cannot be opened is written anew
    assert [read(new, key) for key in keys] == [Loaded(111)] * count


def test_who_knows_no_seals_leaves_sealed_files_alone(tmp_path: Path) -> None:
    for kind in KINDS:
        sealed = open_tier(tmp_path / kind.name, kind)
        keys = [key_of(number) for number in range(8)]
        store(sealed, keys[:1])
        store(sealed, keys[1:])
        plain = open_tier(tmp_path / kind.name, None, namespace=sealed._namespace)
        assert {reason_of(read(plain, key)) for key in keys} == {BadReason.SEALED}
        assert [read(sealed, key) for key in keys] == [Loaded(111)] * 8


def test_two_kinds_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    """Not even with the right key: such a file was never written here."""
    sealed = open_tier(tmp_path, SealKind.AUTHENTICATED)
    store(sealed, [key_of(0)])
    other = open_tier(tmp_path, SealKind.ENCRYPTED, namespace=sealed._namespace)
    assert reason_of(read(other, key_of(0))) is BadReason.VERSION


@pytest.mark.parametrize("kind", KINDS)
def test_each_tenant_of_a_segment_has_keys_of_its_own(tmp_path: Path, kind: SealKind) -> None:
    tier = open_tier(tmp_path, kind)
    tenants = [NO_TENANT, b"tenant 1", b"tenant 2"]
    keys = [key_of(number) for number in range(3)]
    file = Keyring([OLD], kind).new(tier._namespace.fingerprint)
    headers, bodies = [], []
    for number, (key, tenant) in enumerate(zip(keys, tenants, strict=True)):
        payload, room = memoryview(payload_of(key)), memoryview(bytearray(111 + 16))
        fields = (tier._namespace.fingerprint, key, SMALL, payload, 0, tenant)
        headers.append(describe(*fields, keys=file.chunk(number, tenant), into=room))
        bodies.append(bytes(room[:111] if kind is SealKind.ENCRYPTED else payload))
    offsets = lay_out(headers)
    content = bytearray(encode_segment(headers, offsets, file.mark))
    for body, offset in zip(bodies, offsets, strict=True):
        content += bytes(offset - len(content)) + body
    for key in keys:
        path_of(tier, key).parent.mkdir(parents=True, exist_ok=True)
        path_of(tier, key).write_bytes(content)
    assert [read(tier, key) for key in keys] == [Loaded(111)] * 3
    # The same block under another tenant's key, in a table that is right: only its tag tells.
    swapped = [
        describe(
            tier._namespace.fingerprint, keys[0], SMALL, memoryview(payload_of(keys[0])), 0, tenants[2],
            keys=file.chunk(0, tenants[1]), into=memoryview(bytearray(127)),
        )
    ]  # fmt: skip
    record = encode(swapped[0], file.mark) + bodies[0]
    path_of(tier, keys[0]).write_bytes(record)
    assert reason_of(read(tier, keys[0])) is BadReason.CHECKSUM


def test_a_keyring_says_no_secret() -> None:
    keyring = Keyring([OLD, NEW], SealKind.ENCRYPTED)
    assert OLD.hex() not in repr(keyring) and keyring.key_ids[0] in repr(keyring)
    assert len(set(keyring.key_ids)) == 2
