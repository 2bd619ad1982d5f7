"""Writing results while the network computes: a small pool of threads, and PNGs made quickly.

In: functions that write one file, and images. Out: files, each whole or absent.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from utils.files import atomic_write
from utils.threads import Outcomes, Threads

THREADS = 4  # Pillow, OpenCV and zlib compress outside the interpreter's lock
WAITING = 32  # files that may wait or be written: more would only cost memory


class Writers:
    """Threads that write files; used in a `with` block, which ends when all is on disk.

    An error of a write (`UserError`: the disk is full, say) is raised by one of the next `submit`,
    at the latest by the end of the block. If the block is left by an error or by Ctrl-C, writes
    that have begun are finished and those that wait are dropped.
    """

    def __init__(self, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._threads, self._outcomes = Threads(threads, "writer"), Outcomes()
        self._waiting, self._open = waiting, 0

    def submit(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` called soon; waits while too many others are waiting.

        The arguments must not be changed afterwards.

        Raises:
            UserError: an earlier write failed.
        """
        while self._open >= self._waiting or not self._outcomes.empty():
            self._settle()
        self._open += 1
        self._threads.submit(self._outcomes, function, *args)

    def flush(self) -> None:
        """Wait until everything submitted is on disk.

        Raises:
            UserError: a write failed.
        """
        while self._open:
            self._settle()

    def _settle(self) -> None:
        _, error = self._outcomes.get()
        self._open -= 1
        if error is not None:
            raise error

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._threads.close()


def save_png(path: Path, image: Image.Image, **options: Any) -> None:
    """Write a PNG, atomically; `options` are those of Pillow's `save`.

    Run-length compression suits labels and maps: a quarter of the time of Pillow's default for
    files of the same size.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_write(path) as tmp:
        image.save(tmp, format="PNG", compress_type=zlib.Z_RLE, **options)
