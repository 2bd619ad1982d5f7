"""Step 2: train the refinement network on the localization maps.

In: images and the maps of make_localization_maps.py. Out: OUTPUT_DIR/{last,best}.pth,
metrics.json and TensorBoard events. Start it again to go on after an interruption.
"""

import argparse
from pathlib import Path

from utils.options import StageParser, neutral
from utils.stage import begin, launch

LR_FACTORS = dict.fromkeys(("trunk_weights", "trunk_biases", "head_weights", "head_biases"), 1)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; the defaults are the paper's."""
    parser = StageParser(__doc__, images="train_aug", output="refine", batch_size=10)
    group = parser.add_training(epochs=30, lr=1e-4, milestones=[10, 20], weight_decay=0.0)
    neutral(group.add_argument(  # recorded by what is in it
        "--maps-dir", type=Path, metavar="DIR",
        help="localization maps (default: RUN_DIR/localization_maps)"))
    parser.add_labelling()
    args = parser.parse_args(argv)
    args.maps_dir = args.maps_dir or args.run_dir / "localization_maps"
    return args


def main(args: argparse.Namespace) -> None:
    """Data, network, optimizer, schedule; then the loop, from where it was."""
    import torch  # here, so that --help does not wait for it
    from torch.optim.lr_scheduler import MultiStepLR

    from datasets.layout import DataRoot
    from datasets.transforms import RefinementTraining
    from datasets.voc import VOCDataset, collate, validation_set
    from labelling.validation import validate
    from models import build
    from models.refine import refinement_loss
    from utils.engine import train_epoch
    from utils.loading import inference_batches, training_batches
    from utils.setup import init_trunk, named_groups, new_network, suggest_lr, training_record
    from utils.training import Training

    root = DataRoot(args.data_root)
    runtime = begin(args)
    train_set = VOCDataset(root, root.entries(args.list), RefinementTraining(args.image_size),
                           maps_dir=args.maps_dir, seed=args.seed)
    batches = training_batches(train_set, args.batch_size, runtime, args.seed, args.num_workers,
                               collate)
    val_set = validation_set(root, args)
    val_batches = None if val_set is None else inference_batches(
        val_set, range(len(val_set)), args.batch_size, runtime, args.num_workers, collate)

    model = runtime.move(new_network(build, args, "refine", len(root.classes)))
    optimizer = torch.optim.Adam(
        named_groups(model.parameter_groups(), args.lr, LR_FACTORS, args.weight_decay), lr=args.lr)
    suggest_lr(args.batch_size, args.defaults["batch_size"], args.lr, args.defaults["lr"],
               power=0.5)
    scheduler = MultiStepLR(optimizer, [epoch - 1 for epoch in args.milestones])

    record = training_record(args, root, train_set.entries, runtime, val_set)
    training = Training(args.output_dir, model, optimizer, scheduler, record, runtime)
    if not training.resume(args.overwrite):
        init_trunk(model, args.init)
    if args.dry_run:
        return training.dry_run(batches, args.epochs)

    def loss_fn(network: torch.nn.Module, batch: dict) -> torch.Tensor:
        return refinement_loss(network(batch["image"]), batch["maps"], batch["map_owner"],
                               batch["map_class"])

    network = runtime.distribute(model, args.compile)
    for _ in training.epochs(args.epochs, batches, args.save_every):
        figures = train_epoch(network, batches, loss_fn, training)
        scheduler.step()
        figures |= validate(model, val_batches, args, runtime)
        training.end_epoch(figures, figures.get("miou"))


if __name__ == "__main__":
    launch(main, parse())
