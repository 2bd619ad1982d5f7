"""A command run by one of several machines: `python -m utils.torchrun ... -m utils.once COMMAND`.

COMMAND is what follows `python`. All machines meet, the one of process 0 runs it, the others wait.
"""

import argparse
import os
import subprocess
import sys

from utils.stage import launch

# What torchrun tells its processes, and the command is not to take for itself.
TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def main(args: argparse.Namespace) -> None:
    """Run the command once; ends with its exit status, on every machine."""
    from utils.nodes import require_same
    from utils.runtime import setup

    runtime = setup("cpu")
    require_same(runtime, {"command": args.command})
    status = 0
    if runtime.main:
        own = {name: value for name, value in os.environ.items()
               if name not in TORCHRUN and not name.startswith("TORCHELASTIC")}
        status = subprocess.run([sys.executable, *args.command], env=own, check=False).returncode
    status = runtime.gather(status)[0]
    if status and not runtime.main:
        from utils.files import UserError

        raise UserError(f"{' '.join(args.command[:2])} failed on the first machine (status "
                        f"{status}); its output says why")
    if status:
        sys.exit(status)


if __name__ == "__main__":
    launch(main, argparse.Namespace(command=sys.argv[1:]))
