"""The runner: priorities, cancelling, stuck threads, and an end that never hangs."""

import threading

from kvstrata.clock import ManualClock, MonotonicClock
from kvstrata.tiering.runner import MAX_REPLACED, Priority, Runner, Together


def drain(runner: Runner, jobs: int) -> None:
    done = 0
    while done < jobs:
        done += runner.poll()


def test_what_requests_wait_for_goes_first() -> None:
    runner = Runner(1, MonotonicClock(), 60)
    gate, order = threading.Event(), []
    runner.submit(Priority.READ, gate.wait, lambda _: None)
    for priority in (Priority.WRITE, Priority.READ, Priority.WRITE, Priority.SURVEY):
        runner.submit(priority, lambda p=priority: order.append(p), lambda _: None)
    gate.set()
    drain(runner, 5)
    assert order == [Priority.SURVEY, Priority.READ, Priority.WRITE, Priority.WRITE]
    runner.close(1)


def test_writes_leave_threads_for_reads() -> None:
    runner = Runner(4, MonotonicClock(), 60)
    gate, running = threading.Event(), threading.Semaphore(0)
    for _ in range(8):
        runner.submit(Priority.WRITE, lambda: (running.release(), gate.wait()), lambda _: None)
    running.acquire()
    running.acquire()
    results = []
    runner.submit(Priority.READ, lambda: 1, results.append)
    drain(runner, 1)
    assert results == [1] and not running.acquire(blocking=False)
    gate.set()
    runner.close(5)


def test_a_cancelled_job_is_not_done_but_reported() -> None:
    runner = Runner(1, MonotonicClock(), 60)
    gate, results = threading.Event(), []
    runner.submit(Priority.READ, gate.wait, lambda _: None)
    runner.submit(Priority.READ, lambda: 1 / 0, results.append).cancelled = True
    gate.set()
    drain(runner, 2)
    assert results == [None]
    runner.close(1)


def test_work_that_raises_costs_a_result_not_a_thread() -> None:
    runner = Runner(1, MonotonicClock(), 60)
    results = []
    runner.submit(Priority.READ, lambda: 1 / 0, results.append)
    runner.submit(Priority.READ, lambda: 2, results.append)
    drain(runner, 2)
    assert results == [None, 2]
    runner.close(1)


def test_a_stuck_thread_is_replaced_and_its_result_still_counts() -> None:
    clock = ManualClock()
    runner = Runner(1, clock, stuck_after=5)
    gate, started, results = threading.Event(), threading.Event(), []
    runner.submit(Priority.READ, lambda: (started.set(), gate.wait(), "late")[2], results.append)
    started.wait()
    assert runner.tend() == 0
    clock.advance(6)
    assert runner.tend() == 1
    runner.submit(Priority.READ, lambda: "prompt", results.append)
    drain(runner, 1)
    assert results == ["prompt"]
    gate.set()
    drain(runner, 1)
    assert results == ["prompt", "late"] and runner.tend() == 0


def test_a_write_that_hangs_does_not_take_the_only_writer_for_ever() -> None:
    clock = ManualClock()
    runner = Runner(2, clock, stuck_after=5)
    gate, started, results = threading.Event(), threading.Event(), []
    runner.submit(Priority.WRITE, lambda: (started.set(), gate.wait(), "late")[2], results.append)
    started.wait()
    runner.submit(Priority.WRITE, lambda: "next", results.append)
    clock.advance(6)
    assert runner.tend() == 1
    drain(runner, 1)
    assert results == ["next"]
    assert not runner.busy and runner.depth(Priority.WRITE) == 0
    gate.set()
    drain(runner, 1)
    assert results == ["next", "late"] and not runner.busy
    assert runner.close(1)


def test_when_everything_is_stuck_it_says_so() -> None:
    clock = ManualClock()
    runner = Runner(1, clock, stuck_after=5)
    gate, started = threading.Event(), threading.Semaphore(0)
    for _ in range(MAX_REPLACED + 1):
        runner.submit(Priority.READ, lambda: (started.release(), gate.wait()), lambda _: None)
        started.acquire()
        assert not runner.exhausted
        clock.advance(6)
        runner.tend()
    assert runner.exhausted
    gate.set()
    drain(runner, MAX_REPLACED + 1)
    runner.tend()
    assert not runner.exhausted


def test_closing_finishes_writes_but_does_not_wait_for_ever() -> None:
    runner = Runner(2, MonotonicClock(), 60)
    written = []
    for i in range(20):
        runner.submit(Priority.WRITE, lambda i=i: written.append(i), lambda _: None)
    assert runner.close(5) and sorted(written) == list(range(20))

    runner = Runner(1, MonotonicClock(), 60)
    gate, started = threading.Event(), threading.Event()
    runner.submit(Priority.READ, lambda: (started.set(), gate.wait()), lambda _: None)
    started.wait()
    assert not runner.close(0.05)
    gate.set()


def test_jobs_that_belong_together_wake_the_waiter_once_all_have_ended() -> None:
    runner = Runner(1, ManualClock(), 10)
    gate, ended = threading.Event(), []
    together = Together(2)
    runner.submit(Priority.READ, lambda: 1, ended.append, together)
    runner.submit(Priority.READ, gate.wait, ended.append, together)
    while runner.depth(Priority.READ) > 1:
        runner.wait(0.001)
    assert runner.poll() == 1  # delivered whenever somebody asks
    gate.set()
    runner.wait(30)
    assert runner.poll() == 1 and ended == [1, True]
    assert runner.close(1)
