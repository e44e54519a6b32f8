"""Writers that die: each is forked from this process, which has the faults' library loaded.

`python tests/e2e/faulty_writer.py`: one JSON line in (what `write` takes), one line out: the
writer's exit code, 1 if it stored all and -9 if it was killed. No engine: what is under test is
`FilesystemTier` alone.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import WriteOutcome

NAMESPACE = Namespace("org/tiny", {"weights": "abc"})
GEOMETRY = GroupGeometry(0, GroupKind.FULL, 16, 4, (500,))
KEYS = [make_key(hashlib.sha256(text).digest(), 0) for text in (b"one", b"two", b"three")]


def payload_of(key: ChunkKey) -> memoryview:
    """The bytes of a chunk."""
    return memoryview(hashlib.shake_128(key).digest(GEOMETRY.payload_bytes))


def open_tier(directory: Path, *, fsync: bool = False) -> FilesystemTier:
    """A tier as an engine opens it."""
    tier = FilesystemTier(directory, NAMESPACE, {0: GEOMETRY}, fsync=fsync)
    tier.prepare()
    tier.introduce()
    return tier


def write(
    directory: Path, first_blocks: list[int], *, together: bool = False, fsync: bool = False
) -> list[WriteOutcome]:
    """Store the chunks, each from its first block on, one by one or together."""
    tier = open_tier(directory, fsync=fsync)
    given = [
        (key, payload_of(key), first_block)
        for key, first_block in zip(KEYS, first_blocks, strict=True)
    ]
    return tier.write_many(given) if together else [tier.write(*one) for one in given]


def main() -> None:
    """Fork a writer for each line."""
    for line in sys.stdin:
        wanted = json.loads(line)
        writer = os.fork()
        if not writer:
            outcomes = write(Path(wanted.pop("directory")), **wanted, fsync=True)
            os._exit(all(type(one).__name__ == "Stored" for one in outcomes))
        code = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
