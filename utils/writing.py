"""Writing results while the network computes: a small pool of threads, and PNGs made quickly.

In: functions that write one file, and images. Out: files, each whole or absent.
"""

import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from PIL import Image

from utils.files import atomic_write
from utils.stage import at_end

THREADS = 4  # Pillow, OpenCV and zlib compress outside the interpreter's lock
WAITING = 32  # files that may wait or be written: more would only cost memory


class Writers:
    """Threads that write files; used in a `with` block, which ends when all is on disk.

    An error of a write (`UserError`: the disk is full, say) is raised by one of the next `submit`,
    at the latest by the end of the block. If the block is left by an error or by Ctrl-C, writes
    that have begun are finished and those that wait are dropped.

    A signal may raise its exception anywhere in the main thread, also in the middle of starting a
    thread. So nothing here depends on what the main thread has noted of a thread, all queues and
    locks are made in C, and `launch` closes what a signal has kept from being closed.
    """

    def __init__(self, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._tasks: SimpleQueue[tuple[Callable[..., object], tuple] | None] = SimpleQueue()
        self._results: SimpleQueue[BaseException | None] = SimpleQueue()
        self._busy = [threading.Lock() for _ in range(threads)]  # each held by a thread at work
        self._waiting, self._open = waiting, 0
        self._begun = self._closed = False

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` called soon; waits while too many others are waiting.

        The arguments must not be changed afterwards.

        Raises:
            UserError: an earlier write failed.
        """
        if not self._begun:  # not sooner: loading processes may be forked until now
            self._begun = True
            for busy in self._busy:
                threading.Thread(target=self._work, args=(busy,), name="writer",
                                 daemon=True).start()
        while self._open >= self._waiting or not self._results.empty():
            self._settle()
        self._open += 1
        self._tasks.put((function, args))

    def flush(self) -> None:
        """Wait until everything submitted is on disk.

        Raises:
            UserError: a write failed.
        """
        while self._open:
            self._settle()

    def _settle(self) -> None:
        error = self._results.get()
        self._open -= 1
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the writes that have begun, and drop the others."""
        self._closed = True
        for busy in self._busy:
            with busy:
                self._tasks.put(None)

    def _work(self, busy: threading.Lock) -> None:
        while (task := self._tasks.get()) is not None:
            error: BaseException | None = None
            with busy:
                if self._closed:
                    return
                try:
                    task[0](*task[1])
                except BaseException as failure:  # raised in the main thread
                    error = failure
            self._results.put(error)

    def __enter__(self) -> "Writers":
        at_end(self.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()


def save_png(path: Path, image: Image.Image, **options: Any) -> None:
    """Write a PNG, atomically; `options` are those of Pillow's `save`.

    Run-length compression suits labels and maps: a quarter of the time of Pillow's default for
    files of the same size.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_write(path) as tmp:
        image.save(tmp, format="PNG", compress_type=zlib.Z_RLE, **options)
