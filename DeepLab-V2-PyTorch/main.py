"""DeepLab-V2 on the pseudo labels: train, score on val, score with CRF, segment any image.

    python main.py train   -c configs/voc12.yaml [SECTION.KEY=VALUE ...]
    python main.py test    -c configs/voc12.yaml
    python main.py crf     -c configs/voc12.yaml
    python main.py predict -c configs/voc12.yaml --input IMAGE_OR_FOLDER --output-dir DIR [--crf]

On several GPUs: torchrun --nproc-per-node N main.py ... The configuration says where everything
lies (configs/voc12.yaml explains each key); outputs go under EXP.OUTPUT_DIR:
models/EXP/NETWORK/SPLIT/checkpoint_final.pth, scores/EXP/NETWORK/SPLIT/{scores,scores_crf}.json.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # datasets and utils, the root's

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.layout import DataRoot
from datasets.voc import VOCDataset, collate
from labelling.crf import CRFParams, require_crf
from labelling.labels import save_label
from labelling.metrics import ConfusionMatrix
from labelling.visualize import overlay_label, save_image
from libs import training, transforms
from libs.config import Config, load_config
from libs.data import Pictures, find_pictures
from libs.deeplab import MultiScale, build
from libs.inference import LogitStore, Sample, run_network, segment
from libs.init import with_prefix
from libs.sections import list_folder
from utils import checkpoint
from utils.files import UserError, output_folder, write_json
from utils.logging import get_logger
from utils.runtime import Runtime, inference_loader, setup
from utils.stage import announce, fingerprint, launch, report_failures, unfinished

log = get_logger()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command, options and overrides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "train on pseudo labels"), ("test", "score on SPLIT.VAL"),
                       ("crf", "score on SPLIT.VAL with a fully connected CRF"),
                       ("predict", "segment any images")):
        command = commands.add_parser(name, help=text, usage=(
            f"main.py {name} -c CONFIG [options] [SECTION.KEY=VALUE ...]"))
        command.add_argument("-c", "--config", type=Path, required=True, metavar="YAML")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"),
                             help="short for RUN.DEVICE=...")
        if name == "train":
            command.add_argument("--overwrite", action="store_true",
                                 help="start over instead of going on from last.pth")
            continue
        command.add_argument("-m", "--checkpoint", type=Path, metavar="FILE",
                             help="ours or a released one (default: the final one of `train`)")
        if name == "predict":
            command.add_argument("--input", type=Path, required=True, help="image or folder")
            command.add_argument("--output-dir", type=Path, required=True, metavar="DIR",
                                 help="for NAME.png (labels) and overlays/NAME.jpg")
            command.add_argument("--crf", action="store_true", help="sharpen with a CRF")
            command.add_argument("--overwrite", action="store_true",
                                 help="redo images that are there")
            continue
        command.add_argument("--labels-dir", type=Path, metavar="DIR",
                             help="also write the predicted labels there, as palette PNGs")
        command.add_argument("--scores", type=Path, metavar="FILE",
                             help="write the scores there instead of under EXP.OUTPUT_DIR")
        if name == "test":
            command.add_argument("--save-logits", action="store_true",
                                 help="short for EVAL.SAVE_LOGITS=true")
        else:
            command.add_argument("--stored-logits", action="store_true",
                                 help="read the logits that `test --save-logits` stored, instead "
                                      "of running the network")
    args, overrides = parser.parse_known_args(argv)
    if strange := [word for word in overrides if word.startswith("-") or "=" not in word]:
        parser.error(f"unknown argument {strange[0]}")
    if args.device:
        overrides.append(f"RUN.DEVICE={args.device}")
    if getattr(args, "save_logits", False):
        overrides.append("EVAL.SAVE_LOGITS=true")
    args.overrides = overrides
    return args


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.overrides)
    runtime = setup(config.RUN.DEVICE, config.RUN.AMP, config.EXP.SEED)
    models = place(config, "models", config.SPLIT.TRAIN)
    if args.command != "train":
        args.checkpoint = args.checkpoint or models / "checkpoint_final.pth"
    output = {"train": models, "predict": getattr(args, "output_dir", None)}.get(
        args.command) or place(config, "scores", config.SPLIT.VAL)
    output_folder(output, "EXP.OUTPUT_DIR")
    logs = output_folder(config.EXP.OUTPUT_DIR / "logs" / config.EXP.ID, "EXP.OUTPUT_DIR")
    options = {f"{section}.{key}": value for section, values in config.to_dict().items()
               for key, value in values.items()}
    announce(runtime, logs, args.command, options,
             {name: value for name, value in vars(args).items() if isinstance(value, Path)},
             output)
    if args.command == "train":
        training.train(config, data_root(config), models, runtime, args.overwrite)
    elif args.command == "predict":
        predict(args, config, runtime)
    else:
        evaluate(args, config, runtime, output)


def place(config: Config, kind: str, split: str) -> Path:
    """The folder of an experiment's outputs of one kind."""
    return config.EXP.OUTPUT_DIR / kind / config.EXP.ID / config.MODEL.NAME / list_folder(split)


def data_root(config: Config) -> DataRoot:
    """The configured data set."""
    if config.DATASET.ROOT is None or not config.DATASET.ROOT.is_dir():
        raise UserError(f"DATASET.ROOT {config.DATASET.ROOT}: no such folder; set it to the data "
                        "set in the configuration, or on the command line")
    return DataRoot(config.DATASET.ROOT)


