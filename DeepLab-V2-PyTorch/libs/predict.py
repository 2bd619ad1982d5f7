"""`predict`: label PNGs and overlays of any images; `export`: the network as an ONNX file."""

import argparse
from dataclasses import asdict

import numpy as np

from datasets.layout import VOC_CLASSES
from datasets.pictures import find_pictures
from datasets.voc import collate
from labelling.labels import save_label, voc_palette
from labelling.visualize import overlay_label, save_image
from libs.data import Pictures
from libs.experiment import Experiment
from libs.export import export_onnx
from libs.inference import run_network, segment
from libs.transforms import Inference, nearest
from reporting.predictions import write_index
from utils import outputs, provenance
from utils.files import output_folder, sweep
from utils.loading import inference_batches
from utils.logging import get_logger
from utils.runtime import now
from utils.stage import report_failures

log = get_logger()


def predict(args: argparse.Namespace, experiment: Experiment) -> None:
    """Segment the images of --input; finished ones are skipped."""
    config, runtime = experiment.config, experiment.runtime
    crf = experiment.crf_params() if args.crf else None
    by_id = find_pictures(args.input).by_id
    experiment.open(args.output_dir)
    model, classes = experiment.load_network(args.checkpoint)
    record = provenance.Record(
        "DeepLab-V2 predict",
        {"crf": crf and asdict(crf), "max_side": args.max_side, "precision": runtime.precision},
        classes or [], {"checkpoint": provenance.file_digest(args.checkpoint)},
        {name: {"image": path.stat().st_size} for name, path in by_id.items()}, now(),
        {"images": str(args.input)})
    todo = outputs.unfinished({args.output_dir: record}, args, runtime)
    batches = inference_batches(Pictures(by_id, Inference(config.IMAGE.MEAN), args.max_side), todo,
                                1, runtime, config.RUN.NUM_WORKERS, collate)
    if args.dry_run:
        return batches.dry_run(len(todo), args.output_dir)
    overlays = output_folder(args.output_dir / "overlays")
    if runtime.main:
        sweep(overlays)
    runtime.barrier()
    errors: list[str] = []
    for sample, label in segment(run_network(model, batches, runtime, "predict", errors), crf):
        small = nearest(label, sample["pixels"].shape[:2])
        save_image(overlays / f"{sample['id']}.jpg", overlay_label(sample["pixels"], small))
        save_label(args.output_dir / f"{sample['id']}.png", label)
    runtime.barrier()
    if runtime.main:
        write_index(args.output_dir, by_id, classes)
    report_failures(errors, len(todo), runtime)


def export(args: argparse.Namespace, experiment: Experiment) -> None:
    """Write the network of a checkpoint as ONNX, with its class names, mean and palette."""
    experiment.open()
    model, classes = experiment.load_network(args.checkpoint)
    maps = int(str(model.config["num_classes"])) - 1
    if classes is None:  # a released file, of VOC, names none
        classes = list(VOC_CLASSES) if maps == len(VOC_CLASSES) else [
            f"class {i}" for i in range(maps)]
    if args.dry_run:
        return
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3).tolist()
    export_onnx(model, args.output, ["background", *classes], experiment.config.IMAGE.MEAN, palette)
