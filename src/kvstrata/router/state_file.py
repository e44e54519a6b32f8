"""What was learned, kept in a file over a restart. A file that cannot be used costs nothing but that."""

import asyncio
import contextlib
import logging
import os
import stat
import threading
import time
from pathlib import Path

from kvstrata.errors import ConfigError
from kvstrata.router.chooser import Chooser

log = logging.getLogger(__name__)

LARGEST = 64 << 20
_LAST_WRITE = 5.0


class StateFile:
    """One file. Both methods do I/O and are for threads; neither fails: they say what is wrong instead.

    Args:
        path: of the file, in a directory that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self._last = b""
        self._complaint = ""
        self._lock = threading.Lock()

    def load(self) -> bytes:
        """What the file holds; empty when there is nothing to be had from it."""
        try:
            # Whatever has that name, it is not waited for.
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
                    log.warning("%s holds nothing that was learned: it begins anew", self.path)
                    return b""
                return file.read(LARGEST)
        except FileNotFoundError:
            log.warning("%s is not there yet: what is learned begins anew", self.path)
        except OSError as error:
            log.warning("%s cannot be read, what is learned begins anew: %s", self.path, error)
        return b""

    def store(self, data: bytes) -> None:
        """Replace the file's content in one step, readable for its owner only; nothing for no data."""
        with self._lock:
            if data and data != self._last:
                self._replace(data)

    def _replace(self, data: bytes) -> None:
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(new, flags, 0o600)
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o600)
                file.write(data)
                file.flush()
                os.fsync(handle)
            new.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            if str(error) != self._complaint:
                log.warning("what is learned cannot be kept in %s: %s", self.path, error)
            self._complaint = str(error)
            return
        self._last, self._complaint = data, ""


class Keeping:
    """Keeps what a chooser learns, off the loop.

    Args:
        file: where.
        chooser: that learns.
        every: seconds between two writes.
    """

    def __init__(self, file: StateFile, chooser: Chooser, every: float = 60.0) -> None:
        self._file = file
        self._chooser = chooser
        self._every = every
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Go on with what the file holds, and keep it up to date from now on."""
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(None, self._file.load)
        if data:
            try:
                self._chooser.restore(data, time.monotonic())
            except ConfigError as error:
                log.warning("%s: %s", self._file.path, error)
        self._task = loop.create_task(self._run())

    async def end(self) -> None:
        """Write it once more; a disk that hangs is not waited for."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WRITE):
                await self._write()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                await self._write()
            except Exception:  # boundary: one failure must not end all later writes
                log.exception("what is learned was not kept")

    async def _write(self) -> None:
        data = self._chooser.save(time.monotonic())
        await asyncio.get_running_loop().run_in_executor(None, self._file.store, data)
