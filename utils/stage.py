"""How a stage begins and ends: its errors, a lock, a log, a record of what it did."""

import argparse
import atexit
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import nodes
from utils.errors import (
    ERROR_FILE,
    PATIENCE,
    another_failed_first,
    explain,
    fail,
    is_of_a_connection,
)
from utils.files import UserError, output_folder, sweep, write_json, write_text
from utils.logging import setup_logging

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from filelock import FileLock

    from utils.runtime import Runtime

log = logging.getLogger("drs")
LOCK = ".lock"
Shard = tuple[int, int] | None  # I of N
TERMINATED = 128 + signal.SIGTERM


class _Session:
    """What the running stage has open; one stage runs in a process at a time."""

    def __init__(self) -> None:
        self.locks: list[FileLock] = []
        self.summary: dict[str, Any] = {}
        self.summary_path: Path | None = None
        self.earlier = ""  # what stood in its place
        self.works: bool | None = None  # see `expect_work`
        self.start = time.monotonic()
        self.at_end: list[Callable[[], None]] = []
        self.ending = False

    def close(self, completed: bool) -> None:
        for tidy in self.at_end:
            tidy()
        if self.summary_path is not None:
            if self.earlier and not (completed if self.works is None else self.works):
                with suppress(UserError):  # such as a full disk, which is what is being reported
                    write_text(self.summary_path, self.earlier)
            elif completed:
                self.summary["seconds"] = round(time.monotonic() - self.start, 1)
                write_json(self.summary_path, self.summary)
        for held in self.locks:
            free(held)


_session = _Session()


