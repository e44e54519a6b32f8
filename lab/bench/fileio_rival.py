"""LMCache's storage on a local disk, run by its own interpreter: orders are JSON lines on standard input.

Nothing of ours is imported here. Every order is answered with one line of JSON on standard output.
"""

import asyncio
import json
import os
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lmcache.utils import CacheEngineKey  # type: ignore[import-not-found]
from lmcache.v1.config import LMCacheEngineConfig  # type: ignore[import-not-found]
from lmcache.v1.metadata import LMCacheMetadata  # type: ignore[import-not-found]
from lmcache.v1.storage_backend.connector.fs_connector import (  # type: ignore[import-not-found]
    FSConnector,
)
from lmcache.v1.storage_backend.local_cpu_backend import (  # type: ignore[import-not-found]
    LocalCPUBackend,
)
from lmcache.v1.storage_backend.local_disk_backend import (  # type: ignore[import-not-found]
    LocalDiskBackend,
)

PATIENCE = 60.0
TOKENS, HEAD = 256, 64
ROW = 2 * TOKENS * HEAD * 2
"""Bytes of one head of one layer: keys and values, bfloat16."""


class Rival:
    """Both of its ways, at one size of chunk at a time."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def version(self) -> str:
        """Of the package."""
        return version("lmcache")

    def make(self, directory: str, size: int, count: int) -> list[str]:
        """Write chunks in both ways. Returns the files' paths."""
        Path(directory, "fs").mkdir(parents=True)
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=TOKENS,
            local_cpu=False,
            max_local_cpu_size=1.0,
            local_disk=f"{directory}/disk",
            max_local_disk_size=4.0,
            extra_config={"fs_base_path": f"{directory}/fs", "save_chunk_meta": False},
        )
        shape = (size // ROW, 2, TOKENS, 1, HEAD)
        about = LMCacheMetadata("bench", 1, 1, 0, 0, torch.bfloat16, shape)
        self.memory = LocalCPUBackend(config, about, "cpu")
        self.disk = LocalDiskBackend(config, self.loop, self.memory, "cpu")
        self.fs = FSConnector(self.loop, self.memory, config)
        self.keys = [CacheEngineKey("bench", 1, 0, 1 + one, torch.bfloat16) for one in range(count)]
        for key in self.keys:
            chunk = self.memory.allocate(about.get_shapes(), about.get_dtypes())
            assert chunk is not None and len(chunk.byte_array) == size
            chunk.tensor.random_(0, 100)
            self.disk.submit_put_task(key, chunk)
            self._wait(self.fs.put(key, chunk))
            limit = time.monotonic() + PATIENCE
            while self.disk.exists_in_put_tasks(key):
                assert time.monotonic() < limit
                time.sleep(0.0005)
            chunk.ref_count_down()
        return [str(path) for path in Path(directory).rglob("*") if path.is_file()]

    def load_disk(self) -> float:
        """Seconds of all chunks through the local disk backend, by its own threads."""
        begun = time.perf_counter()
        chunks = self.disk.batched_get_blocking(self.keys)
        return self._done(begun, chunks)

    def load_fs(self) -> float:
        """The same through the `fs` connector, all asked for at once."""

        async def everything() -> list[Any]:
            return await asyncio.gather(*(self.fs.get(key) for key in self.keys))

        begun = time.perf_counter()
        return self._done(begun, self._wait(everything()))

    def _done(self, begun: float, chunks: list[Any]) -> float:
        seconds = time.perf_counter() - begun
        assert all(chunk is not None for chunk in chunks)
        for chunk in chunks:
            chunk.ref_count_down()
        return seconds

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # its log goes to standard output
    rival = Rival()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(rival, name)(*arguments)) + "\n")


if __name__ == "__main__":
    main()
