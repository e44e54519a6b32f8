"""Older releases and this one share a directory: each reads what it knows, and leaves the rest alone."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from kvstrata.chunks.key import relative_path
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Bad, Loaded, Present
from lab import golden

pytestmark = pytest.mark.timeout(120)

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("older_release.py")
RECORDS_ALONE = "54b8d4a"
"""Knows records alone, without tenants."""
WITH_SEGMENTS = "5eb541b"
"""Knows segments too, without tenants."""
WITH_TENANTS = "dc3c3d1"
"""Knows both, and no seals."""
RELEASES = (RECORDS_ALONE, WITH_SEGMENTS, WITH_TENANTS)
TOGETHER = [chunk for segment in golden.SEGMENTS for chunk in segment]

Call = tuple[str, golden.Chunk]
"""`read` or `write`, and a chunk."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("releases")


class Older:
    """The package as it was, run in a process of its own on a directory."""

    def __init__(self, commit: str, sources: Path) -> None:
        self._source = sources / commit
        if not self._source.exists():
            command = ["git", "archive", commit, "src/kvstrata"]
            got = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
            if got.returncode:
                pytest.skip(f"the history does not reach back to {commit}")
            with tarfile.open(fileobj=BytesIO(got.stdout)) as archive:
                archive.extractall(self._source, filter="data")

    def do(self, name: str, root: Path, calls: Sequence[Call]) -> list[tuple[str, str, bytes]]:
        """Outcome, its reason and the chunk's bytes, for each call; in one of the golden namespaces."""
        namespace = golden.namespace_of(name)
        request: dict[str, Any] = {
            "root": str(root),
            "model": namespace.model,
            "facts": namespace.facts,
            "geometries": [
                (
                    one.group,
                    one.kind.value,
                    one.tokens_per_block,
                    one.blocks_per_chunk,
                    one.rank_block_bytes,
                    one.window_tokens,
                )
                for one in golden.GEOMETRIES.values()
            ],
            "calls": [
                (call, chunk.key.hex(), chunk.first_block, self._payload(call, chunk).hex())
                for call, chunk in calls
            ],
        }
        run = subprocess.run(
            [sys.executable, SCRIPT],
            input=json.dumps(request),
            env={**os.environ, "PYTHONPATH": str(self._source / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        document = json.loads(run.stdout)
        assert document["package"].startswith(str(self._source)), "another release has run"
        return [(what, why, bytes.fromhex(text)) for what, why, text in document["answers"]]

    @staticmethod
    def _payload(call: str, chunk: golden.Chunk) -> bytes:
        return chunk.payload if call == "write" else bytes(len(chunk.payload))


@pytest.fixture(params=RELEASES)
def older(request: pytest.FixtureRequest, sources: Path) -> Older:
    return Older(request.param, sources)


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of chunks: inode and content."""
    return {str(path): (path.stat().st_ino, path.read_bytes()) for path in root.rglob("*.kv")}


def stored(chunk: golden.Chunk) -> bytes:
    """What a read of a chunk brings into a buffer of zeros."""
    low = chunk.first_block * chunk.geometry.block_bytes
    return bytes(low) + chunk.payload[low:]


def read(tier: FilesystemTier, chunk: golden.Chunk) -> tuple[Any, bytes]:
    buffer = bytearray(len(chunk.payload))
    return tier.read(chunk.key, memoryview(buffer), chunk.first_block), bytes(buffer)


def test_they_read_what_this_release_writes_or_leave_it_alone(
    tmp_path: Path, older: Older, request: pytest.FixtureRequest
) -> None:
    root = golden.copy_of("plain", tmp_path)
    before = contents(root)
    answers = older.do("plain", root, [("read", chunk) for chunk in golden.CHUNKS])
    alone = request.node.callspec.params["older"] == RECORDS_ALONE
    for chunk, (outcome, reason, payload) in zip(golden.CHUNKS, answers, strict=True):
        if alone and chunk in TOGETHER:
            assert (outcome, reason) == ("Bad", "version")
        else:
            assert (outcome, payload) == ("Loaded", stored(chunk))
    assert contents(root) == before


def test_sealed_files_are_another_version_to_them(tmp_path: Path, sources: Path) -> None:
    root = golden.copy_of("encrypted", tmp_path)
    before = contents(root)
    older = Older(WITH_TENANTS, sources)
    for outcome, reason, _ in older.do("encrypted", root, [("read", one) for one in golden.CHUNKS]):
        assert (outcome, reason) == ("Bad", "version")
    assert contents(root) == before


def test_this_release_reads_what_they_write(tmp_path: Path, older: Older) -> None:
    answers = older.do("plain", tmp_path, [("write", chunk) for chunk in golden.CHUNKS])
    assert all(outcome == "Stored" for outcome, _, _ in answers)
    tier = golden.tier_of("plain", tmp_path)
    tier.prepare()
    assert [path.name for path in tmp_path.iterdir()] == [tier.directory.name], "one namespace"
    before = contents(tmp_path)
    for chunk in golden.CHUNKS:
        outcome, payload = read(tier, chunk)
        assert isinstance(outcome, Loaded) and payload == stored(chunk)
        assert isinstance(
            tier.write(chunk.key, memoryview(chunk.payload), chunk.first_block), Present
        )
    assert contents(tmp_path) == before


def test_what_they_do_not_know_is_replaced_by_a_write_of_that_chunk_alone(
    tmp_path: Path, sources: Path
) -> None:
    root = golden.copy_of("plain", tmp_path)
    chunk, *others = golden.SEGMENTS[0]
    ((outcome, _, _),) = Older(RECORDS_ALONE, sources).do("plain", root, [("write", chunk)])
    assert outcome == "Stored"
    tier = golden.tier_of("plain", root)
    tier.prepare()
    for one in golden.CHUNKS:
        found, payload = read(tier, one)
        assert isinstance(found, Loaded) and payload == stored(one)
    base = tier.directory
    inodes = {(base / relative_path(one.key)).stat().st_ino for one in others}
    assert len(inodes) == 1 and (base / relative_path(chunk.key)).stat().st_ino not in inodes


def test_a_chunk_that_they_wrote_in_a_sealed_namespace_is_left_and_not_believed(
    tmp_path: Path, sources: Path
) -> None:
    root = golden.copy_of("authenticated", tmp_path)
    chunk = golden.RECORDS[0]
    tier = golden.tier_of("authenticated", root)
    tier.prepare()
    (tier.directory / relative_path(chunk.key)).unlink()
    ((outcome, _, _),) = Older(WITH_TENANTS, sources).do("authenticated", root, [("write", chunk)])
    assert outcome == "Stored"
    found, payload = read(tier, chunk)
    assert isinstance(found, Bad) and found.reason == "version" and payload == bytes(len(payload))
    assert (tier.directory / relative_path(chunk.key)).exists()
