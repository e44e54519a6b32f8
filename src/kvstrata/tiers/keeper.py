"""Keeping a shared root within its bound: samples it, and removes what was not used for longest.

Every engine that has a bound runs one keeper. Whoever has the lease looks and removes; what it found stands
in a small file of the root, for the others. A look costs some hundred directories, however large the root.
Two at once, where a file system has no locks, remove a little too much and do no other harm.
"""

import logging
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvstrata.chunks.key import ChunkKey, parse_file_name
from kvstrata.clock import Clock
from kvstrata.fileio.lease import lease
from kvstrata.tiers.ring import Directories, sample, walk
from kvstrata.tiers.shares import RING, Bound, Eviction, evict, room
from kvstrata.tiers.sweep import (
    LEASE_FILE,
    ORPHANED,
    Usage,
    namespaces_of,
    read_usage,
    sweep,
    write_usage,
)

logger = logging.getLogger(__name__)

REST_SECONDS = 30.0
"""Between two looks, while nothing is written."""
WAIT_SECONDS = 0.05
"""Until the next look at what another process finds out just now."""
LEAST_PAUSE = 0.01
IDLE = 4
"""Between looks the thread rests so many times as long as one took, however much there is to write: the
engine needs the interpreter too."""
WORK_SECONDS = 0.005
"""An eviction rests as long as it worked, each time that it worked so long, unless the bound is exceeded."""


@dataclass(frozen=True, slots=True)
class Done:
    """What one look led to: what is known since, what was removed, and whether there is more to remove."""

    usage: Usage
    removed: Sequence[str] = ()
    nbytes: float = 0.0
    more: bool = False


class Keeper:
    """See the module.

    Args:
        root: of the storage tier.
        bound: of all its namespaces together.
        clock: for the pace.
        told: called by the keeper's thread after each look, with what it led to.
        chunk: bytes of the largest chunk that is written.
        chance: chooses samples.
    """

    def __init__(
        self,
        root: Path,
        bound: Bound,
        clock: Clock,
        told: Callable[[Done], None],
        chunk: int = 0,
        chance: random.Random | None = None,
    ) -> None:
        self._root = root
        self._bound = bound
        self._clock = clock
        self._told = told
        self._chunk = chunk
        self._chance = chance or random.Random()
        self._guard = threading.Lock()
        self._room = 0.0
        self._written = 0
        self._round = -1
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = ""

    def start(self) -> None:
        """Look at once, and again whenever it is due."""
        self._thread = threading.Thread(target=self._run, name="kvstrata-keeper", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Look no more; waits for what is under way, for a limited time."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def admit(self, nbytes: int) -> bool:
        """Whether so much may be written before anyone looks again; from any thread."""
        with self._guard:
            admitted = self._written + nbytes <= self._room
            if admitted:
                self._written += nbytes
            if not admitted or self._written > self._room / 2:
                self._wake.set()
            return admitted

    def look(self) -> Done | None:
        """One look, and what it makes due; None while another process is at it.

        Raises:
            OSError: the root cannot be looked at.
        """
        with self._guard:
            before = self._written
        with lease(f"{self._root}/{LEASE_FILE}") as got:
            known = read_usage(self._root) or Usage()
            done = self._tend(known) if got else Done(known)
        if not got and known.round == self._round:
            return None
        with self._guard:
            self._round = done.usage.round
            # What was written while it was looked is in no estimate for certain.
            self._written -= before if got else self._written
            self._room = room(done.usage.used, done.usage.bound)
        return done

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            begun = self._clock.now()
            pause = self._turn()
            self._stopped.wait(max(IDLE * (self._clock.now() - begun), LEAST_PAUSE))
            self._wake.wait(pause)

    def _turn(self) -> float:
        """One look by the thread; returns the seconds to rest."""
        try:
            done = self.look()
        except OSError as error:
            if self._failed != str(error):
                self._failed = str(error)
                logger.warning(
                    "cannot find out how full %s is (%s); nothing is stored until it can be",
                    self._root,
                    error,
                )
            with self._guard:
                self._room = 0.0
            self._stopped.wait(1.0)
            return REST_SECONDS
        self._failed = ""
        if done is None:
            return WAIT_SECONDS
        self._told(done)
        return 0.0 if done.more else REST_SECONDS

    def _tend(self, known: Usage) -> Done:
        directories = Directories(namespaces_of(self._root))
        seen = sample(directories, self._chance)
        status = os.statvfs(self._root)
        bound = self._bound.bytes_of(
            seen.nbytes, status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        )
        due = evict(seen, bound, self._chunk)
        usage = Usage(known.round + 1, seen.nbytes, bound, known.place, seen.directories)
        now = write_usage(self._root, usage)
        if due is None:
            return Done(usage)
        done = self._evict(directories, due, usage, now)
        write_usage(self._root, done.usage)
        return done

    def _evict(self, directories: Directories, due: Eviction, usage: Usage, now: float) -> Done:
        since = self._clock.now()

        def rest() -> bool:
            nonlocal since
            worked = self._clock.now() - since
            if worked > WORK_SECONDS and usage.used < usage.bound:
                self._stopped.wait(worked)
                since = self._clock.now()
            return self._stopped.is_set()

        swept = sweep(walk(directories, usage.place % RING), due, now - ORPHANED, rest)
        left = max(usage.used - swept.nbytes, 0.0)
        after = msgspec.structs.replace(usage, round=usage.round + 1, used=left, place=swept.place)
        more = swept.nbytes > 0 and left > usage.bound
        return Done(after, swept.removed, swept.nbytes, more)


def keys_in(paths: Sequence[str], namespace: str) -> list[ChunkKey]:
    """Keys of those files that lie in a namespace's directory.

    Args:
        paths: of removed files.
        namespace: its directory.
    """
    inside = [path for path in paths if path.startswith(f"{namespace}/")]
    return [key for path in inside if (key := parse_file_name(os.path.basename(path))) is not None]
