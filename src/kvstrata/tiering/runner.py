"""Threads that do I/O, and nothing else: jobs in by priority, completions out by polling.

The threads are daemons and nobody joins them without a limit, so a file system call that never returns
costs one thread, not the engine. A thread that is stuck is replaced, up to a bound.
"""

import enum
import heapq
import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvstrata.clock import Clock

logger = logging.getLogger(__name__)


class Priority(enum.IntEnum):
    """Smaller goes first. Whatever a request waits for outranks writes."""

    SURVEY = 0
    READ = 1
    WRITE = 2


@dataclass(slots=True, eq=False)
class Together:
    """Jobs of which only the last one's end is worth waking up for.

    Attributes:
        left: jobs that have not ended.
    """

    left: int


@dataclass(slots=True)
class Job:
    """One piece of I/O.

    Attributes:
        priority: see `Priority`.
        work: what to do; should not raise.
        done: called by `Runner.poll`, in the polling thread, with what `work` returned; with None when
            the job was cancelled before it began, or `work` raised.
        together: the jobs that it belongs to, or None when its own end is worth waking up for.
        cancelled: set by the submitter when the result is not wanted; work that has not begun is
            then skipped.
    """

    priority: Priority
    work: Callable[[], Any]
    done: Callable[[Any], None]
    together: Together | None = None
    cancelled: bool = False


@dataclass(slots=True)
class _Thread:
    since: float | None = None
    job: Job | None = None
    replaced: bool = False


MAX_REPLACED = 16
"""Stuck threads that are replaced; beyond that the file system is left alone."""


