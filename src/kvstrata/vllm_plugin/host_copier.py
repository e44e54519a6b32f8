"""Device ↔ arena copies where the device is host memory (vLLM's CPU build)."""

import ctypes
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from kvstrata.vllm_plugin.copies import Copies, coalesce

LOAD_WAIT_SECONDS = 0.0005

_memmove = ctypes.memmove  # a foreign call: releases the GIL while it copies


@dataclass(frozen=True, slots=True)
class Finished:
    """One transfer that has ended: its id, bytes copied, seconds it took."""

    job: int
    nbytes: int
    seconds: float


class _Transfer:
    def __init__(self, job: int, parts: int, nbytes: int) -> None:
        self.job = job
        self.left = parts
        self.nbytes = nbytes
        self.started = time.perf_counter()
        self.done = threading.Event()


class HostCopier:
    """Copies in background threads, loads before stores.

    Args:
        threads: that copy at the same time; memory bandwidth is exhausted by about two.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._parts = threads or max(1, min(2, os.cpu_count() or 1))
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = (
            queue.PriorityQueue()
        )
        self._sequence = 0
        self._lock = threading.Lock()
        self._open: dict[int, _Transfer] = {}
        self._loads: dict[int, _Transfer] = {}
        self._finished: deque[Finished] = deque()
        self._threads = [
            threading.Thread(target=self._run, name="kvstrata-copy", daemon=True)
            for _ in range(self._parts)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: int, copies: Copies, *, to_device: bool) -> None:
        """Begin a transfer. The memory on both sides must stay until it has ended."""
        joined = coalesce(copies)
        source, target = (
            (joined.arena, joined.device) if to_device else (joined.device, joined.arena)
        )
        count = len(joined.nbytes)
        bounds = np.linspace(0, count, min(self._parts, max(count, 1)) + 1, dtype=int)
        transfer = _Transfer(job, len(bounds) - 1, joined.total_bytes)
        self._open[job] = transfer
        if to_device:
            self._loads[job] = transfer
        for low, high in itertools.pairwise(bounds.tolist()):
            rows = list(
                zip(
                    target[low:high].tolist(),
                    source[low:high].tolist(),
                    joined.nbytes[low:high].tolist(),
                    strict=True,
                )
            )
            self._put(0 if to_device else 1, partial(self._copy, transfer, rows))

    def finished(self) -> list[Finished]:
        """Transfers that have ended since the last call.

        With a load under way it waits for a moment: a request stands still for it, and an engine that
        spins would keep the interpreter from the copying threads.
        """
        for transfer in list(self._loads.values())[:1]:
            transfer.done.wait(LOAD_WAIT_SECONDS)
        ended = []
        while self._finished:
            ended.append(self._finished.popleft())
        return ended

    def wait(self, jobs: Iterable[int]) -> None:
        """Block until these transfers have ended; unknown ids are passed over."""
        for job in jobs:
            transfer = self._open.get(job)
            if transfer is not None:
                transfer.done.wait()

    def close(self) -> None:
        """Finish everything, then stop the threads."""
        self.wait(list(self._open))
        for _ in self._threads:
            self._put(2, None)
        for thread in self._threads:
            thread.join()

    def _put(self, priority: int, work: Callable[[], None] | None) -> None:
        self._sequence += 1
        self._queue.put((priority, self._sequence, work))

    def _copy(self, transfer: _Transfer, rows: list[tuple[int, int, int]]) -> None:
        for target, source, nbytes in rows:
            _memmove(target, source, nbytes)
        with self._lock:
            transfer.left -= 1
            last = transfer.left == 0
        if last:
            seconds = time.perf_counter() - transfer.started
            self._open.pop(transfer.job, None)
            self._loads.pop(transfer.job, None)
            self._finished.append(Finished(transfer.job, transfer.nbytes, seconds))
            transfer.done.set()

    def _run(self) -> None:
        while True:
            work = self._queue.get()[2]
            if work is None:
                return
            work()
