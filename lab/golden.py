"""Stored files of known content, by which a release shows that it reads what others have written.

`python -m lab.golden DIRECTORY` writes them with the code at hand. Those in `tests/golden` stay as they
are: a release that changes a format gets a directory of its own beside them, and reads the old ones or misses
them.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, group_of, make_key, relative_path
from kvstrata.chunks.keyring import Keyring
from kvstrata.chunks.namespace import Namespace
from kvstrata.chunks.sealing import SealKind
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.place import PLACE_FILE
from kvstrata.tiers.spaces import Terms, declare
from kvstrata.tiers.sweep import Usage, write_usage
from kvstrata.tiers.tier import Stored, Transfer
from kvstrata.wire import snapshot
from lab import report

STORED = report.REPOSITORY / "tests" / "golden"
SNAPSHOT = "snapshot"
PLACE = "0123456789abcdef0123456789abcdef"
MASTER = bytes(range(32))
"""Of the sealed files; everybody knows it."""
GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, 2, (24, 8)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, 4, (40,), 32),
}
TENANT = bytes.fromhex("a1b2c3d4e5f60718")
USAGE = Usage(round=7, used=20480.0, bound=65536.0, place=51, directories=9)

TERMS = Terms(floor=4096.0, weight=2.0, ttl=86400.0)


def _hash(label: str, size: int) -> bytes:
    return hashlib.sha256(label.encode()).digest()[:size]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One stored chunk.

    Attributes:
        key: its key.
        first_block: first block that is stored.
        tenant: whose it is, 8 bytes.
    """

    key: ChunkKey
    first_block: int = 0
    tenant: bytes = bytes(8)

    @property
    def geometry(self) -> GroupGeometry:
        """Of its group."""
        return GEOMETRIES[group_of(self.key)]

    @property
    def payload(self) -> bytes:
        """The whole chunk; blocks before the first one are not in the file."""
        return hashlib.shake_128(self.key).digest(self.geometry.payload_bytes)


RECORDS = (
    Chunk(make_key(_hash("short", 16), 0)),
    Chunk(make_key(_hash("long", 32), 0)),
    Chunk(make_key(_hash("tail", 32), 1), 2),
    Chunk(make_key(_hash("owned", 32), 1), 0, TENANT),
)
"""Each is a file."""
SEGMENTS = (
    tuple(Chunk(make_key(_hash(f"together {n}", 32), 0)) for n in range(3)),
    (
        Chunk(make_key(_hash("window 0", 32), 1), 1),
        Chunk(make_key(_hash("window 1", 32), 1), 0, TENANT),
        Chunk(make_key(_hash("window 2", 16), 1), 3),
    ),
)
"""Each is a file with several names."""
CHUNKS = (*RECORDS, *(chunk for segment in SEGMENTS for chunk in segment))
ROOTS: Mapping[str, SealKind | None] = {
    "plain": None,
    "authenticated": SealKind.AUTHENTICATED,
    "encrypted": SealKind.ENCRYPTED,
}
"""Directories of stored files, and how those are sealed."""


def namespace_of(name: str) -> Namespace:
    """The namespace of one of `ROOTS`."""
    groups = [{"group": one.group, "kind": one.kind.value} for one in GEOMETRIES.values()]
    facts = {"dtype": "float32", "weights": "golden", "groups": groups}
    seal = ROOTS[name]
    return Namespace("org/golden-model", facts if seal is None else {**facts, "seal": name})


def tier_of(name: str, root: Path, *, read_only: bool = False) -> FilesystemTier:
    """A tier that reads one of `ROOTS`; not prepared."""
    seal = ROOTS[name]
    return FilesystemTier(
        root,
        namespace_of(name),
        GEOMETRIES,
        read_only=read_only,
        keyring=None if seal is None else Keyring([MASTER], seal),
    )


def write(name: str, root: Path) -> None:
    """Write one of `ROOTS` with the code at hand.

    Raises:
        RuntimeError: something could not be stored.
    """
    tier = tier_of(name, root)
    tier.prepare()
    (root / PLACE_FILE).write_text(f"{PLACE}\n")
    for chunk in CHUNKS:
        tier.attribute({chunk.key: chunk.tenant})
    for together in [*((chunk,) for chunk in RECORDS), *SEGMENTS]:
        outcomes = tier.write_many([_given(chunk) for chunk in together])
        if not all(isinstance(outcome, Stored) for outcome in outcomes):
            raise RuntimeError(f"{name}: {outcomes}")
    write_usage(root, USAGE)
    declare(tier.directory, TERMS)


def _given(chunk: Chunk) -> Transfer:
    return chunk.key, memoryview(bytearray(chunk.payload)), chunk.first_block


def copy_of(name: str, into: Path) -> Path:
    """A copy of one of the stored `ROOTS`, to work on: segments are linked, and times are now."""
    root = into / name
    shutil.copytree(STORED / name, root)
    root.chmod(0o755)  # git keeps no more of a mode than one bit
    base = root / namespace_of(name).directory_name
    for together in SEGMENTS:
        link(base, [chunk.key for chunk in together])
    now = time.time()
    for path in root.rglob("*"):
        os.utime(path, (now, now))
    return root


def link(base: Path, keys: Sequence[ChunkKey]) -> None:
    """Give one file, the first key's, the names of other chunks; git knows no links."""
    source = base / relative_path(keys[0])
    for key in keys[1:]:
        path = base / relative_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.hardlink_to(source)


SNAPSHOT_HEADER = snapshot.Header(
    version=1,
    epoch=bytes(range(16)),
    sequence=41,
    time=1_700_000_000.5,
    rank=0,
    recent=(bytes(range(16, 32)),),
    facts=snapshot.EngineFacts(
        model="org/golden-model",
        hash_algorithm="sha256",
        none_hash=bytes(range(32)),
        hash_tokens=16,
        alignment_tokens=16,
        groups=tuple(snapshot.group_facts(one) for one in GEOMETRIES.values()),
        storage=f"golden@{PLACE}",
        device_blocks=1024,
        release="0.1.0",
    ),
)
SNAPSHOT_HELD = (
    (snapshot.Place("GPU", 0), np.arange(1, 6, dtype=np.uint64), np.array([3], np.uint64)),
    (
        snapshot.Place("STORAGE", 1, f"golden@{PLACE}"),
        np.array([2**64 - 1, 7], np.uint64),
        np.array([], np.uint64),
    ),
)


def snapshot_parts() -> list[bytes]:
    """The parts of an engine's answer, as the code at hand makes them."""
    return list(snapshot.encode(SNAPSHOT_HEADER, SNAPSHOT_HELD))


def write_snapshot(directory: Path) -> None:
    """Write the parts of an engine's answer, each as a file."""
    directory.mkdir(parents=True)
    for number, part in enumerate(snapshot_parts()):
        (directory / f"{number}.msgpack").write_bytes(part)


def main() -> int:
    """Write all of it; see the module."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    target = Path(sys.argv[1])
    for name in ROOTS:
        write(name, target / name)
        base = target / name / namespace_of(name).directory_name
        for key in (chunk.key for segment in SEGMENTS for chunk in segment[1:]):
            # One name is enough to keep; `copy_of` links the others.
            (base / relative_path(key)).unlink()
            (base / relative_path(key)).parent.rmdir()
    write_snapshot(target / SNAPSHOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
