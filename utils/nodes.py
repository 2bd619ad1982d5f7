"""Several machines: whether they run the same code with the same options and see one run folder.

In: what each process runs and sees. Out: nothing, or on every process an error of one line that
names what differs. Processes of one machine are taken to agree.
"""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import is_of_a_connection
from utils.files import UserError

if TYPE_CHECKING:
    from utils.runtime import Runtime

ROOT = Path(__file__).resolve().parents[1]
# By name: a data set with millions of files may lie in the root, too.
CODE = ("", "models", "datasets", "labelling", "utils", "DeepLab-V2-PyTorch",
        "DeepLab-V2-PyTorch/libs")
SEEN_AFTER = 30.0  # seconds in which a shared folder must show what another machine has written


def several() -> bool:
    """Whether the processes are on more than one machine, or in more than one torchrun agent."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    return world > int(os.environ.get("LOCAL_WORLD_SIZE", world))


def facts(options: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same everywhere: name, as a message has it -> value or digest."""
    import torch

    found = {"the script": Path(sys.argv[0]).name, "PyTorch": str(torch.__version__)}
    for folder in CODE:
        for path in sorted((ROOT / folder).glob("*.py")):
            found[str(path.relative_to(ROOT))] = \
                "code " + hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    # Options of a configuration, SECTION.KEY, have no hyphens.
    return found | {name if "." in name else f"--{name.replace('_', '-')}": str(value)
                    for name, value in options.items()}


def require_same(runtime: "Runtime", options: Mapping[str, Any]) -> None:
    """Compare code, versions and options of all machines.

    Raises:
        UserError: on every process, naming the first differences.
    """
    if not several():
        return
    mine = facts(options)
    digest = hashlib.sha256(repr(sorted(mine.items())).encode()).hexdigest()
    if len(set(runtime.gather(digest))) == 1:
        return
    (first, theirs), *others = runtime.gather((socket.gethostname(), mine))
    for rank, (host, there) in enumerate(others, start=1):
        if changed := [f"{name} is {theirs.get(name, 'missing')} on {first} (process 0), "
                       f"{there.get(name, 'missing')} on {host} (process {rank})"
                       for name in sorted({*theirs, *there})
                       if theirs.get(name) != there.get(name)]:
            raise UserError(f"--nodes: {'; '.join(changed[:3])}"
                            f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}: "
                            "give every machine the same code and the same command")


def require_shared(runtime: "Runtime", files: Iterable[Path]) -> None:
    """Check that every machine sees these files as the first one has just written them.

    Raises:
        UserError: on every process, naming the machine and the folder.
    """
    if not several():
        return
    paths = list(files)
    for path, text in runtime.gather([(path, _text(path)) for path in paths])[0]:
        deadline = time.monotonic() + SEEN_AFTER
        while _text(path) != text and time.monotonic() < deadline:
            time.sleep(0.5)  # network file systems show new files late
        seen = _text(path) == text
        for rank, (host, sees) in enumerate(runtime.gather((socket.gethostname(), seen))):
            if not sees:
                raise UserError(f"{path.parent}: {host} (process {rank}) does not see what the "
                                "first machine writes there; --run-dir must be on a file system "
                                "that all machines share, under the same path")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def lost_connection(error: BaseException) -> str | None:
    """The one line for the loss of a process on another machine; None for any other error."""
    text = str(error).strip()
    if not several() or not is_of_a_connection(error):
        return None
    return (f"the connection to another machine was lost ({text.splitlines()[0][:120]}): the "
            "cause is in the output there; the same command on every machine goes on from here")


def end_with_parent() -> None:
    """End this process within seconds after its parent, torchrun's agent, is gone."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
