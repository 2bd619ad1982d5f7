"""torchrun, with an error of one line, printed last: `python -m utils.torchrun OPTIONS SCRIPT ...`.

The options are torchrun's own (`--standalone --nproc-per-node 2`, ...). With a rendezvous on
several machines (`--rdzv-endpoint HOST:PORT`), HOST and PORT are looked at first.
"""

import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from utils.errors import ERROR_FILE

MEETING = "read_timeout=600"  # a machine may come ten minutes late
ANSWER = 10  # seconds within which another of our agents answers at its port


def endpoint(argv: list[str]) -> tuple[str, int] | None:
    """Host and port of `--rdzv-endpoint`; None where there is none."""
    for option, value in zip(argv, argv[1:], strict=False):
        if option in ("--rdzv-endpoint", "--rdzv_endpoint"):
            host, _, port = value.rpartition(":")
            return host, int(port)
    return None


def require_free(host: str, port: int) -> None:
    """Check that HOST is known and, if it is this machine, that nothing foreign is at PORT.

    Ends the process with one line if not.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        sys.exit(f"error: --rdzv {host}:{port}: no machine of that name ({error.strerror})")
    with socket.socket(address[0], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address[4])
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # the address of another machine
                return
    if not _agent_answers(host, port):
        sys.exit(f"error: --rdzv {host}:{port}: the port is in use by another program; choose "
                 "another, the same on every machine")


def _agent_answers(host: str, port: int) -> bool:
    """Whether one of our agents, on this machine, is at the port."""
    from torch.distributed import TCPStore

    answered = []

    def ask() -> None:
        with suppress(RuntimeError):
            TCPStore(host, port, is_master=False, wait_for_workers=False,
                     timeout=timedelta(seconds=ANSWER))
            answered.append(True)

    # In a thread, for where a stranger accepts and is silent, PyTorch waits without end.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    return bool(answered)


def main(argv: list[str]) -> None:
    """Run; ends the process with the script's exit status."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what sockets say, too
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    # The agent says in a hundred lines that a process failed; the process says why in one.
    logging.disable(logging.CRITICAL)
    place = endpoint(argv)
    if place is not None:
        require_free(*place)
        # Agents that share one store remember where it was: one that comes back would wait for
        # what the others, who know, do not say again.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        if not any(word.startswith(("--rdzv-conf", "--rdzv_conf")) for word in argv):
            argv = ["--rdzv-conf", MEETING, *argv]
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ERROR_FILE] = f"{folder}/error"
        try:
            run.main(argv)
        except ChildFailedError as error:
            lines = sorted(Path(folder).glob("error*"), key=lambda path: path.stat().st_mtime)
            if lines:  # the last restart's
                sys.exit(lines[-1].read_text(encoding="utf-8"))
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                sys.exit(f"error: process {rank} ended with status {failure.exitcode}")
            how = signal.Signals(-failure.exitcode).name
            sys.exit(f"error: process {rank} was ended by {how}"
                     f"{' (out of memory?)' if how == 'SIGKILL' else ''}; the same command goes on "
                     "from what is saved")
        except (RendezvousError, DistError) as error:
            where = "the rendezvous" if place is None else f"--rdzv {place[0]}:{place[1]}"
            sys.exit(f"error: {where}: the machines did not meet ({type(error).__name__}); give "
                     "the same command on every machine at about the same time")
        except (SignalException, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main(sys.argv[1:])
