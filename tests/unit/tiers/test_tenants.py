"""Whose chunks are: marks, where they are written, and that quotas hold."""

import math
import random
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata import metrics as m
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.record import NO_TENANT
from kvstrata.chunks.tenants import (
    TenantTerms,
    Terms,
    name_key,
    read_name,
    read_terms,
    tenant_mark,
    tenant_name,
)
from kvstrata.errors import ConfigError
from kvstrata.options import Options
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.quotas import NOBODY, Quotas
from kvstrata.tiers.records import tenant_of
from kvstrata.tiers.tenants import TENANTS_FILE, Census, QuotaTier, look
from kvstrata.tiers.tier import Failed, Loaded, Stored

SMALL = GroupGeometry(0, GroupKind.FULL, 16, 1, (4096,))
LARGE = GroupGeometry(1, GroupKind.WINDOW, 16, 4, (64 << 10,), window_tokens=32)
GEOMETRIES = {0: SMALL, 1: LARGE}
NAMESPACE = Namespace("tiny", {"weights": "abc"})
OTHER = Namespace("tiny", {"weights": "def"})
A, B = tenant_name("salt A"), tenant_name("salt B")


def mark_of(name: bytes, namespace: Namespace = NAMESPACE) -> bytes:
    return tenant_mark(name, namespace.fingerprint)


def key_of(number: int, group: int = 0) -> bytes:
    return make_key(random.Random(number).randbytes(32), group)


def payload(key: bytes, geometry: GroupGeometry) -> memoryview:
    return memoryview(bytearray(random.Random(key).randbytes(geometry.payload_bytes)))


def open_tier(root: Path, namespace: Namespace = NAMESPACE, **options: object) -> FilesystemTier:
    tier = FilesystemTier(root, namespace, GEOMETRIES, **options)  # type: ignore[arg-type]
    tier.prepare()
    return tier


def mark_in(tier: FilesystemTier, key: bytes) -> bytes:
    with (tier.directory / relative_path(key)).open("rb") as file:
        return tenant_of(file.fileno(), key)


@given(st.text(min_size=1), st.text(min_size=1), st.binary(max_size=64), st.binary(max_size=64))
def test_names_and_marks_tell_apart_salts_keys_and_namespaces(one, other, key, other_key) -> None:
    name = tenant_name(one, key)
    assert len(name) == 16 and name == tenant_name(one, key)
    assert (name == tenant_name(other, key)) == (one == other)
    if key.rstrip(b"\0") != other_key.rstrip(b"\0"):
        assert name != tenant_name(one, other_key)
    mark = mark_of(name)
    assert len(mark) == 8 and mark not in (NO_TENANT, mark_of(name, OTHER), name[:8])


def test_a_salt_may_be_any_text_and_a_key_names_nobody() -> None:
    assert tenant_name("\ud800") != tenant_name("?")
    master = bytes(range(32))
    assert name_key(master) != master and tenant_name("s", name_key(master)) != tenant_name("s")


@pytest.mark.parametrize("segment", [0, 4 << 20])
def test_files_say_whose_chunks_are(tmp_path: Path, segment: int) -> None:
    tier = open_tier(tmp_path, segment=segment)
    keys = [key_of(number) for number in range(9)] + [key_of(9, group=1)]
    marks = {key: mark_of(A) for key in keys[:4]} | {key: mark_of(B) for key in keys[4:7]}
    marks[keys[9]] = mark_of(B)
    tier.attribute(marks)
    outcomes = tier.write_many([(k, payload(k, GEOMETRIES[k[-1]]), 0) for k in keys])
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    assert [mark_in(tier, key) for key in keys] == [marks.get(key, NO_TENANT) for key in keys]
    for key in keys:  # whoever looks for a chunk finds it by its key alone
        into = memoryview(bytearray(GEOMETRIES[key[-1]].payload_bytes))
        assert isinstance(tier.read(key, into), Loaded) and into == payload(
            key, GEOMETRIES[key[-1]]
        )


