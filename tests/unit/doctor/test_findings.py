"""Every finding, provoked: a clean set-up has none of them, and one change brings each."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.doctor import engine as engine_checks
from kvstrata.doctor.facts import EngineFacts, NamespaceFacts, PlaceFacts, ReplicaFacts
from kvstrata.doctor.findings import CODES, Finding, Severity, failed, found, ordered
from kvstrata.doctor.places import check_path, check_shm
from kvstrata.doctor.replicas import check_against, check_namespaces, check_replicas

FULL = GroupGeometry(0, GroupKind.FULL, 128, 1, (4096,))
WINDOW = GroupGeometry(1, GroupKind.WINDOW, 128, 1, (4096,), window_tokens=512)
STATE = GroupGeometry(1, GroupKind.STATE, 256, 1, (4096,))
CLEAN = EngineFacts(
    "tiny",
    (FULL,),
    (4,),
    max_model_len=4096,
    scheduler_block=128,
    shutdown_timeout=20,
    arena_bytes=1 << 30,
    path="/mnt/kv",
)
HYBRID = dataclasses.replace(CLEAN, groups=(FULL, WINDOW), layers=(1, 5), retention=None)
MAMBA = dataclasses.replace(CLEAN, groups=(FULL, STATE), layers=(1, 3), retention=None)
PLACE = PlaceFacts("/mnt/kv", free_bytes=1 << 40)
SHM = PlaceFacts("/dev/shm", free_bytes=1 << 40, in_memory=True)
COVERS = {"hash_seed": "default", "weights": "abc", "groups": [{"tokens_per_block": 128}]}
ONE = "tiny-" + "1" * 32
OTHER = "tiny-" + "2" * 32
REPLICA = ReplicaFacts("http://a", root="/m/tiny", version="0.1.0", namespace=ONE)


def engine(facts: EngineFacts, **changes: Any) -> Iterable[Finding]:
    return engine_checks.check_engine(dataclasses.replace(facts, **changes))


def chunks(blocks: int, asked: int | None = None, length: int = 4096) -> Iterable[Finding]:
    group = dataclasses.replace(FULL, blocks_per_chunk=blocks)
    return engine(CLEAN, groups=(group,), asked_blocks=asked or blocks, max_model_len=length)


def path(read_only: bool = False, **changes: Any) -> Iterable[Finding]:
    return check_path(dataclasses.replace(PLACE, **changes), 1 << 30, read_only)


def shm(arena_bytes: int | None = 1 << 30, **changes: Any) -> Iterable[Finding]:
    return check_shm(dataclasses.replace(SHM, **changes), arena_bytes)


def namespaces(*covers: Any) -> list[NamespaceFacts]:
    return [NamespaceFacts(f"tiny-{i + 1}" + "0" * 31, "tiny", one) for i, one in enumerate(covers)]


def replicas(**changes: Any) -> Iterable[Finding]:
    """A clean replica and one that differs from it."""
    other = dataclasses.replace(REPLICA, url="http://b", **changes)
    return check_replicas([REPLICA, other])


PROVOKED: dict[str, Callable[[], Iterable[Finding]]] = {
    "no-connector": lambda: engine(CLEAN, connector=None),
    "role": lambda: engine(CLEAN, role="kv_consumer"),
    "prefix-caching-off": lambda: engine(CLEAN, prefix_caching=False),
    "state-block-size": lambda: engine(MAMBA),
    "chunk-not-used": lambda: chunks(1, asked=8),
    "chunk-long": lambda: chunks(9),
    "retention-interval": lambda: engine(HYBRID, retention=192),
    "sparse-retention": lambda: engine(HYBRID, retention=0),
    "hybrid-manager-off": lambda: engine(CLEAN, merged_layers=3),
    "seed-random": lambda: engine(CLEAN, hash_algorithm="xxhash_cbor"),
    "seed-set": lambda: engine(CLEAN, hash_seed="0"),
    "lora": lambda: engine(CLEAN, lora=True),
    "sleep-mode": lambda: engine(CLEAN, sleep_mode=True),
    "load-failure-policy": lambda: engine(CLEAN, load_failure_policy="recompute"),
    "shutdown-timeout": lambda: engine(CLEAN, shutdown_timeout=0),
    "prompts-only": lambda: engine(CLEAN, prompts_only=True),
    "memory-only": lambda: engine(CLEAN, path=None),
    "read-only": lambda: engine(CLEAN, read_only=True),
    "arena-small": lambda: engine(CLEAN, arena_bytes=32 * 4096 - 1),
    "arena-too-small": lambda: engine(CLEAN, arena_bytes=4095),
    "estimated": lambda: engine(CLEAN, exact=False),
    "path-unusable": lambda: path(error="Not a directory (ENOTDIR)"),
    "path-not-writable": lambda: path(write_error="Permission denied (EACCES)"),
    "path-no-rename": lambda: path(renames=False, rename_error="Not supported (EOPNOTSUPP)"),
    "path-full": lambda: path(room_error="Disk quota exceeded (EDQUOT)"),
    "path-little-room": lambda: path(free_bytes=(4 << 30) - 1),
    "shm-unusable": lambda: shm(exists=False),
    "shm-small": lambda: shm(free_bytes=(1 << 30) - 1),
    "shm-on-disk": lambda: shm(in_memory=False),
    "namespace-differs": lambda: check_namespaces(namespaces(COVERS, {**COVERS, "weights": "xyz"})),
    "namespace-random": lambda: check_namespaces(
        namespaces(COVERS, {**COVERS, "hash_seed": "random 17"})
    ),
    "namespace-reset": lambda: check_namespaces(namespaces(COVERS, {**COVERS, "reset": [1, 2]})),
    "namespace-undescribed": lambda: check_namespaces(namespaces(COVERS, None)),
    "replica-unreachable": lambda: replicas(error="Connection refused"),
    "replica-silent": lambda: replicas(version=""),
    "replica-namespace": lambda: replicas(namespace=OTHER),
    "replica-setting": lambda: replicas(settings={"block_size": "64"}),
    "replica-version": lambda: replicas(version="0.2.0"),
    "live-bad-records": lambda: replicas(bad_records={"checksum": 3}),
    "live-dropped-writes": lambda: replicas(dropped_writes={"ENOSPC": 3}),
    "live-deadlines": lambda: replicas(deadlines=1),
    "live-stuck": lambda: replicas(stuck=1),
}


def test_every_code_is_provoked() -> None:
    assert set(PROVOKED) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_one_change_brings_the_finding(code: str) -> None:
    findings = list(PROVOKED[code]())
    mine = [finding for finding in findings if finding.code == code]
    assert mine, findings
    assert all(f.subject and f.message and f.remedy and "{" not in f.remedy for f in mine)
    assert all(f.severity is CODES[code].severity for f in mine)


@pytest.mark.parametrize(
    "findings",
    [
        lambda: engine(CLEAN),
        lambda: engine(HYBRID),
        lambda: engine(MAMBA, scheduler_block=256),
        lambda: chunks(8),
        lambda: path(),
        lambda: shm(),
        lambda: shm(arena_bytes=None),
        lambda: check_namespaces(namespaces(COVERS)),
        lambda: replicas(),
        lambda: replicas(root="/elsewhere/tiny"),
    ],
)
def test_a_sound_set_up_has_no_finding(findings: Callable[[], Iterable[Finding]]) -> None:
    assert list(findings()) == []


def test_the_remedy_names_the_value_to_give() -> None:
    by_code = {finding.code: finding for finding in engine(MAMBA, retention=0)}
    assert (
        by_code["state-block-size"].remedy == "give --block-size 256, and vLLM is right by itself"
    )
    assert "multiple of 256 tokens" in by_code["sparse-retention"].remedy
    (small,) = engine(CLEAN, arena_bytes=8192)
    assert small.remedy == "set memory to at least 128 KiB"


def test_what_only_matters_with_files_is_not_said_without() -> None:
    codes = {f.code for f in engine(CLEAN, path=None, hash_algorithm="xxhash", shutdown_timeout=0)}
    assert codes == {"memory-only"}


def test_a_reader_needs_neither_room_nor_rename() -> None:
    assert list(path(read_only=True, renames=False, free_bytes=0, write_error="x")) == []
    assert [f.code for f in path(read_only=True, error="x")] == ["path-unusable"]


def test_a_directory_that_cannot_be_made_is_unusable() -> None:
    assert [f.code for f in path(exists=False, write_error="x")] == ["path-unusable"]


# --- what is cached ------------------------------------------------------------------------


def test_what_a_boundary_needs_of_each_group() -> None:
    local = GroupGeometry(2, GroupKind.LOCAL, 128, 1, (100, 100), window_tokens=1024)
    facts = dataclasses.replace(HYBRID, groups=(FULL, WINDOW, local, STATE), layers=(1, 2, 3, 4))
    rows = engine_checks.group_rows(facts)
    assert [row.boundary_chunks for row in rows] == [None, 4, 8, 1]
    assert [row.layers for row in rows] == [1, 2, 3, 4]
    assert [row.longest_bytes for row in rows] == [32 * 4096, 4 * 4096, 8 * 200, 4096]
    assert engine_checks.smallest_boundary(facts) == 256
    assert engine_checks.longest_request_bytes(facts) == (32 + 4 + 8 + 1) * 4096  # slots are pages


# --- order and status ----------------------------------------------------------------------


def test_errors_come_first_and_each_finding_once() -> None:
    note, warning, error = (
        found("seed-set", "a", "a"),
        found("lora", "b", "b"),
        found("role", "c", "c"),
    )
    assert ordered([note, warning, error, note]) == [error, warning, note]
    assert failed([error], strict=False)
    assert not failed([warning, note], strict=False)
    assert failed([warning, note], strict=True)
    assert not failed([note], strict=True)


GROUPS = st.builds(
    GroupGeometry,
    group=st.integers(0, 5),
    kind=st.sampled_from([GroupKind.FULL, GroupKind.STATE]),
    tokens_per_block=st.integers(1, 512),
    blocks_per_chunk=st.integers(1, 16),
    rank_block_bytes=st.tuples(st.integers(0, 9999)),
) | st.builds(
    GroupGeometry,
    group=st.integers(0, 5),
    kind=st.sampled_from([GroupKind.WINDOW, GroupKind.LOCAL]),
    tokens_per_block=st.integers(1, 512),
    blocks_per_chunk=st.integers(1, 16),
    rank_block_bytes=st.tuples(st.integers(0, 9999)),
    window_tokens=st.integers(1, 4096),
)


@given(
    st.lists(GROUPS, max_size=5),
    st.integers(1, 10**6),
    st.none() | st.integers(0, 4096),
    st.none() | st.integers(0, 10**9),
)
def test_any_geometry_can_be_examined(
    groups: list[GroupGeometry], length: int, retention: int | None, arena: int | None
) -> None:
    facts = dataclasses.replace(
        CLEAN,
        groups=tuple(groups),
        layers=(1,) * len(groups),
        max_model_len=length,
        retention=retention,
        arena_bytes=arena,
    )
    findings = engine_checks.check_engine(facts)
    assert {f.severity for f in ordered(findings)} <= set(Severity)
    # An arena for the longest request is large enough for every request.
    needed = engine_checks.longest_request_bytes(facts)
    roomy = dataclasses.replace(facts, arena_bytes=max(needed, 1 << 40))
    assert not any(f.code.startswith("arena") for f in engine_checks.check_engine(roomy))


# --- an engine that is not started yet ------------------------------------------------------


def test_the_nearest_namespace_is_compared_with_what_would_be() -> None:
    far, near = {**COVERS, "weights": "x", "hash_seed": "=1"}, {**COVERS, "weights": "x"}
    there = namespaces({**far, "layout": [1]}, {**near, "layout": [2]})
    (finding,) = check_against(COVERS, "/models/tiny", there)
    assert finding.subject == "tiny: weights"
    assert "'abc' in this engine" in finding.message and "20000000" in finding.message
    assert list(check_against(near, "/models/tiny/", there)) == []  # it would share the second
    assert list(check_against(COVERS, "other", there)) == []
