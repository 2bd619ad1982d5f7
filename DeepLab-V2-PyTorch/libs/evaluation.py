"""`test` and `crf`: score the network on SPLIT.VAL, image by image at full size."""

import argparse
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from datasets.voc import VOCDataset, collate
from labelling.labels import save_label
from labelling.metrics import ConfusionMatrix
from libs.experiment import Experiment
from libs.inference import LogitStore, Sample, run_network, segment
from libs.transforms import Inference
from utils import outputs, provenance
from utils.files import UserError, output_folder, write_json
from utils.loading import inference_batches
from utils.logging import get_logger
from utils.runtime import now
from utils.stage import hold

log = get_logger()


def evaluate(args: argparse.Namespace, experiment: Experiment) -> None:
    """Score the checkpoint; print the table, write the scores and, if asked for, the labels."""
    config, runtime = experiment.config, experiment.runtime
    with_crf = args.command == "crf"
    crf = experiment.crf_params() if with_crf else None
    output = experiment.folder("scores", config.SPLIT.VAL)
    experiment.open(output)
    root = experiment.data_root()
    entries = root.entries(config.SPLIT.VAL, labels=False)
    dataset = VOCDataset(root, entries, Inference(config.IMAGE.MEAN, keep_pixels=with_crf),
                         mask_dir=config.DATASET.MASK_DIR or root.mask_dir)
    batches = inference_batches(dataset, range(len(dataset)), 1, runtime, config.RUN.NUM_WORKERS,
                                collate)
    record = provenance.Record(
        "DeepLab-V2", {"scales": config.MODEL.SCALES, "mean": config.IMAGE.MEAN,
                       "precision": runtime.precision, "crf": crf and asdict(crf)},
        list(root.classes), {"checkpoint": provenance.file_digest(args.checkpoint)},
        outputs.image_facts(root, entries), now(), {"images": str(root.image_dir)})
    store = LogitStore(experiment.folder("features", config.SPLIT.VAL) / "logits", record)
    saving = config.EVAL.SAVE_LOGITS and not with_crf
    if with_crf and args.stored_logits:
        stream = store.replay(batches, runtime, "crf")
    else:
        model, _ = experiment.load_network(args.checkpoint, root.classes)
        stream = run_network(model, batches, runtime, args.command)
        stream = store.record(stream) if saving else stream
    if args.dry_run:
        return batches.dry_run(len(entries), args.labels_dir or output)
    if saving and runtime.main:  # before labels are removed: it may be in use
        hold(output_folder(store.folder, "EXP.OUTPUT_DIR"))
    if args.labels_dir is not None and runtime.main:
        hold(output_folder(args.labels_dir, "--labels-dir"))
        outputs.renew(args.labels_dir, record, args.overwrite)
    runtime.barrier()
    names = ["background", *root.classes]
    matrix, per_image = score(segment(stream, crf), len(names), args.labels_dir)
    matrix.counts = runtime.sum(matrix.counts)
    per_image = {name: miou for part in runtime.gather(per_image) for name, miou in part.items()}
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
                      "checkpoint": args.checkpoint, "made_from": record.digest(),
                      "list": config.SPLIT.VAL, "images": len(entries), "labels": names,
                      **asdict(scores), "per_image": per_image})
    log.info("wrote %s", path)


def score(results: Iterable[tuple[Sample, np.ndarray]], num_labels: int, labels_dir: Path | None
          ) -> tuple[ConfusionMatrix, dict[str, float]]:
    """The confusion matrix of a stream of labels, which are also written if asked for, and the
    mIoU of each image."""
    matrix = ConfusionMatrix(num_labels)
    per_image: dict[str, float] = {}
    for sample, label in results:
        try:
            miou = matrix.update(label, sample["mask"].cpu())
        except ValueError as error:
            raise UserError(f"{sample['id']}: {error}") from error
        if not math.isnan(miou):  # a mask without any label
            per_image[sample["id"]] = round(miou, 4)
        if labels_dir is not None:
            save_label(labels_dir / f"{sample['id']}.png", label)
    return matrix, per_image
