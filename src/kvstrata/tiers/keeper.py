"""Keeping a shared root within its bound: samples it, and removes what was not used for longest.

Every engine that has a bound runs one keeper. Whoever has the lease looks and removes; what it found stands
in a small file of the root, for the others. A look costs some hundred directories, however large the root.
Two at once, where a file system has no locks, remove a little too much and do no other harm.
"""

import contextlib
import logging
import math
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvstrata.chunks.key import ChunkKey, parse_file_name
from kvstrata.clock import Clock
from kvstrata.fileio.lease import lease
from kvstrata.fileio.sharing import Sharing
from kvstrata.tiers.recency import Recency
from kvstrata.tiers.ring import Contents, Directories, sample, stretch, walk
from kvstrata.tiers.shares import (
    PATROL,
    Bound,
    Eviction,
    Part,
    age_that_goes,
    evict,
    patrol_length,
    room,
)
from kvstrata.tiers.spaces import (
    STAMP_SECONDS,
    Space,
    claims_of,
    find_spaces,
    remove_shell,
    stamp,
)
from kvstrata.tiers.sweep import (
    LEASE_FILE,
    ORPHANED,
    Swept,
    Usage,
    file_system_time,
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


LEAST_PATROL_SECONDS = 1.0
FUTURE = 3600.0
"""Files whose time is further in the future count as the oldest, seconds."""


@dataclass(frozen=True, slots=True)
class Done:
    """What one look led to.

    Attributes:
        usage: what is known since.
        removed: paths of files.
        nbytes: that went with them.
        more: whether there is more to remove at once.
    """

    usage: Usage
    removed: Sequence[str] = ()
    nbytes: float = 0.0
    more: bool = False


class Settling:
    """Which of the bytes that this process wrote are in an estimate for certain, whoever took it. Pure.

    A sample that somebody else took says nothing of when it began. But whoever takes the next one begins
    after this one was written down, so what was written when one sample was seen is in the second one after
    it.
    """

    def __init__(self) -> None:
        self._sample = 0
        self._marked = 0
        self._earlier = 0

    def settled(self, sample: int, written: int, before: int | None) -> int:
        """Bytes that an estimate holds for certain; they are not asked about again.

        Args:
            sample: number of the sample that it comes from.
            written: bytes so far, less those that were settled.
            before: of these, those before the sample was taken, if this process took it.
        """
        since = sample - self._sample
        if since == 0:
            return 0
        certain = self._earlier if since == 1 else self._marked
        settled = certain if before is None else before
        self._sample = sample
        self._earlier, self._marked = max(self._marked - settled, 0), written - settled
        return settled


class Keeper:
    """See the module.

    Args:
        root: of the storage tier.
        bound: of all its namespaces together; may be none, where only what is past its time goes.
        clock: for the pace.
        told: called by the keeper's thread after each look, with what it led to.
        chunk: bytes of the largest chunk that is written.
        chance: chooses samples.
        own: directory of the engine's namespace, which is said to be in use as long as it runs.
        unused_after: seconds after which a namespace that nobody uses goes first; 0 for never.
        recency: told of the file system's time, and of the age at which files go.
        sharing: who may read what is written down of the root.
    """

    def __init__(
        self,
        root: Path,
        bound: Bound,
        clock: Clock,
        told: Callable[[Done], None],
        chunk: int = 0,
        chance: random.Random | None = None,
        *,
        own: Path | None = None,
        unused_after: float = 0.0,
        recency: Recency | None = None,
        sharing: Sharing = Sharing.USER,
    ) -> None:
        self._root = root
        self._bound = bound
        self._clock = clock
        self._told = told
        self._chunk = chunk
        self._chance = chance or random.Random()
        self._own = own
        self._stamped = clock.now()
        self._unused_after = unused_after
        self._recency = recency
        self._sharing = sharing
        self._pause = REST_SECONDS
        self._guard = threading.Lock()
        self._room = 0.0
        self._written = 0
        self._flying = 0
        self._settling = Settling()
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
        """Whether so much may be written before anyone looks again; from any thread. See `landed`."""
        with self._guard:
            admitted = self._written + nbytes <= self._room
            if admitted:
                self._written += nbytes
                self._flying += nbytes
            if not admitted or self._written > self._room / 2:
                self._wake.set()
            return admitted

    def landed(self, nbytes: int) -> None:
        """So many of the bytes that were admitted are written, or will not be; from any thread."""
        with self._guard:
            self._flying -= nbytes

    def look(self) -> Done | None:
        """One look, and what it makes due; None while another process is at it.

        Raises:
            OSError: the root cannot be looked at.
        """
        with self._guard:
            before = self._written - self._flying
        with lease(f"{self._root}/{LEASE_FILE}", self._sharing) as got:
            known = read_usage(self._root) or Usage()
            done = self._tend(known) if got else Done(known)
        if not got and known.round == self._round:
            return None
        bound = done.usage.bound if got else self._bytes_of(known.used)
        with self._guard:
            self._round = done.usage.round
            sample = done.usage.samples or done.usage.round
            landed = self._written - self._flying
            self._written -= self._settling.settled(sample, landed, before if got else None)
            self._room = room(done.usage.used, bound) if self._bound else math.inf
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
        if self._own is not None and self._clock.now() - self._stamped > STAMP_SECONDS:
            self._stamped = self._clock.now()
            with contextlib.suppress(OSError):
                stamp(self._own)
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
        return 0.0 if done.more else self._pause

    def _bytes_of(self, used: float) -> float:
        """The bound now; 0 where there is none.

        Raises:
            OSError: the file system does not tell its size.
        """
        if not self._bound:
            return 0.0
        status = os.statvfs(self._root)
        unit = status.f_frsize
        return self._bound.bytes_of(used, status.f_bavail * unit, status.f_blocks * unit)

    def _tend(self, known: Usage) -> Done:
        """Look, and remove what is due."""
        now = file_system_time(self._root)
        spaces = find_spaces(self._root)
        root = Directories(
            [one.path for one in spaces], {one.path: one.windowed for one in spaces}, now + FUTURE
        )
        seen = sample(root, self._chance)
        bound, age = self._bytes_of(seen.nbytes), age_that_goes(seen, now)
        if self._recency is not None:
            self._recency.learn(now, age)
        newest: dict[str, float] = {}
        for one in seen.files:
            newest[one.space] = max(newest.get(one.space, -math.inf), one.used)
        claims = claims_of(spaces, newest, now, self._unused_after)
        usage = msgspec.structs.replace(
            known,
            round=known.round + 1,
            samples=known.samples + 1,
            used=seen.nbytes,
            bound=bound,
            directories=seen.directories,
            age=age,
        )
        done = Done(usage)
        due = evict(seen, bound, self._chunk, claims, now) if self._bound else None
        if due is not None:
            write_usage(self._root, usage, self._sharing)
            done = self._evict(root, spaces, due, usage, now)
        done = self._patrol(root, spaces, done, now)
        self._remove_shells(spaces, newest, now)
        write_usage(self._root, done.usage, self._sharing)
        return done

    def _evict(
        self, root: Directories, spaces: Sequence[Space], due: Eviction, usage: Usage, now: float
    ) -> Done:
        """Remove what is beyond the bound."""
        swept = self._sweep(walk(root, usage.place), spaces, due, usage, now)
        left = max(usage.used - swept.nbytes, 0.0)
        after = msgspec.structs.replace(usage, round=usage.round + 1, used=left, place=swept.place)
        more = swept.nbytes > 0 and left > usage.bound
        return Done(after, swept.removed, swept.nbytes, more)

    def _patrol(self, root: Directories, spaces: Sequence[Space], done: Done, now: float) -> Done:
        """Remove what is past its time, in those directories whose turn it is."""
        parts = {one.path: Part(now - one.terms.ttl) for one in spaces if one.terms.ttl}
        if not parts:
            self._pause = REST_SECONDS
            return done
        ttl = min(one.terms.ttl for one in spaces if one.terms.ttl)
        self._pause = min(max(PATROL * ttl, LEAST_PATROL_SECONDS), REST_SECONDS)
        usage = done.usage
        since = now - usage.patrolled
        # Nobody has been on patrol for long, or somebody's clock was wrong.
        if not 0 <= since <= ttl:
            since = self._pause
        places = stretch(root, usage.patrol, patrol_length(since, ttl))
        swept = self._sweep(places, spaces, Eviction(-math.inf, math.inf, parts), usage, now)
        after = msgspec.structs.replace(
            usage,
            used=max(usage.used - swept.nbytes, 0.0),
            patrol=swept.place,
            patrolled=now,
        )
        removed = [*done.removed, *swept.removed]
        return Done(after, removed, done.nbytes + swept.nbytes, done.more)

    def _sweep(
        self,
        places: Iterator[tuple[int, Contents]],
        spaces: Sequence[Space],
        due: Eviction,
        usage: Usage,
        now: float,
    ) -> Swept:
        """Remove what is due, at a pace that leaves the disk to readers unless the bound is exceeded."""
        since = self._clock.now()

        def rest() -> bool:
            nonlocal since
            worked = self._clock.now() - since
            if worked > WORK_SECONDS and (not self._bound or usage.used < usage.bound):
                self._stopped.wait(worked)
                since = self._clock.now()
            return self._stopped.is_set()

        windowed = {one.path: one.windowed for one in spaces}
        return sweep(places, due, now - ORPHANED, rest, windowed)

    def _remove_shells(
        self, spaces: Sequence[Space], newest: Mapping[str, float], now: float
    ) -> None:
        """Remove one namespace that nobody uses and that holds nothing any more."""
        empty = [one for one in spaces if one.path not in newest]
        for path, claim in claims_of(empty, {}, now, self._unused_after).items():
            if claim.unused and remove_shell(path):
                logger.info("nobody has used %s for long, and nothing is in it: removed", path)
                return


def keys_in(paths: Sequence[str], namespace: str) -> list[ChunkKey]:
    """Keys of those files that lie in a namespace's directory.

    Args:
        paths: of removed files.
        namespace: its directory.
    """
    inside = [path for path in paths if path.startswith(f"{namespace}/")]
    return [key for path in inside if (key := parse_file_name(os.path.basename(path))) is not None]
