"""The host arena: one shared mapping that the scheduler process and every worker of an engine attach.

Theory of operation. The mapping is a file in a memory filesystem. Whoever comes first makes it under a
private name, at full size, and links it to the engine's name; the others open that. Its maker's thread
then allocates the pages (`arena_pages`), while the engine warms up. Each member holds a shared lock on the
file for life. Workers *declare* facts that only they know (bytes of a block, memory layout); the scheduler,
which is made last, collects the declarations, waits until all memory is there, and then *seals* the arena:
it removes the name. From then on the kernel frees the memory when the last process is
gone, however it dies. An engine killed before it sealed leaves a name behind, which nobody locks: every
new arena first sweeps such names away.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import secrets
import time
from pathlib import Path
from typing import Any

from kvstrata.errors import ArenaError
from kvstrata.tiers.arena_pages import Pages, Progress, gives_huge_pages

_PREFIX = "kvstrata-"
_MAGIC = b"KVARENA1"
_PROGRESS = slice(16, 32)
"""Where in the control area `Progress` lies, behind magic and world size."""
_CELL = 64 << 10
"""Bytes of one declaration cell, and of the first page area."""


def arena_path(directory: str, engine_id: str) -> Path:
    """Where the arena of `engine_id` is named until it is sealed."""
    digest = hashlib.sha256(engine_id.encode()).hexdigest()[:32]
    return Path(directory) / f"{_PREFIX}{digest}"


def sweep(directory: str) -> list[Path]:
    """Remove the arenas of engines that died before they sealed them. Returns what was removed."""
    removed = []
    for path in Path(directory).glob(f"{_PREFIX}*"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path)
        except OSError:
            pass  # a living engine holds it
        finally:
            os.close(fd)
    return removed


class Arena:
    """One attached member's mapping. Its bytes may be touched once `await_memory` has returned.

    Attributes:
        data: writable uint8 view of the data area.
        data_bytes: its length.
        address: address of its first byte in this process.
    """

    def __init__(self, path: Path, fd: int, world_size: int, *, maker: bool) -> None:
        self.path = path
        self._fd = fd
        self._world_size = world_size
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        view = memoryview(self._map)
        start = _control_bytes(world_size)
        self._control = view[:start]
        self.data = view[start:]
        self.data_bytes = len(self.data)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map, start))
        self._progress = Progress(self._control[_PROGRESS])
        huge = gives_huge_pages(path.parent)
        self._pages = Pages(fd, self._map, start, self._progress, maker=maker, huge=huge)

    @classmethod
    def attach(cls, directory: str, engine_id: str, data_bytes: int, world_size: int) -> "Arena":
        """Open the engine's arena, or make it; its memory is allocated in the background.

        Args:
            directory: of a memory filesystem, such as /dev/shm.
            engine_id: the same in all processes of one engine and unique to it.
            data_bytes: wanted by whoever comes first; the others take what there is.
            world_size: workers of the engine.

        Raises:
            ArenaError: no such directory, no permission, or too little room; names the size wanted.
        """
        path = arena_path(directory, engine_id)
        try:
            sweep(directory)
            for _ in range(100):
                fd = _open_existing(path)
                maker = fd is None
                if fd is None:
                    fd = _create(path, _control_bytes(world_size) + data_bytes, world_size)
                if fd is not None:
                    return cls(path, fd, world_size, maker=maker)
        except OSError as error:
            raise ArenaError(
                f"cannot make the host arena in {directory!r}: {error.strerror}; give the option "
                f"'shm_dir' a writable directory of a memory filesystem"
            ) from error
        raise ArenaError(f"the host arena {path} keeps vanishing; is another engine sweeping it?")

    def declare(self, rank: int, facts: dict[str, Any]) -> None:
        """Leave a worker's facts for the scheduler.

        Args:
            rank: of the worker, below `world_size`.
            facts: JSON values.

        Raises:
            ArenaError: this rank has declared already, so two engines share one id.
        """
        cell = self._cell(rank)
        if cell[0]:
            raise ArenaError(
                f"worker {rank} of this engine id is attached already: two engines on this machine "
                f"use the same 'engine_id' in --kv-transfer-config; give each its own, or none"
            )
        text = json.dumps(facts).encode()
        assert len(text) <= _CELL - 8
        cell[4 : 4 + len(text)] = text
        cell[:4] = len(text).to_bytes(4, "big")
        cell[0] = 1  # last: a reader that sees it sees all

    def declarations(self, timeout: float) -> list[dict[str, Any]]:
        """Every worker's facts, in rank order; waits for them, and then for the arena's memory.

        Args:
            timeout: seconds for the workers; for the memory, seconds without progress.

        Raises:
            ArenaError: a worker did not declare in time, or there is too little memory.
        """
        deadline = time.monotonic() + timeout
        for rank in range(self._world_size):
            while not self._cell(rank)[0]:
                if time.monotonic() > deadline:
                    raise ArenaError(
                        f"worker {rank} of {self._world_size} did not attach the host arena within "
                        f"{timeout:g} s: all workers of an engine must run on the scheduler's machine"
                    )
                time.sleep(0.01)
        self.await_memory(timeout)
        return [json.loads(self._text(rank)) for rank in range(self._world_size)]

    def await_memory(self, patience: float) -> None:
        """Wait until every byte can be touched.

        Args:
            patience: seconds without progress; the whole takes about a second a few GiB.

        Raises:
            ArenaError: the memory filesystem is full, or its maker makes no progress.
        """
        seen, deadline = -1, 0.0
        while (allocated := self._progress.allocated) < self.data_bytes:
            if self._progress.error:
                raise _refusal(self._progress.error, self.data_bytes, self.path.parent)
            if allocated != seen:
                seen, deadline = allocated, time.monotonic() + patience
            if time.monotonic() > deadline:
                raise ArenaError(
                    f"only {allocated} of {self.data_bytes} bytes of the host arena were allocated, and "
                    f"none for {patience:g} s: has the worker that does it died, or is the machine swapping?"
                )
            time.sleep(0.005)

    def await_pages(self) -> None:
        """Wait until this member has mapped every page. Copies need not; measurements want it."""
        self._pages.join()

    def seal(self) -> None:
        """Remove the name. The memory lives as long as any member is attached."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def close(self) -> None:
        """Detach. The views must not be used any more; a view still held keeps the mapping alive."""
        if self._fd < 0:
            return
        self._pages.stop()  # it must not touch addresses that are another mapping's by then
        os.close(self._fd)
        self._fd = -1
        self._progress.release()
        for view in (self.data, self._control):
            with contextlib.suppress(BufferError):
                view.release()
        with contextlib.suppress(BufferError):
            self._map.close()

    def _cell(self, rank: int) -> memoryview:
        return self._control[(rank + 1) * _CELL : (rank + 2) * _CELL]

    def _text(self, rank: int) -> bytes:
        cell = self._cell(rank)
        length = int.from_bytes(bytes(cell[1:4]), "big")
        return bytes(cell[4 : 4 + length])


