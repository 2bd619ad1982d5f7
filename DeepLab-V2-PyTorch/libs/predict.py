"""`predict`: label PNGs and overlays of any images."""

import argparse
from dataclasses import asdict

from datasets.voc import collate
from labelling.labels import save_label
from labelling.visualize import overlay_label, save_image
from libs.data import Pictures, find_pictures
from libs.experiment import Experiment
from libs.inference import run_network, segment
from libs.transforms import Inference
from utils import outputs, provenance
from utils.files import output_folder
from utils.loading import inference_batches
from utils.stage import report_failures


def predict(args: argparse.Namespace, experiment: Experiment) -> None:
    """Segment the images of --input; finished ones are skipped."""
    config, runtime = experiment.config, experiment.runtime
    crf = experiment.crf_params() if args.crf else None
    paths = find_pictures(args.input)
    experiment.open(args.output_dir)
    model, classes = experiment.load_network(args.checkpoint)
    record = provenance.Record(
        "DeepLab-V2 predict", {"crf": crf and asdict(crf), "precision": runtime.precision},
        classes or [], {"checkpoint": provenance.file_digest(args.checkpoint)},
        {path.stem: {"image": path.stat().st_size} for path in paths}, provenance.now(),
        {"images": str(args.input)})
    todo = outputs.unfinished({args.output_dir: record}, args, runtime)
    batches = inference_batches(Pictures(paths, Inference(config.IMAGE.MEAN)), todo, 1, runtime,
                                config.RUN.NUM_WORKERS, collate)
    if args.dry_run:
        return batches.dry_run(len(todo), args.output_dir)
    overlays = output_folder(args.output_dir / "overlays")
    errors: list[str] = []
    for sample, label in segment(run_network(model, batches, runtime, "predict", errors), crf):
        save_image(overlays / f"{sample['id']}.jpg", overlay_label(sample["pixels"], label))
        save_label(args.output_dir / f"{sample['id']}.png", label)
    report_failures(errors, len(todo), runtime)
