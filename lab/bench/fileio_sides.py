"""Who reads and writes the files of `bench-fileio`: ours, vLLM's own storage tier, and bare system calls."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from vllm.v1.kv_offload.tiering.fs.io import batch_load_block, batch_store_block
from vllm.v1.kv_offload.tiering.fs.thread_pool import DualQueueThreadPool

from kvstrata.chunks.checksum import digest
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import ChunkKey, make_key, relative_path
from kvstrata.chunks.namespace import Namespace
from kvstrata.clock import MonotonicClock
from kvstrata.fileio.direct import BUFFERED_STEP
from kvstrata.tiering.loads import batches
from kvstrata.tiering.runner import Priority, Runner, Together
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Loaded, Stored, Transfer
from lab.bench.page_cache import forget

PATIENCE = 120.0


class Files:
    """Chunks of one size, as our records and as the rival's bare files, with a buffer for all of them.

    Args:
        directory: for the files; made anew.
        buffer: writable, for `count` chunks.
        size: bytes of a chunk.
        count: of chunks.
    """

    def __init__(self, directory: Path, buffer: memoryview, size: int, count: int) -> None:
        self.directory = directory
        self.size = size
        self.count = count
        self.buffer = buffer[: size * count]
        self.offsets = [one * size for one in range(count)]
        self.views = [self.buffer[at : at + size] for at in self.offsets]
        digests = [hashlib.sha256(b"%d" % one).digest() for one in range(count)]
        self.keys = [make_key(digest, 0) for digest in digests]
        names = [digest.hex() for digest in digests]
        self.theirs = [f"{directory}/theirs/{n[:3]}/{n[3:5]}_g0/{n}.bin" for n in names]
        self.tier = self._tier()
        self.ours = [f"{self.tier.directory}/{relative_path(key)}" for key in self.keys]

    def _tier(self) -> FilesystemTier:
        geometry = GroupGeometry(0, GroupKind.FULL, 16, 1, (self.size,))
        tier = FilesystemTier(self.directory / "ours", Namespace("bench", {}), {0: geometry})
        tier.prepare()
        return tier

    def size_of(self, _key: ChunkKey) -> int:
        """Bytes of a chunk."""
        return self.size

    def make(self) -> None:
        """Write all of them, both kinds, and wait until they are on the disk."""
        store_ours(self, range(self.count))
        store_theirs(self, range(self.count))
        os.sync()

    def drop_cache(self) -> None:
        """Take the files' pages from the page cache."""
        forget((*self.ours, *self.theirs))

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.directory, ignore_errors=True)


Work = Callable[[Files, Sequence[int]], None]


def in_jobs(files: Files, which: Sequence[int]) -> list[list[Transfer]]:
    """Chunks, cut as the engine cuts what it reads and writes."""
    place = {files.keys[one]: one for one in which}
    parts = batches([(key, 0) for key in place], list(map(files.size_of, place)))
    return [[(key, files.views[place[key]], 0) for key, _ in part] for part in parts]


def load_ours(files: Files, which: Sequence[int]) -> None:
    """Through our tier, every block verified; as many chunks at a time as one of the engine's jobs brings."""
    for part in in_jobs(files, which):
        for outcome in files.tier.read_many(part):
            assert isinstance(outcome, Loaded), outcome


def load_theirs(files: Files, which: Sequence[int], direct: bool = False) -> None:
    """Through vLLM's C extension; nothing is verified."""
    paths, offsets = [files.theirs[i] for i in which], [files.offsets[i] for i in which]
    batch_load_block(paths, files.buffer, offsets, files.size, direct)


def load_bare(files: Files, which: Sequence[int]) -> None:
    """Open, one `preadv` of a file that holds nothing else, close: what no reader of such files can beat."""
    for one in which:
        fd = os.open(files.theirs[one], os.O_RDONLY)
        assert os.preadv(fd, [files.views[one]], 0) == files.size
        os.close(fd)


def load_bare_hashed(files: Files, which: Sequence[int]) -> None:
    """The same and one checksum of each: what no reader that verifies can beat with one thread."""
    for one in which:
        fd = os.open(files.theirs[one], os.O_RDONLY)
        for low in range(0, files.size, BUFFERED_STEP):
            part = files.views[one][low : low + BUFFERED_STEP]
            assert os.preadv(fd, [part], low) == len(part)
            digest(part)
        os.close(fd)


def store_ours(files: Files, which: Sequence[int]) -> None:
    """Through our tier: checksummed, published whole; small chunks share files, as the engine's jobs do."""
    for part in in_jobs(files, which):
        for outcome in files.tier.write_many(part):
            assert isinstance(outcome, Stored), outcome


def store_theirs(files: Files, which: Sequence[int]) -> None:
    """Through vLLM's C extension, buffered; published by rename."""
    paths, offsets = [files.theirs[i] for i in which], [files.offsets[i] for i in which]
    batch_store_block(paths, files.buffer, offsets, files.size, False)


LOADS: dict[str, Work] = {
    "ours": load_ours,
    "vllm": load_theirs,
    "vllm direct": partial(load_theirs, direct=True),
    "bare": load_bare,
    "bare, hashed": load_bare_hashed,
}
STORES: dict[str, Work] = {"ours": store_ours, "vllm": store_theirs}


def timed(work: Work, files: Files, threads: int) -> float:
    """Seconds for all files, shared among some threads."""
    shares = [range(files.count)[one::threads] for one in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: None, range(threads)))  # threads are made before the clock runs
        begun = time.perf_counter()
        list(pool.map(lambda share: work(files, share), shares))
        return time.perf_counter() - begun


def request_ours(files: Files, shares: Sequence[Sequence[int]], runner: Runner) -> float:
    """Seconds until requests' chunks are all loaded, as the scheduler's thread sees it."""
    begun = time.perf_counter()
    left = 0

    def done(_outcomes: object) -> None:
        nonlocal left
        left -= 1

    for share in shares:
        place = {files.keys[one]: one for one in share}
        parts = batches([(key, 0) for key in place], list(map(files.size_of, place)))
        left += len(parts)
        together = Together(len(parts))
        for part in parts:
            which = [place[key] for key, _ in part]
            runner.submit(Priority.READ, partial(load_ours, files, which), done, together)
    while left:
        runner.wait(0.1)
        runner.poll()
        assert time.perf_counter() - begun < PATIENCE
    return time.perf_counter() - begun


def request_theirs(
    files: Files, shares: Sequence[Sequence[int]], pool: DualQueueThreadPool, direct: bool
) -> float:
    """The same through vLLM's threads, one task for each request, as its tier submits it."""
    begun = time.perf_counter()
    for number, share in enumerate(shares):
        pool.enqueue_load(number, 1, [partial(load_theirs, files, share, direct=direct)])
    pool.wait_idle()
    seconds = time.perf_counter() - begun
    finished = pool.get_finished()
    assert len(finished) == len(shares) and all(ok for _, ok, _ in finished)
    return seconds


def our_runner(threads: int) -> Runner:
    """I/O threads as an engine has them."""
    return Runner(threads, MonotonicClock(), PATIENCE)