def test_what_is_forgotten_is_nobodys(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.attribute({key_of(1): mark_of(A), key_of(2): mark_of(A)})
    tier.attribute({key_of(1): NO_TENANT, key_of(3): NO_TENANT})
    for number in (1, 2, 3):
        tier.write(key_of(number), payload(key_of(number), SMALL))
    assert [mark_in(tier, key_of(n)) for n in (1, 2, 3)] == [NO_TENANT, mark_of(A), NO_TENANT]


@pytest.mark.parametrize("where", ["slot", "lead"])
def test_no_byte_of_another_chunk_gets_into_a_file(tmp_path: Path, where: str) -> None:
    """A chunk whose first blocks are missing, and small ones on pages of a segment: no old bytes follow."""
    pattern = b"\xa5PATTERN"
    tier = open_tier(tmp_path)
    given = []
    if where == "lead":
        slot = bytearray(pattern * (LARGE.payload_bytes // 8))
        slot[2 * LARGE.block_bytes :] = bytes(2 * LARGE.block_bytes)  # blocks 2 and 3 were stored
        given.append((key_of(1, group=1), memoryview(slot), 2))
    else:
        odd = GroupGeometry(0, GroupKind.FULL, 16, 1, (4096 + 24,))  # each ends inside a page
        tier = FilesystemTier(tmp_path, NAMESPACE, {0: odd, 1: LARGE})
        tier.prepare()
        arena = bytearray(pattern * 8192)
        for number in range(8):
            at = number * 8192 + 512
            arena[at : at + odd.payload_bytes] = bytes(odd.payload_bytes)
            given.append((key_of(number), memoryview(arena)[at : at + odd.payload_bytes], 0))
    assert all(isinstance(outcome, Stored) for outcome in tier.write_many(given))
    files = {path.stat().st_ino: path for path in tmp_path.rglob("*.kv")}
    assert len(files) == 1, "a segment, where there are several"
    for path in files.values():
        assert b"PATTERN" not in path.read_bytes()


def test_a_load_leaves_no_old_bytes_in_the_blocks_that_it_gives(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    key = key_of(1, group=1)
    tier.write(key, payload(key, LARGE), 2)
    into = memoryview(bytearray(b"\xa5" * LARGE.payload_bytes))
    assert isinstance(tier.read(key, into, 2), Loaded)
    lead = 2 * LARGE.block_bytes
    assert into[lead:] == payload(key, LARGE)[lead:]
    # Blocks that the chunk lacks are not given to anybody: a read from before them is no hit.
    assert not isinstance(tier.read(key, into, 1), Loaded)


def held(*given: tuple[Namespace, bytes, float]) -> Mapping[tuple[bytes, bytes], float]:
    return {(namespace.fingerprint, mark): nbytes for namespace, mark, nbytes in given}


def test_named_tenants_count_in_all_namespaces_and_others_in_each() -> None:
    terms = TenantTerms(Terms(quota=1000), {A: Terms(quota=800)})
    quotas = Quotas(terms, NAMESPACE.fingerprint)
    found = held(
        (NAMESPACE, mark_of(A), 300.0),
        (OTHER, mark_of(A, OTHER), 100.0),
        (NAMESPACE, mark_of(B), 200.0),
        (OTHER, mark_of(B, OTHER), 900.0),
        (NAMESPACE, NO_TENANT, 5000.0),
    )
    assert quotas.room(mark_of(A), found, 0, math.inf) == (800 - 400) / 8
    assert quotas.room(mark_of(B), found, 0, math.inf) == (1000 - 200) / 8
    assert quotas.room(NO_TENANT, found, 0, math.inf) == math.inf
    assert quotas.by_tenant(found) == {A.hex(): 400.0, "default": 1100.0, NOBODY: 5000.0}


def test_weights_count_only_where_the_root_is_full() -> None:
    terms = TenantTerms(Terms(), {A: Terms(weight=3.0)})
    quotas = Quotas(terms, NAMESPACE.fingerprint)
    found = held((NAMESPACE, mark_of(A), 100.0), (NAMESPACE, mark_of(B), 800.0))
    assert quotas.room(mark_of(B), found, 899, 1000) == math.inf
    assert quotas.room(mark_of(B), found, 900, 1000) == 0
    assert quotas.room(mark_of(A), found, 900, 1000) == (750 - 100) / 8


def test_a_look_estimates_what_tenants_hold(tmp_path: Path) -> None:
    tier, other = open_tier(tmp_path), open_tier(tmp_path, OTHER)
    for number in range(400):
        key = key_of(number)
        tier.attribute({key: mark_of(A) if number % 4 else NO_TENANT})
        tier.write(key, payload(key, SMALL))
    for number in range(400, 500):
        key = key_of(number)
        other.attribute({key: mark_of(B, OTHER)})
        other.write(key, payload(key, SMALL))
    (tier.directory / "00" / "00").mkdir(parents=True, exist_ok=True)
    (tier.directory / "00" / "00" / (key_of(1).hex()[:64] + ".g0.kv")).write_bytes(b"no record")
    errors = []
    for seed in range(20):
        found = look(tmp_path, random.Random(seed), Census())
        assert all(mark in (NO_TENANT, mark_of(A), mark_of(B, OTHER)) for _, mark in found.by_mark)
        truth = 300 * 8192
        mine = found.by_mark[NAMESPACE.fingerprint, mark_of(A)]
        errors.append((mine - truth) / truth)
        assert found.by_mark[OTHER.fingerprint, mark_of(B, OTHER)] > 0
    assert abs(sum(errors)) / len(errors) < 0.1 and max(map(abs, errors)) < 0.5


def quota_tier(root: Path, terms: TenantTerms, told: list[Mapping[str, float]]) -> QuotaTier:
    """A tier whose thread has had its first look and rests: two at once are one."""
    tier = QuotaTier(open_tier(root), root, NAMESPACE, terms, lambda: math.inf, told.append)
    deadline = time.monotonic() + 60
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return tier


def store(tier: QuotaTier, name: bytes | None, numbers: range) -> list[str]:
    """Outcomes of writing chunks for a tenant: stored, or why not."""
    keys = [key_of(number) for number in numbers]
    marks = {} if name is None else dict.fromkeys(keys, mark_of(name))
    tier.attribute(marks)
    outcomes = tier.write_many([(key, payload(key, SMALL), 0) for key in keys])
    tier.attribute(dict.fromkeys(marks, NO_TENANT))
    return [one.reason if isinstance(one, Failed) else "stored" for one in outcomes]


def test_a_quota_holds_and_others_are_not_asked(tmp_path: Path) -> None:
    told: list[Mapping[str, float]] = []
    quota = 80 * 8192
    tier = quota_tier(tmp_path, TenantTerms(Terms(), {A: Terms(quota=quota)}), told)
    tier.look()
    try:
        written = 0
        for turn in range(40):
            outcomes = store(tier, A, range(turn * 40, turn * 40 + 40))
            written += outcomes.count("stored")
            assert set(outcomes) <= {"stored", "quota"}
            tier.look()
        assert 0.5 * quota < written * 8192 < 1.5 * quota
        assert store(tier, B, range(2000, 2100)) == ["stored"] * 100
        assert store(tier, None, range(2100, 2200)) == ["stored"] * 100
        tier.look()
        assert set(told[-1]) == {A.hex(), "default", NOBODY}
        assert all(nbytes > 0 for nbytes in told[-1].values())
        # What goes makes room.
        for path in tmp_path.rglob("*.kv"):
            path.unlink()
        for _ in range(10):
            tier.look()
        assert "stored" in store(tier, A, range(3000, 3040))
    finally:
        tier.close()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"held": 3}', b'{"held": {"zz": 1.0, "a/b/c": 2}}']
)
def test_a_bad_file_of_what_tenants_hold_is_looked_past(tmp_path: Path, content: bytes) -> None:
    tier = quota_tier(tmp_path, TenantTerms(Terms(quota=1 << 30), {}), [])
    try:
        (tmp_path / TENANTS_FILE).write_bytes(content)
        tier.look()
        assert store(tier, A, range(3)) == ["stored"] * 3
        assert Census(held={"zz": 1.0, "a/b/c": 2.0}).by_mark == {}
    finally:
        tier.close()


def test_options_say_what_tenants_may_hold() -> None:
    terms = read_terms({"default": {"quota": "1GiB"}, A.hex(): {"weight": 2}})
    assert terms == TenantTerms(Terms(1 << 30), {A: Terms(None, 2.0)})
    options = Options.parse({"path": "/kv", "tenants": {A.hex(): {"quota": 5}}})
    assert options.tenants == TenantTerms(Terms(), {A: Terms(5)})
    assert read_name(A.hex()) == A
    assert m.TENANT_BYTES.labels == ("tier", "tenant")


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        "10GiB",
        {"default": {}} | {"salt": {"quota": 1}},
        {"default": {"quota": 0}},
        {"default": {"quota": "much"}},
        {"default": {"weight": 0}},
        {"default": {"size": 1}},
        {"default": 3},
        {A.hex().upper(): {"quota": 1}},
    ],
)
def test_what_is_no_such_option_is_refused_and_says_what_is(value: object) -> None:
    with pytest.raises(ConfigError, match="tenants"):
        Options.parse({"path": "/kv", "tenants": value})
