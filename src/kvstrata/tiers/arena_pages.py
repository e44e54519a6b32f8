"""Memory for an arena's pages: allocated and mapped by a background thread, in steps, without the GIL.

Allocating comes first and decides whether there is enough. Who made the arena does it, and tells the other
members through the control area how far it is; nobody may touch a byte before all of it is done, because
a page that the file system cannot give is a SIGBUS in the middle of a copy. Mapping follows in every
member: it changes no byte, so it may run while the arena is in use, and only spares copies the faults.

Where the mount gives huge pages (`huge=advise`, `within_size` or `always`), memory is allocated through a
mapping that asks for them: `fallocate` has no mapping, and takes small pages on an `advise` mount.
"""

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import re
import threading
import time
from pathlib import Path

logger = logging.getLogger("vllm.kvstrata")

MADV_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>, Linux 5.14
ALLOCATE_STEP = 64 << 20
POPULATE_STEP = 8 << 20
"""Bytes mapped by one call, a few milliseconds: who maps or unmaps memory in this process waits for it."""
POLL_SECONDS = 0.02
_HUGE = re.compile(r"(?:^|,)huge=(advise|within_size|always)(?:,|$)")
_libc = ctypes.CDLL(None, use_errno=True)


class Progress:
    """How far the arena's memory is allocated, where all members see it.

    Args:
        cell: 16 bytes of the control area, aligned to 8; zero when the arena is made.
    """

    def __init__(self, cell: memoryview) -> None:
        self._words = cell.cast("q")

    @property
    def allocated(self) -> int:
        """Bytes of the data area, from its start, that can be touched."""
        return self._words[0]

    @allocated.setter
    def allocated(self, nbytes: int) -> None:
        self._words[0] = nbytes

    @property
    def error(self) -> int:
        """The errno that ended the allocation, or 0."""
        return self._words[1]

    @error.setter
    def error(self, number: int) -> None:
        self._words[1] = number

    def release(self) -> None:
        """Let go of the control area."""
        self._words.release()


class Pages:
    """One member's part of the work, done in a thread of its own.

    Args:
        fd: of the arena's file, at full size; stays open until `stop` returns.
        mapping: of the whole file; kept alive by the thread.
        start: bytes of the file before the data area.
        progress: shared by all members.
        maker: whether this member allocates.
        huge: whether the file's mount gives huge pages.
    """

    def __init__(
        self,
        fd: int,
        mapping: mmap.mmap,
        start: int,
        progress: Progress,
        *,
        maker: bool,
        huge: bool,
    ) -> None:
        self._fd = fd
        self._mapping = mapping
        self._start = start
        self._total = len(mapping) - start
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping, start))
        self._progress = progress
        self._maker = maker
        self._huge = huge
        self._stop = threading.Event()
        if huge:
            with contextlib.suppress(OSError):  # a kernel without huge pages
                mapping.madvise(mmap.MADV_HUGEPAGE)
        self._thread = threading.Thread(target=self._run, name="kvstrata-pages", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the work where it is, within a step."""
        self._stop.set()
        self._thread.join()

    def join(self) -> None:
        """Wait until every page is mapped, or cannot be."""
        self._thread.join()

    def _run(self) -> None:
        begun = time.monotonic()
        if self._maker:
            self._allocate()
        while self._progress.allocated < self._total:
            if self._progress.error or self._stop.wait(POLL_SECONDS):
                return
        allocated = time.monotonic()
        with contextlib.suppress(OSError):  # of this thread alone; a container may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        if self._populate() and self._maker:
            logger.info(
                "kvstrata: host arena of %.1f GiB: allocated in %.2f s, mapped after %.2f s more, %s",
                self._total / 2**30,
                allocated - begun,
                time.monotonic() - allocated,
                f"{huge_bytes(self._address) / 2**30:.1f} GiB of it in huge pages"
                if self._huge
                else "no huge pages (its mount has no huge=advise)",
            )

    def _allocate(self) -> None:
        for begin in range(0, self._total, ALLOCATE_STEP):
            if self._stop.is_set():
                return
            length = min(ALLOCATE_STEP, self._total - begin)
            number = self._take(begin, length)
            if number:
                self._progress.error = number
                return
            self._progress.allocated = begin + length

    def _take(self, begin: int, length: int) -> int:
        """Allocate a range of the data area. Returns an errno, or 0."""
        if self._huge:
            number = self._madvise(begin, length)
            if number != errno.EINVAL:
                # EFAULT: a page fault would have raised SIGBUS, since the file system is full
                return errno.ENOSPC if number == errno.EFAULT else number
        try:
            os.posix_fallocate(self._fd, self._start + begin, length)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _populate(self) -> bool:
        """Map every page. Returns whether that was done; kernels before 5.14 cannot."""
        for begin in range(0, self._total, POPULATE_STEP):
            if self._stop.is_set():
                return False
            if self._madvise(begin, min(POPULATE_STEP, self._total - begin)):
                return False
        return True

    def _madvise(self, begin: int, length: int) -> int:
        where = ctypes.c_void_p(self._address + begin)
        if _libc.madvise(where, ctypes.c_size_t(length), MADV_POPULATE_WRITE) == 0:
            return 0
        return ctypes.get_errno()


def gives_huge_pages(path: Path) -> bool:
    """Whether the memory filesystem that holds a file is mounted so that it gives huge pages.

    `/sys/kernel/mm/transparent_hugepage/shmem_enabled` does not speak of mounts, only of anonymous shared
    memory (Linux, admin-guide/mm/transhuge).
    """
    device = os.stat(path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split()
        if fields[2] == name and _HUGE.search(fields[-1]):
            return True
    return False


def huge_bytes(address: int) -> int:
    """Bytes of the mapping around an address that this process has mapped in huge pages."""
    inside = False
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            inside = int(head[1], 16) <= address < int(head[2], 16)
        elif inside and line.startswith("ShmemPmdMapped:"):
            return int(line.split()[1]) * 1024
    return 0
