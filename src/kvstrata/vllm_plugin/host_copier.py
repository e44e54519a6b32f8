"""Device ↔ arena copies where the device is host memory (vLLM's CPU build).

A run of rows at equal distances is one numpy copy, a single row one `memmove`; both let the GIL go while
they copy, and nothing is made for a row of a run.
"""

import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstrata.vllm_plugin.copies import Copies, coalesce, split, strided_runs
from kvstrata.vllm_plugin.processors import usable_processors

LOAD_WAIT_SECONDS = 0.0005
SPIN_SECONDS = 0.002
"""An engine that asks again so soon computes nothing meanwhile; one that decodes takes longer a step."""
PIECE_BYTES = 16 << 20
"""Copied without looking for something more urgent: a millisecond or two."""

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
        self._parts = threads or min(2, usable_processors())
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = (
            queue.PriorityQueue()
        )
        self._sequence = 0
        self._lock = threading.Lock()
        self._open: dict[int, _Transfer] = {}
        self._loads: dict[int, _Transfer] = {}
        self._finished: deque[Finished] = deque()
        self._asked = 0.0
        self._threads = [
            threading.Thread(target=self._run, name="kvstrata-copy", daemon=True)
            for _ in range(self._parts)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: int, copies: Copies, *, to_device: bool) -> None:
        """Begin a transfer. The memory on both sides must stay until it has ended."""
        pieces = split(copies, PIECE_BYTES, self._parts)
        transfer = _Transfer(job, len(pieces), copies.total_bytes)
        self._open[job] = transfer
        if to_device:
            self._loads[job] = transfer
        for piece in pieces:
            self._put(0 if to_device else 1, partial(self._copy, transfer, piece, to_device))

    def finished(self) -> list[Finished]:
        """Transfers that have ended since the last call.

        An engine that spins with a load under way is made to wait for a moment: it would keep the
        interpreter from the copying threads. One that decodes for other requests is not held up.
        """
        if time.perf_counter() - self._asked < SPIN_SECONDS:
            for transfer in list(self._loads.values())[:1]:
                transfer.done.wait(LOAD_WAIT_SECONDS)
        self._asked = time.perf_counter()
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

    def _copy(self, transfer: _Transfer, piece: Copies, to_device: bool) -> None:
        copy(piece, to_device=to_device)
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


def copy(copies: Copies, *, to_device: bool) -> None:
    """Copy now, in this thread; the two sides must not overlap."""
    joined = coalesce(copies)
    runs = strided_runs(joined)
    source, target = (joined.arena, joined.device) if to_device else (joined.device, joined.arena)
    from_step, to_step = (
        (runs.arena_step, runs.device_step) if to_device else (runs.device_step, runs.arena_step)
    )
    single = runs.rows == 1
    lone = runs.heads[single]
    for to, origin, nbytes in zip(
        target[lone].tolist(), source[lone].tolist(), joined.nbytes[lone].tolist(), strict=True
    ):
        _memmove(to, origin, nbytes)
    many = np.flatnonzero(~single)
    heads = runs.heads[many]
    for to, origin, nbytes, rows, to_stride, from_stride in zip(
        target[heads].tolist(),
        source[heads].tolist(),
        joined.nbytes[heads].tolist(),
        runs.rows[many].tolist(),
        to_step[many].tolist(),
        from_step[many].tolist(),
        strict=True,
    ):
        np.copyto(_window(to, rows, to_stride, nbytes), _window(origin, rows, from_stride, nbytes))


class _Memory:
    """Bytes at an address, as numpy's array interface, version 3, describes them."""

    def __init__(self, address: int, rows: int, stride: int, nbytes: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (rows, nbytes),
            "strides": (stride, 1),
            "data": (address, False),
        }


def _window(address: int, rows: int, stride: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """A writable view of shape (rows, nbytes), uint8; rows are `stride` bytes apart."""
    return np.asarray(_Memory(address, rows, stride, nbytes))
