"""Directories as engines leave them, for the tests of the commands."""

import os
import time
from pathlib import Path

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Loaded, Stored

BLOCKS = 4
BLOCK_BYTES = {0: 1024, 1: 640}
GEOMETRIES = {
    0: GroupGeometry(0, GroupKind.FULL, 16, BLOCKS, (BLOCK_BYTES[0],)),
    1: GroupGeometry(1, GroupKind.WINDOW, 16, BLOCKS, (BLOCK_BYTES[1],), window_tokens=32),
}
RECORD_BYTES = {group: 4096 + BLOCKS * size for group, size in BLOCK_BYTES.items()}


class Root:
    """One namespace of a root, filled by a real filesystem tier.

    Attributes:
        path: the root.
        keys: of the chunks written so far.
        directory: of the namespace.
    """

    def __init__(self, path: Path, model: str = "org/tiny", **facts: object) -> None:
        self.path = path
        self.namespace = Namespace(model, {"weights": "abc", **facts})
        self.tier = FilesystemTier(path, self.namespace, GEOMETRIES)
        self.tier.prepare()
        self.directory = path / self.namespace.directory_name
        self.keys: list[ChunkKey] = []

    def fill(self, chunks: int, group: int = 0) -> list[Path]:
        """Write `chunks` new chunks of `group`; their files."""
        added = []
        for number in range(len(self.keys), len(self.keys) + chunks):
            # An odd multiplier spreads the keys over the hash directories, as hashes do.
            head = (number * 40503 % 65536).to_bytes(2, "big")
            key = make_key(head + number.to_bytes(30, "big"), group)
            payload = memoryview(bytearray([number % 251 + 1]) * GEOMETRIES[group].payload_bytes)
            assert isinstance(self.tier.write(key, payload), Stored)
            self.keys.append(key)
            added.append(self.file(key))
        return added

    def file(self, key: ChunkKey) -> Path:
        """Where the chunk's file is."""
        return self.directory / relative_path(key)

    def readable(self, key: ChunkKey) -> bool:
        """Whether a tier that removes nothing can load the chunk."""
        tier = FilesystemTier(self.path, self.namespace, GEOMETRIES, read_only=True)
        group = int.from_bytes(key[-4:], "big")
        into = memoryview(bytearray(GEOMETRIES[group].payload_bytes))
        return isinstance(tier.read(key, into), Loaded)

    def file_time(self) -> float:
        """Now, by the file system's clock."""
        probe = self.path / ".tmp-1-00000000000000aa"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def temporary(self, age: float, beside: Path | None = None) -> Path:
        """A temporary file that a writer left `age` seconds ago, beside a record."""
        folder = (beside or self.file(self.keys[0])).parent
        path = folder / f".tmp-4711-{len(list(folder.iterdir())):016x}"
        path.write_bytes(b"half a record")
        set_age(path, age)
        return path


def set_age(path: Path, seconds: float) -> None:
    """Make a file look as if it was last used `seconds` ago."""
    when = time.time() - seconds
    os.utime(path, (when, when))


def tree(path: Path) -> set[str]:
    """Every file and directory below `path`, relative to it."""
    return {str(entry.relative_to(path)) for entry in path.rglob("*")}
