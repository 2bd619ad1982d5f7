"""The background cue: saliency maps of photos, by an off-the-shelf network.

In: photos, and an ONNX file: U-2-Net, IS-Net (python download.py u2net), or one of your own. Out:
OUTPUT_DIR/ID.png, 8-bit grey at the upright photo's size, for make_pseudo_labels.py --saliency-dir.
Finished photos are skipped when it is started again.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import cast

from utils.options import StageParser, neutral, side
from utils.stage import begin, launch, report_failures

MODELS = ("u2net", "isnet")  # those in labelling.saliency.RECIPES


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = StageParser(__doc__, images=None, output="saliency", batch_size=2,
                         pytorch=False)
    group = parser.add_argument_group("saliency network")
    neutral(group.add_argument(  # recorded by the file's content
        "--model", default=MODELS[0], metavar="u2net|isnet|FILE.onnx",
        help="network; a name stands for its file in --checkpoint-dir"))
    neutral(group.add_argument("--checkpoint-dir", type=Path, default=Path("checkpoints"),
                               metavar="DIR", help="where download.py puts the networks"))
    group.add_argument("--like", choices=MODELS, default=MODELS[0],
                       help="FILE.onnx: scale its input and read its output like this network's")
    group.add_argument("--input-size", type=side, metavar="PIXELS",
                       help="FILE.onnx: side of the square input, where the file leaves it open")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Network and photos in, a saliency map for each photo out."""
    import torch  # here, so that --help does not wait for it

    from datasets.layout import DataRoot, Entry
    from datasets.transforms import Transform
    from datasets.voc import VOCDataset, collate
    from labelling.labels import SALIENCY_THRESHOLD
    from labelling.saliency import SaliencyNetwork, model_file, to_photo, wants_gpu
    from labelling.visualize import save_image
    from utils import outputs
    from utils.loading import inference_batches
    from utils.logging import get_logger, progress
    from utils.provenance import Record
    from utils.runtime import now
    from utils.writing import Writers

    root = DataRoot(args.data_root)
    runtime = begin(args)
    # Without labels: maps do not depend on them.
    entries = [Entry(image_id, None) for image_id in (sorted(root.images) if args.list is None else
               (entry.id for entry in root.entries(args.list, labels=False)))]
    path, recipe = model_file(args.model, args.checkpoint_dir, args.like)
    on_gpu = runtime.device.type == "cuda" and wants_gpu(args.device)
    network = SaliencyNetwork(path, recipe, side=args.input_size, threads=torch.get_num_threads(),
                              device=runtime.device.index if on_gpu else None)
    get_logger().info("%s: input %dx%d, on the %s", path, *network.transform.size,
                      "GPU" if on_gpu else "CPU")

    facts = {"input_size": network.transform.size} | {
        name: value for name, value in asdict(recipe).items() if name not in ("file", "side")}
    record = Record("make_saliency", facts, [], images=outputs.image_facts(root, entries),
                    made=now(), places={"images": str(root.image_dir)})
    record.add_file("network", path)
    todo = outputs.unfinished({args.output_dir: record}, args, runtime)
    dataset = VOCDataset(root, entries, cast(Transform, network.transform), tolerant=True)
    batches = inference_batches(dataset, todo, args.batch_size, runtime, args.num_workers, collate)
    if args.dry_run:
        return batches.dry_run(len(todo), args.output_dir)

    errors: list[str] = []
    done = flat = 0
    with Writers() as writers:
        for batch in progress(batches, "saliency maps", enabled=runtime.main):
            errors += batch["errors"]
            if "image" not in batch:
                continue
            maps = network(batch["image"].cpu().numpy())
            for image_id, size, saliency in zip(batch["id"], batch["size"], maps, strict=True):
                picture = to_photo(saliency, size)
                writers.submit(save_image, args.output_dir / f"{image_id}.png", picture)
                done += 1
                flat += int(picture.max()) <= SALIENCY_THRESHOLD
    done, flat = (sum(values) for values in zip(*runtime.gather((done, flat)), strict=True))
    get_logger().info("%s: %d maps written, %d photos had one already, nothing stands out in %d; "
                      "next: make_pseudo_labels.py --saliency-dir %s", args.output_dir, done,
                      len(entries) - len(todo), flat, args.output_dir)
    report_failures(errors, len(entries), runtime)


if __name__ == "__main__":
    launch(main, parse())
