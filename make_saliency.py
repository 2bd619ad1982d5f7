"""The background cue: saliency maps of photos, by an off-the-shelf network.

In: photos, and an ONNX file: U-2-Net, IS-Net (python download.py u2net), or one of your own. Out:
OUTPUT_DIR/ID.png, 8-bit grey at the upright photo's size, for make_pseudo_labels.py --saliency-dir.
Finished photos are skipped when it is started again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import UserError
from utils.logging import get_logger, progress
from utils.options import StageParser, neutral, side
from utils.stage import begin, launch, report_failures

if TYPE_CHECKING:  # torch takes seconds to import: not for --help
    from labelling.saliency import Preparation

log = get_logger()
MODELS = ("u2net", "isnet")  # those in labelling.saliency.RECIPES


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = StageParser(__doc__, images=None, output="saliency", batch_size=2)
    group = parser.add_argument_group("saliency network")
    neutral(group.add_argument(  # recorded by the file's content
        "--model", default=MODELS[0], metavar="u2net|isnet|FILE.onnx",
        help="network; a name stands for its file in --checkpoint-dir"))
    group.add_argument("--like", choices=MODELS, default=MODELS[0],
                       help="FILE.onnx: scale its input and read its output like this network's")
    group.add_argument("--input-size", type=side, metavar="PIXELS",
                       help="FILE.onnx: side of the square input, where the file leaves it open")
    neutral(group.add_argument("--checkpoint-dir", type=Path, default=Path("checkpoints"),
                               metavar="DIR", help="where download.py puts the networks"))
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Network and photos in, a saliency PNG for each photo out."""
    import torch  # here, so that --help does not wait for it

    from datasets.layout import DataRoot
    from datasets.voc import collate
    from labelling.labels import SALIENCY_THRESHOLD
    from labelling.saliency import SaliencyNetwork, model_file, to_photo
    from labelling.visualize import save_image
    from utils.loading import inference_batches
    from utils.outputs import unfinished
    from utils.provenance import Record, now
    from utils.writing import Writers

    root = DataRoot(args.data_root)
    ids = sorted(root.images) if args.list is None else \
        [entry.id for entry in root.entries(args.list, labels=False)]
    path, recipe = model_file(args.model, args.checkpoint_dir, args.like)
    runtime = begin(args)
    on_gpu = runtime.device.type == "cuda" and gpu_wanted(args.device)
    network = SaliencyNetwork(path, recipe, side=args.input_size,
                              device=runtime.device.index if on_gpu else None,
                              threads=torch.get_num_threads())
    log.info("network %s  input %dx%d  on %s", path.name, *network.prepare.size,
             "GPU" if on_gpu else "CPU")
    dataset = Photos([root.image(image_id) for image_id in ids], ids, network.prepare)
    facts = {name: value for name, value in asdict(network.prepare.recipe).items()
             if name not in ("file", "side")}
    record = Record("make_saliency", {"input_size": network.prepare.size, **facts}, [],
                    images={image_id: {"image": root.image(image_id).stat().st_size}
                            for image_id in ids},
                    made=now(), places={"images": str(root.image_dir)})
    record.add_file("network", path)
    todo = unfinished({args.output_dir: record}, args, runtime)
    batches = inference_batches(dataset, todo, args.batch_size, runtime, args.num_workers, collate)
    if args.dry_run:
        return batches.dry_run(len(todo), args.output_dir)
    errors: list[str] = []
    done = empty = 0
    with Writers() as writers:
        for batch in progress(batches, "saliency maps", enabled=runtime.main):
            errors += batch["errors"]
            if "image" not in batch:
                continue
            for image_id, size, saliency in zip(batch["id"], batch["size"],
                                                network(batch["image"].cpu().numpy()),
                                                strict=True):
                picture = to_photo(saliency, size)
                writers.submit(save_image, args.output_dir / f"{image_id}.png", picture)
                done += 1
                empty += int(picture.max()) <= SALIENCY_THRESHOLD
    done, empty = (sum(values) for values in zip(*runtime.gather((done, empty)), strict=True))
    if runtime.main:
        log.info("%s: %d maps made, %d were there already, %d of the new show nothing salient; "
                 "next: make_pseudo_labels.py --saliency-dir %s", args.output_dir, done,
                 len(ids) - len(todo), empty, args.output_dir)
    report_failures(errors, len(ids), runtime)


class AsItIs:
    """A transform that does nothing."""

    def batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch."""
        return batch


class Photos:
    """Photos prepared for a network; an unreadable one becomes {"error": message}.

    A sample holds "id", "size" (height, width of the upright photo) and "image" (C, h, w) float32.
    """

    transform = AsItIs()

    def __init__(self, paths: Sequence[Path], ids: Sequence[str], prepare: "Preparation") -> None:
        self.paths, self.ids, self.prepare = paths, ids, prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        from datasets.images import read_image

        try:
            image, _ = read_image(self.paths[index])
        except UserError as error:
            return {"error": str(error)}
        return {"id": self.ids[index], "size": (image.height, image.width),
                "image": torch.from_numpy(self.prepare(image))}


def gpu_wanted(device: str) -> bool:
    """Whether onnxruntime is to use the GPU: asked for, or "auto" and it can."""
    from utils.extras import require

    able = "CUDAExecutionProvider" in require(
        "onnxruntime", "make_saliency.py").get_available_providers()
    if device == "auto" and not able:
        log.warning("onnxruntime has no GPU support: the CPU is used (pip install onnxruntime-gpu "
                    "in its place)")
    return device == "cuda" or able


if __name__ == "__main__":
    launch(main, parse())
