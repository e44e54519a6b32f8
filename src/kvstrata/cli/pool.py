"""One function over many files with several threads, without holding them all in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_threads() -> int:
    """Twice the processors, between 4 and 16: reads of a network filesystem mostly wait."""
    return max(4, min(16, 2 * (os.cpu_count() or 2)))


def each(items: Iterable[T], work: Callable[[T], R], threads: int) -> Iterator[tuple[T, R]]:
    """`(item, work(item))` for every item, in order, computed by `threads` threads.

    `items` is read only a few steps ahead. An exception of `work` is raised here and ends the
    iteration; work that has not begun by then is dropped.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(threads, "kvstrata-cli")
    try:
        waiting: deque[tuple[T, Future[R]]] = deque(
            (item, pool.submit(work, item)) for item in islice(source, 4 * threads)
        )
        while waiting:
            item, future = waiting.popleft()
            result = future.result()
            for following in islice(source, 1):
                waiting.append((following, pool.submit(work, following)))
            yield item, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
