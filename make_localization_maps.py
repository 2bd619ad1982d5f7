"""Between the steps: multi-scale localization maps of a list of images.

In: images, their labels and a checkpoint (the classifier's, or the refinement network's).
Out: OUTPUT_DIR/ID.png, 8-bit maps of the classes present (`labelling/maps.py`). Finished images
are skipped when it is started again.
"""

import argparse
from typing import Any

from utils.logging import get_logger
from utils.options import StageParser, input_sides
from utils.stage import begin, launch, report_failures

log = get_logger()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; the defaults are the paper's."""
    parser = StageParser(__doc__, images="train_aug", output="localization_maps", batch_size=8)
    parser.add_checkpoint("classifier/best.pth")
    parser.add_shard()
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Network and images in, a PNG of maps for each image out."""
    import torch  # here, so that --help does not wait for it

    from datasets.layout import DataRoot
    from datasets.transforms import ImageOnly
    from datasets.voc import VOCDataset, collate
    from labelling.maps import save_maps, to_bytes
    from models import build
    from utils import checkpoint, outputs
    from utils.engine import predict
    from utils.loading import inference_batches, of_shard
    from utils.writing import Writers

    root = DataRoot(args.data_root)
    runtime = begin(args)
    entries = root.entries(args.list)
    source = checkpoint.read_network(args, root.classes)
    scales = input_sides(args, source.network)
    model: Any = runtime.move(source.instantiate(build))
    if args.compile:
        model.class_maps = runtime.compile(model.class_maps)

    record = outputs.made_from(args, root, entries, runtime.precision)
    record.add_file("checkpoint", args.checkpoint)
    todo = of_shard(outputs.unfinished({args.output_dir: record}, args, runtime), args.batch_size,
                    args.shard)
    dataset = VOCDataset(root, entries, ImageOnly(args.image_size), tolerant=True)
    batches = inference_batches(dataset, todo, args.batch_size, runtime, args.num_workers, collate)
    if args.dry_run:
        return batches.dry_run(len(todo), args.output_dir)
    size = (args.image_size,) * 2

    def forward(network: Any, batch: dict) -> list[torch.Tensor]:
        return network.localization_maps(batch["image"], batch["labels"],
                                         [size] * len(batch["image"]), scales)

    errors = []
    with Writers() as writers:
        for batch, maps in predict(model, batches, runtime, forward, "localization maps"):
            errors += batch["errors"]
            for i, scores in enumerate(maps):
                writers.submit(save_maps, args.output_dir / f"{batch['id'][i]}.png",
                               to_bytes(scores), batch["labels"][i].nonzero()[:, 0].tolist())
    runtime.barrier()
    if runtime.main:
        log.info("%s: maps of %d of %d images", args.output_dir,
                 sum((args.output_dir / f"{entry.id}.png").is_file() for entry in entries),
                 len(entries))
    report_failures(errors, len(entries), runtime)


if __name__ == "__main__":
    launch(main, parse())
