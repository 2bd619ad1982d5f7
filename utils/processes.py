"""Work shared out to processes that never outlive the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 16  # items handed to a process at once


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") \
        else os.cpu_count() or 1


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], processes: int
                     ) -> Iterator[Result]:
    """`map` over a pool of processes, results in the order of `items`; in this one if 0 or 1.

    Args:
        function: importable, so that it also works where processes are spawned.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    # Not by fork: the copy of a process that has threads (OpenCV's) waits for them forever.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(method),
                               initializer=_begin_worker)
    try:
        yield from pool.map(function, items, chunksize=CHUNK)
    except BaseException:  # after Ctrl-C, too: nobody waits for what is not wanted any more
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    pool.shutdown()


def end_with_parent(_: int = 0) -> None:
    """Have this process end when the one that started it does, even if that was killed.

    PyTorch's loading processes (whose number is given) look after their parent between two samples
    only, and may wait forever for room in a queue that nobody reads any more.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        pass


def _end_with(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)
