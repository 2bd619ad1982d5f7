"""How a stage begins and ends: options recorded, finished images skipped, errors as one line."""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

from utils import runtime as runtimes
from utils.files import UserError, output_folder, write_json
from utils.logging import get_logger, setup_logging
from utils.options import resolve_folders

log = get_logger()
RECORD = ".made_by.json"  # in an output folder: what its files were made from
# Options that do not shape the result, so a run may go on with others.
NEUTRAL = {"device", "amp", "num_workers", "overwrite", "run_dir", "output_dir", "data_root",
           "saliency_dir", "maps_dir", "save_maps", "epochs"}


def launch(stage: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a stage; what the user can mend becomes one line and a non-zero exit status."""
    setup_logging()
    try:
        stage(args)
    except UserError as error:
        # A data loading process wraps the message in its traceback: keep the message.
        text = str(error).rpartition("UserError: ")[2].strip()
        sys.exit(f"error: {text}")
    except FloatingPointError as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: out of GPU memory; lower --batch-size ({str(error).splitlines()[0]})")
    except KeyboardInterrupt:
        log.warning("interrupted; the same command goes on from here")
        sys.exit(130)
    finally:
        runtimes.shutdown()


def begin(args: argparse.Namespace, inputs: Mapping[str, Any]) -> runtimes.Runtime:
    """Set up folders, device and log; print and record versions, options, inputs and output."""
    resolve_folders(args)
    runtime = runtimes.setup(getattr(args, "device", "cpu"), getattr(args, "amp", "off"),
                             getattr(args, "seed", 0))
    output_folder(args.output_dir)
    logs = output_folder(args.run_dir / "logs", "--run-dir")
    announce(runtime, logs, args.output_dir.name, vars(args), inputs, args.output_dir)
    return runtime


def announce(runtime: runtimes.Runtime, logs: Path, name: str, options: Mapping[str, Any],
             inputs: Mapping[str, Any], output: Path) -> None:
    """Log to LOGS/NAME.log; print and record (LOGS/NAME.json) what runs, where and with what."""
    setup_logging(logs / f"{name}.log", runtime.main)
    if not runtime.main:
        return
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "torchvision": torchvision.__version__, "numpy": numpy.__version__}
    write_json(logs / f"{name}.json",
               {"command": sys.argv, "options": options, "versions": versions})
    device = torch.cuda.get_device_name(runtime.device) \
        if runtime.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    log.info("%s", "  ".join(f"{name} {value}" for name, value in versions.items()))
    log.info("device %s  processes %d  precision %s", device, runtime.world,
             runtime.amp_dtype or "float32")
    log.info("options %s", "  ".join(f"{k}={v}" for k, v in sorted(options.items())))
    for what, source in inputs.items():
        log.info("reads %s: %s", what, source)
    log.info("writes %s", output)


def shaping_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the result, as plain values."""
    return {name: value if isinstance(value, (int, float, bool, str, list, type(None)))
            else str(value) for name, value in vars(args).items() if name not in NEUTRAL}


def labelling_todo(args: argparse.Namespace, ids: Sequence[str],
                   runtime: runtimes.Runtime) -> list[int]:
    """The indices of the images that a stage with --checkpoint has yet to write."""
    made_from = {name: value for name, value in shaping_options(args).items()
                 if name not in ("list", "checkpoint", "batch_size", "seed")}
    made_from["checkpoint"] = fingerprint(args.checkpoint)
    return unfinished(args.output_dir, ids, made_from, args.overwrite, runtime)


def unfinished(folder: Path, ids: Sequence[str], made_from: Mapping[str, Any], overwrite: bool,
               runtime: runtimes.Runtime) -> list[int]:
    """The indices of the `ids` that have no PNG in `folder` yet.

    What the files are made from is recorded there, so that files of another checkpoint or rule
    are never taken for finished ones, now or when another list comes to the same folder.

    Raises:
        UserError: files that would stay in the folder were made from something else.
    """
    record, todo = folder / RECORD, []
    if runtime.main:
        made_from = json.loads(json.dumps(dict(made_from), default=str))
        names = [f"{image_id}.png" for image_id in ids]
        there = {path.name for path in folder.glob("[!.]*.png")}
        replaced = there.intersection(names) if overwrite else set()
        staying = there - replaced
        before = json.loads(record.read_text()) if record.exists() else {}
        changed = sorted(name for name in made_from.keys() | before.keys()
                         if made_from.get(name) != before.get(name))
        if staying and changed:
            raise UserError(f"{folder} holds {len(staying)} files made with other "
                            f"{', '.join(changed)}: use another --output-dir"
                            + ("" if overwrite else ", or --overwrite"))
        for name in replaced:
            (folder / name).unlink()
        write_json(record, made_from)
        todo = [i for i, name in enumerate(names) if name not in staying]
        if len(todo) < len(ids):
            log.info("%d of %d are there already", len(ids) - len(todo), len(ids))
    return runtime.gather(todo)[0]


def fingerprint(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() \
                if hasattr(hashlib, "file_digest") else _sha256(file)
    except OSError as error:
        raise UserError(f"checkpoint {path}: {error.strerror}") from error


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def report_failures(errors: Iterable[str], total: int, runtime: runtimes.Runtime) -> None:
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