def launch(stage: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a stage; what the user can mend becomes one line and a non-zero exit status."""
    global _session
    _session = _Session()
    # Threads that wait by spinning slow each other down manifold where processes share cores; those
    # that sleep at once wake up late. So they spin for some microseconds: the least that pays.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    setup_logging()
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if not alone:
        nodes.end_with_parent()
    # One of several may wait in a collective, where no handler runs: it ends at once instead.
    handlers: dict[int, Any] = {signal.SIGTERM: _interrupt if alone else signal.SIG_DFL}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        handlers[signal.SIGINT] = _interrupt
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    completed = False
    try:
        stage(args)
        completed = True
    except KeyboardInterrupt:
        log.warning("interrupted; the same command goes on from here")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        message = explain(error) or nodes.lost_connection(error)
        if message is None and ERROR_FILE in os.environ and is_of_a_connection(error):
            time.sleep(PATIENCE)  # until `utils.torchrun`, which knows who died, ends this one, too
        if another_failed_first():
            sys.exit(1)  # a broken connection is only what this process saw of it
        if message is None:  # a fault of ours keeps its traceback
            raise
        fail(f"error: {message}")
    finally:
        # First, and no call: a signal's exception would come before one, and nothing be tidied.
        _session.ending = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _session.close(completed)
        for number, handler in before.items():
            signal.signal(number, handler)
        if "torch" in sys.modules:
            from utils.runtime import shutdown

            shutdown()
    if not alone:
        _end()


def _end() -> None:
    """End this process, one of several, in which all went well, without taking Python down.

    Threads of the process group may live on, for DistributedDataParallel keeps it, and one that
    lets go of a tensor while the interpreter ends aborts the process.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _interrupt(number: int, _: object) -> None:
    if _session.ending:  # tidying up is quick, and not to be interrupted
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(TERMINATED)


def at_end(tidy: Callable[[], None]) -> None:
    """Have `tidy` called when the running stage ends, however it ends, before locks are released;
    no signal interrupts it."""
    _session.at_end.append(tidy)


def begin(args: argparse.Namespace, name: str | None = None) -> "Runtime":
    """Set up device, folders and log; lock the output folder; print versions and options.

    Args:
        args: of a `StageParser`.
        name: of the stage's files in RUN_DIR/logs; None: that of the output folder.
    """
    from utils import runtime as runtimes

    runtime = runtimes.setup(getattr(args, "device", "cpu"), getattr(args, "amp", "off"),
                             getattr(args, "seed", 0))
    options = {name: value for name, value in vars(args).items()
               if name not in ("shaping", "defaults")}
    logs = None if args.dry_run else args.run_dir / "logs"
    shard: Shard = getattr(args, "shard", None)
    name = (name or args.output_dir.name) + (
        f"-shard{shard[0]}-of-{shard[1]}" if shard else "")
    open_output(runtime, logs, name, options, () if args.dry_run else (args.output_dir,), shard)
    # An option without a default of its own has been worked out from others.
    note(defaults={name: args.defaults.get(name, value) for name, value in options.items()})
    return runtime


def open_output(runtime: "Runtime", logs: Path | None, name: str, options: Mapping[str, Any],
                folders: Iterable[Path], shard: Shard = None) -> None:
    """Lock output folders, log to LOGS/NAME.log, print and record what runs, where, with what.

    Several machines must agree on code and options, and see the first one's locks.

    Args:
        logs: None: nothing is written.
        name: of the stage's files in `logs`.
        folders: the output folders; made, locked and swept of what a killed process left there.
    """
    folders = list(folders)
    nodes.require_same(runtime, options)
    if runtime.main:
        for folder in folders:
            hold(output_folder(folder), shard)
    runtime.barrier()
    nodes.require_shared(runtime, [_holder(folder / _lock(shard)) for folder in folders])
    if logs is not None:
        output_folder(logs, "--run-dir")
    setup_logging(logs and logs / f"{name}.log", runtime.main)
    if not runtime.main:
        return
    from utils.runtime import now

    made = now()
    note(command=made.pop("command"), options=dict(options), when=made.pop("when"),
         began=time.time(), device=runtime.describe(), versions=made)
    if logs is not None:
        _session.summary_path = logs / f"{name}.json"
        with suppress(OSError, ValueError):  # none, or damaged
            _session.earlier = _session.summary_path.read_text(encoding="utf-8")
        write_json(_session.summary_path, _session.summary)
    log.info("%s", "  ".join(f"{name} {value}" for name, value in made.items()))
    log.info("%s", runtime.describe())
    log.info("options %s", "  ".join(f"{k}={v}" for k, v in sorted(options.items())))
    for folder in folders:
        log.info("writes %s", folder)


def note(**facts: Any) -> None:
    """Add facts to the record of the stage in RUN_DIR/logs, for `report.py`."""
    _session.summary |= facts
    if _session.summary_path is not None:
        write_json(_session.summary_path, _session.summary)


def expect_work(some: bool) -> None:
    """Say whether this stage has anything left to do. If not, or if it ends with an error before it
    gets here, the record in RUN_DIR/logs stays that of the run whose results are there."""
    _session.works = some


def hold(folder: Path, shard: Shard = None) -> None:
    """Lock `folder` until this stage ends, however it ends; remove what a killed one left there.

    Shards of one list work there at the same time, each with a lock of its own, and leave what is
    half-written alone. They keep away from a run of the whole list, and it from them.

    Raises:
        UserError: another process works there.
    """
    _session.locks.append(hold_path(folder / _lock(shard), str(folder)))
    if shard is None:
        for other in folder.glob(".shard-*-of-*.lock"):
            free(hold_path(other, str(folder)))
        sweep(folder)
    elif (folder / LOCK).exists():
        free(hold_path(folder / LOCK, str(folder)))


def _lock(shard: Shard) -> str:
    return LOCK if shard is None else f".shard-{shard[0]}-of-{shard[1]}.lock"


def _holder(lock: Path) -> Path:
    """The file that says who holds a lock."""
    return lock.with_suffix(".holder")


def hold_path(path: Path, what: str) -> "FileLock":
    """A held lock on the file `path`, to be released; it falls away when this process dies.

    Raises:
        UserError: another process holds it; the message says which, and that `what` is in use.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path, timeout=0)
    try:
        held.acquire()
    except Timeout:
        try:
            who = _holder(path).read_text(encoding="utf-8").strip()
        except OSError:
            who = "another process"
        raise UserError(f"{what}: in use by {who}; wait for it, end it, or use another folder"
                        ) from None
    except OSError as error:
        raise UserError(f"{what}: cannot be locked ({error.strerror or error})") from error
    since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    try:
        _holder(path).write_text(
            f"process {os.getpid()} on {socket.gethostname()} since {since}\n", encoding="utf-8")
    except OSError as error:
        free(held)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:  # Ctrl-C in just this moment
        free(held)
        raise
    return held


def free(held: "FileLock") -> None:
    """Release a lock of `hold_path`; its files go while it is still held."""
    path = Path(held.lock_file)
    for leftover in (_holder(path), path):
        leftover.unlink(missing_ok=True)
    held.release()


def report_failures(errors: Iterable[str], total: int, runtime: "Runtime") -> None:
    """End a labelling stage in which some images failed.

    Raises:
        UserError: there were failures; the message names the first files.
    """
    failed = [error for part in runtime.gather(list(errors)) for error in part]
    if failed:
        for error in failed[:20]:
            log.warning("failed: %s", error)
        raise UserError(f"{len(failed)} of {total} images failed, the others are done: "
                        f"{'; '.join(failed[:3])}{' ...' if len(failed) > 3 else ''}")