class Runner:
    """A pool of I/O threads.

    Attributes:
        exhausted: whether so many threads are stuck that a new job would not be done; see `tend`.

    Args:
        threads: that work at the same time, when none is stuck.
        clock: to tell which threads are stuck.
        stuck_after: seconds in one job after which a thread counts as stuck.
    """

    def __init__(self, threads: int, clock: Clock, stuck_after: float) -> None:
        assert threads > 0
        self._clock = clock
        self._stuck_after = stuck_after
        self._max_writers = max(1, threads // 2)
        self._heap: list[tuple[int, float, int, Job]] = []
        self._order = itertools.count()
        self._queued: Counter[Priority] = Counter()
        self._running: Counter[Priority] = Counter()
        self._finished: deque[tuple[Job, Any]] = deque()
        self._wake = threading.Condition()
        self._progress = threading.Event()
        self._closed = False
        self.exhausted = False
        self._threads: list[_Thread] = []
        for _ in range(threads):
            self._start_thread()

    def submit(
        self,
        priority: Priority,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        together: Together | None = None,
        due: float = 0.0,
    ) -> Job:
        """Queue a job; never blocks. See `submit_all`."""
        return self.submit_all(priority, [(work, done)], together, due)[0]

    def submit_all(
        self,
        priority: Priority,
        parts: Sequence[tuple[Callable[[], Any], Callable[[Any], None]]],
        together: Together | None = None,
        due: float = 0.0,
    ) -> list[Job]:
        """What as many calls of `submit` would return.

        A thread that wakes takes the interpreter from the caller, so none wakes before all are queued.

        Args:
            priority: of all.
            parts: work and `done` of each.
            together: see `Job`.
            due: of jobs of one priority those with the least go first, and of these the first to come.
        """
        jobs = [Job(priority, work, done, together) for work, done in parts]
        with self._wake:
            for job in jobs:
                heapq.heappush(self._heap, (int(priority), due, next(self._order), job))
            self._queued[priority] += len(jobs)
            self._wake.notify(len(jobs))
        return jobs

    def poll(self) -> int:
        """Deliver what has finished: calls each job's `done`. Returns how many."""
        count = 0
        self._progress.clear()
        while self._finished:
            job, result = self._finished.popleft()
            job.done(result)
            count += 1
        return count

    def wait(self, timeout: float) -> None:
        """Sleep until something worth waking up for has ended since the last `poll`, or `timeout` seconds.

        A step of the engine costs the I/O threads the interpreter for a while, so one for each job that
        ends would slow down a load of many.
        """
        self._progress.wait(timeout)

    def depth(self, priority: Priority) -> int:
        """Jobs of this priority that are queued or running; not those of threads that were replaced."""
        return self._queued[priority] + self._running[priority]

    @property
    def busy(self) -> bool:
        """Whether a job is queued, running, or ended and not delivered yet."""
        with self._wake:  # else a job that ends meanwhile is in neither place
            return bool(self._finished) or any(self.depth(priority) for priority in Priority)

    def tend(self) -> int:
        """Replace threads that got stuck. Returns how many are stuck now.

        Sets `exhausted` when every thread is stuck and none can be replaced any more.
        """
        now = self._clock.now()
        with self._wake:
            stuck = [t for t in self._threads if t.since is not None and self._is_stuck(t, now)]
            for thread in stuck:
                replaced = sum(t.replaced for t in self._threads)
                if not thread.replaced and replaced < MAX_REPLACED and not self._closed:
                    assert thread.job is not None
                    thread.replaced = True
                    # It holds nobody up any more: not the next write, nor the engine's rest or end.
                    self._running[thread.job.priority] -= 1
                    self._start_thread()
            self.exhausted = len(stuck) == len(self._threads)
            return len(stuck)

    def close(self, timeout: float) -> bool:
        """Drop what nobody waits for any more (surveys, reads), finish writes, stop.

        Args:
            timeout: seconds to wait for writes; threads that are stuck are left behind.

        Returns:
            Whether everything was finished.
        """
        deadline = self._clock.now() + timeout
        with self._wake:
            self._closed = True
            for *_, job in self._heap:
                job.cancelled = job.cancelled or job.priority is not Priority.WRITE
            self._wake.notify_all()
            while self._heap or self._running.total():
                left = deadline - self._clock.now()
                if left <= 0:
                    break
                self._wake.wait(min(left, 0.1))
            clean = not self._heap and not self._running.total()
            self._heap.clear()
            self._wake.notify_all()
        return clean

    def _is_stuck(self, thread: _Thread, now: float) -> bool:
        return thread.since is not None and now - thread.since > self._stuck_after

    def _start_thread(self) -> None:
        state = _Thread()
        self._threads.append(state)
        threading.Thread(target=self._run, args=(state,), name="kvstrata-io", daemon=True).start()

    def _take(self) -> Job | None:
        """The next job that may start now; called under the lock."""
        while self._heap:
            priority, _, _, job = self._heap[0]
            if priority == Priority.WRITE and self._running[Priority.WRITE] >= self._max_writers:
                return None  # writes are last in the heap, so nothing else waits behind it
            heapq.heappop(self._heap)
            self._queued[job.priority] -= 1
            if not job.cancelled:
                return job
            self._ended(job, None)
            self._wake.notify_all()
        return None

    def _ended(self, job: Job, result: Any) -> None:
        """Leave a result for `poll`; called under the lock."""
        self._finished.append((job, result))
        if job.together is not None:
            job.together.left -= 1
        if job.together is None or job.together.left == 0:
            self._progress.set()

    @staticmethod
    def _work(job: Job) -> Any:
        try:
            return job.work()
        except Exception:  # boundary: a bug in a tier costs one result, not a thread
            logger.exception("an I/O job failed in a way that its tier does not foresee")
            return None

    def _run(self, state: _Thread) -> None:
        while True:
            with self._wake:
                while (job := self._take()) is None:
                    if self._closed and not self._heap:
                        return
                    self._wake.wait()
                self._running[job.priority] += 1
                state.since, state.job = self._clock.now(), job
            result = self._work(job)
            with self._wake:
                state.since = state.job = None
                if not state.replaced:
                    self._running[job.priority] -= 1
                self._ended(job, result)
                self._wake.notify_all() if self._closed else self._wake.notify()
                if state.replaced:
                    self._threads.remove(state)
                    return
