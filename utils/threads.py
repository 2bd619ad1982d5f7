"""Work on many files with the cores there are: results in order, a bounded number in flight.

Threads, not processes: decoding, resizing, counting and compressing run in C outside of Python's
lock, results need no copying, and when the script ends, however it ends, nothing is left behind.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # items in flight for each thread


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") \
        else os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], items: Iterable[T],
                threads: int | None = None) -> Iterator[R]:
    """`function` of each item, in the items' order, computed by `threads` (default: one a core).

    Memory does not grow with the number of items. The first exception, in the items' order, ends
    the iteration, as an interruption does: what has not begun is dropped.
    """
    threads = threads or cores()
    items = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ordered_map")
    try:
        running: deque[Future[R]] = deque(
            pool.submit(function, item) for item in islice(items, threads * AHEAD))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)
