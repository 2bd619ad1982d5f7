"""torchrun, with an error of one line, printed last: `python -m utils.torchrun OPTIONS SCRIPT ...`.

The options are torchrun's own (`--standalone --nproc-per-node 2`, ...).
"""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from utils.stage import ERROR_FILE


def main(argv: list[str]) -> None:
    """Run; ends the process with the script's exit status."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The agent says in a hundred lines that a process failed; the process says why in one.
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        error_file = Path(folder) / "error"
        os.environ[ERROR_FILE] = str(error_file)
        try:
            run.main(argv)
        except ChildFailedError as error:
            if error_file.is_file():
                sys.exit(error_file.read_text(encoding="utf-8"))
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                sys.exit(f"error: process {rank} ended with status {failure.exitcode}")
            how = signal.Signals(-failure.exitcode).name
            sys.exit(f"error: process {rank} was ended by {how}"
                     f"{' (out of memory?)' if how == 'SIGKILL' else ''}; the same command goes on "
                     "from what is saved")
        except (SignalException, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main(sys.argv[1:])
