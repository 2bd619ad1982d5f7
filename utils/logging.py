"""Log lines, progress bars and TensorBoard, for one process or several."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

T = TypeVar("T")
PLAIN_INTERVAL = 10.0  # seconds between progress lines where the output is no terminal
LOGGER = "drs"


def get_logger() -> logging.Logger:
    """The project's logger."""
    return logging.getLogger(LOGGER)


def setup_logging(log_file: Path | None = None, main_process: bool = True) -> logging.Logger:
    """Log to stderr and, if given, append to `log_file`; other ranks log warnings only."""
    logging.raiseExceptions = False  # a full disk under the log file is no reason for tracebacks
    logger = get_logger()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    formatter = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None and main_process:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger


def progress(items: Iterable[T], desc: str, total: int | None = None, unit: str = "batch",
             enabled: bool = True) -> Iterator[T]:
    """Yield from `items` with a bar on a terminal, or a log line now and then elsewhere.

    Set `enabled` to False on all ranks but the first.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not enabled:
        yield from items
    elif sys.stderr.isatty():
        with logging_redirect_tqdm([get_logger()]):
            yield from tqdm(items, desc=desc, total=total, unit=unit, leave=False,
                            dynamic_ncols=True)
    else:
        logger, start = get_logger(), time.monotonic()
        last = start
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - last > PLAIN_INTERVAL:
                last = now
                of = f"/{total}" if total else ""
                left = f", {(now - start) / done * (total - done):.0f} s left" if total else ""
                logger.info("%s: %d%s %s%s", desc, done, of, unit, left)


def duration(seconds: float) -> str:
    """A time that people can read: 8 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class ScalarWriter:
    """TensorBoard events of one stage; nothing is written on other ranks than the first."""

    def __init__(self, folder: Path, enabled: bool = True) -> None:
        self._writer = None
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # slow to import: only when used

            self._writer = SummaryWriter(str(folder))

    def add(self, values: dict[str, float], step: int) -> None:
        """Write one point of every curve."""
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
