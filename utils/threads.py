"""Work shared by threads: results in order, a bounded number of items in flight.

Threads, not processes: decoding, resizing, counting and compressing run in C outside of Python's
lock, results need no copying, and when the script ends, however it ends, nothing is left behind.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

from utils.processes import cores
from utils.stage import at_end

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # items in flight for each thread
Outcomes = SimpleQueue[tuple[Any, BaseException | None]]  # what a call returned, or raised


class Threads:
    """Threads that call functions, first come, first served, until `close`.

    A signal may raise its exception anywhere in the main thread, also in the middle of starting a
    thread. So nothing here depends on what the main thread has noted of a thread, all queues and
    locks are made in C, and `launch` closes what a signal has kept from being closed.
    """

    def __init__(self, number: int, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Outcomes, Callable[..., object], tuple] | None] = \
            SimpleQueue()
        self._busy = [threading.Lock() for _ in range(number)]  # each held by a thread at work
        self._name = name
        self._begun = self._closed = False
        at_end(self.close)

    def submit(self, outcomes: Outcomes, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` called soon; what comes of it is put into `outcomes`."""
        if not self._begun:  # not sooner: loading processes may be forked until now
            self._begun = True
            for busy in self._busy:
                threading.Thread(target=self._work, args=(busy,), name=self._name,
                                 daemon=True).start()
        self._tasks.put((outcomes, function, args))

    def close(self) -> None:
        """Wait for the calls that have begun, and drop the others."""
        self._closed = True
        for busy in self._busy:
            with busy:
                self._tasks.put(None)

    def _work(self, busy: threading.Lock) -> None:
        while (task := self._tasks.get()) is not None:
            outcomes, function, args = task
            result: object = None
            error: BaseException | None = None
            with busy:
                if self._closed:
                    return
                try:
                    result = function(*args)
                except BaseException as failure:  # raised in the main thread
                    error = failure
            outcomes.put((result, error))


def ordered_map(function: Callable[[T], R], items: Iterable[T],
                threads: int | None = None) -> Iterator[R]:
    """`function` of each item, in the items' order, computed by `threads` (default: one a core).

    Memory does not grow with the number of items. The first exception, in the items' order, ends
    the iteration, as an interruption does: what has not begun is dropped.
    """
    number = threads or cores()
    items = iter(items)
    pool = Threads(number, "ordered_map")
    running: deque[Outcomes] = deque()

    def begin(count: int) -> None:
        for item in islice(items, count):
            running.append(SimpleQueue())
            pool.submit(running[-1], function, item)

    try:
        begin(number * AHEAD)
        while running:
            result, error = running.popleft().get()
            if error is not None:
                raise error
            yield result
            begin(1)
    finally:
        pool.close()