def load_network(path: Path, config: Config, root: DataRoot | None = None) -> MultiScale:
    """The network of a checkpoint of ours (as recorded in it) or a released one (as configured).

    Raises:
        UserError: it is none of DeepLab, does not fit, or was trained for other classes.
    """
    source = checkpoint.read(path)
    if source.network["network"] != "deeplab":
        raise UserError(f"checkpoint {path}: holds a {source.network['network']} network, "
                        "not DeepLab-V2")
    state = with_prefix(source.state)
    num_classes = len(state.get("base.aspp.c0.bias", ()))
    if root is not None and (num_classes != len(root.classes) + 1
                             or source.classes not in (None, root.classes)):
        raise UserError(f"checkpoint {path}: was trained for {num_classes - 1} classes"
                        f" ({', '.join(source.classes or ['not named'])}), the data set has "
                        f"{len(root.classes)} ({', '.join(root.classes)})")
    model = build(source.network if source.own
                  else training.network_config(config, num_classes))
    checkpoint.load_into(model, state, path)
    return model


def crf_settings(config: Config, runtime: Runtime) -> tuple[CRFParams, int]:
    """Parameters of the CRF and its number of processes."""
    require_crf()
    crf = config.CRF
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (CRFParams(crf.ITER_MAX, crf.POS_W, crf.POS_XY_STD, crf.BI_W, crf.BI_XY_STD,
                      crf.BI_RGB_STD, crf.NEGLIGIBLE),
            crf.PROCESSES or max(1, (cpus or 1) // runtime.world))


def evaluate(args: argparse.Namespace, config: Config, runtime: Runtime, output: Path) -> None:
    """`test` and `crf`: score the network on SPLIT.VAL, image by image at full size."""
    with_crf = args.command == "crf"
    crf, processes = crf_settings(config, runtime) if with_crf else (None, 1)
    root = data_root(config)
    entries = root.entries(config.SPLIT.VAL, labels=False)
    dataset = VOCDataset(root, entries, transforms.inference(config.IMAGE.MEAN),
                         mask_dir=config.DATASET.MASK_DIR or root.mask_dir, pixels=with_crf)
    loader = inference_loader(dataset, range(len(dataset)), 1, runtime, config.RUN.NUM_WORKERS,
                              collate)
    store = LogitStore(place(config, "features", config.SPLIT.VAL) / "logits",
                       fingerprint(args.checkpoint))
    saving = config.EVAL.SAVE_LOGITS and not with_crf
    if with_crf and args.stored_logits:
        stream = store.replay(loader, runtime, "crf")
    else:
        model = runtime.place(load_network(args.checkpoint, config, root))
        stream = run_network(model, loader, runtime, args.command)
        stream = store.record(stream) if saving else stream
    names = ["background", *root.classes]
    matrix = score(segment(stream, crf, processes), len(names), args.labels_dir)
    matrix.counts = runtime.sum(matrix.counts)
    runtime.barrier()
    if not runtime.main:
        return
    if saving:
        store.finish()
    scores = matrix.scores()
    print(scores.table(names))
    path = args.scores or output / ("scores_crf.json" if with_crf else "scores.json")
    output_folder(path.parent, "--scores")
    write_json(path, {"name": "DeepLab-V2 + CRF" if with_crf else "DeepLab-V2",
                      "checkpoint": args.checkpoint, "list": config.SPLIT.VAL,
                      "images": len(entries), "labels": names, **asdict(scores)})
    log.info("wrote %s", path)


def score(results: Iterable[tuple[Sample, np.ndarray]], num_labels: int, labels_dir: Path | None
          ) -> ConfusionMatrix:
    """The confusion matrix of a stream of labels, which are also written if asked for."""
    if labels_dir is not None:
        output_folder(labels_dir, "--labels-dir")
    matrix = ConfusionMatrix(num_labels)
    for sample, label in results:
        mask: Tensor = sample["mask"].cpu()
        try:
            matrix.update(label, mask)
        except ValueError as error:
            raise UserError(f"{sample['id']}: {error}") from error
        if labels_dir is not None:
            save_label(labels_dir / f"{sample['id']}.png", label)
    return matrix


def predict(args: argparse.Namespace, config: Config, runtime: Runtime) -> None:
    """Label PNGs and overlays of any images; finished ones are skipped."""
    crf, processes = crf_settings(config, runtime) if args.crf else (None, 1)
    paths = find_pictures(args.input)
    overlays = output_folder(args.output_dir / "overlays")
    todo = unfinished(args.output_dir, [path.stem for path in paths],
                      {"checkpoint": fingerprint(args.checkpoint), "crf": crf and asdict(crf)},
                      args.overwrite, runtime)
    model = runtime.place(load_network(args.checkpoint, config))
    loader: DataLoader = inference_loader(
        Pictures(paths, transforms.inference(config.IMAGE.MEAN)), todo, 1, runtime,
        config.RUN.NUM_WORKERS, collate)
    errors: list[str] = []
    for sample, label in segment(run_network(model, loader, runtime, "predict", errors), crf,
                                 processes):
        save_image(overlays / f"{sample['id']}.jpg", overlay_label(sample["pixels"], label))
        save_label(args.output_dir / f"{sample['id']}.png", label)
    report_failures(errors, len(todo), runtime)


if __name__ == "__main__":
    launch(main, parse())