def _control_bytes(world_size: int) -> int:
    return _CELL * (world_size + 1)


def _open_existing(path: Path) -> int | None:
    """Open and lock the arena, or None when there is none (any more)."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
            os.close(fd)
            raise
    os.close(fd)
    time.sleep(0.01)
    return None


def _create(path: Path, size: int, world_size: int) -> int | None:
    """Make the arena at full size, or None when somebody else was first.

    Raises:
        ArenaError: too little room.
    """
    private = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    fd = os.open(private, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        _check_room(size, path.parent)
        os.ftruncate(fd, size)
        os.pwrite(fd, _MAGIC + world_size.to_bytes(4, "big"), 0)
        os.link(private, path)
    except FileExistsError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    finally:
        private.unlink(missing_ok=True)
    return fd


def _check_room(size: int, directory: Path) -> None:
    """Refuse at once what cannot succeed; `Pages` finds out what others take meanwhile."""
    status = os.statvfs(directory)
    if status.f_bavail * status.f_frsize < size:
        raise _refusal(errno.ENOSPC, size, directory)


def _refusal(number: int, size: int, directory: Path) -> ArenaError:
    """The error for people when the arena's memory cannot be had."""
    if number != errno.ENOSPC:
        return ArenaError(
            f"the host arena in {str(directory)!r} cannot be allocated: {os.strerror(number)}; give the "
            f"option 'shm_dir' a writable directory of a memory filesystem"
        )
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    return ArenaError(
        f"the host arena needs {size} bytes in {str(directory)!r}, where {free} are free: lower the "
        f"option 'memory', or raise the limit (docker run --shm-size=…, a Kubernetes emptyDir with "
        f"medium: Memory and a larger sizeLimit, or mount -o remount,size=… {directory})"
    )
