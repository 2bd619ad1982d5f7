"""Step 1: train the classifier with DRS modules on image-level labels.

In: images and their labels (no masks needed). Out: OUTPUT_DIR/{last,best}.pth, metrics.json and
TensorBoard events. Start it again to go on after an interruption.
"""

import argparse

from utils.logging import get_logger
from utils.options import StageParser, positive_int, positive_unit
from utils.stage import begin, launch

log = get_logger()
# Factors on the learning rate (paper, "Implementation Details").
LR_FACTORS = {"trunk_weights": 1, "trunk_biases": 2, "head_weights": 10, "head_biases": 20}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; the defaults are the paper's."""
    parser = StageParser(__doc__, images="train_aug", output="classifier", batch_size=10)
    group = parser.add_argument_group("DRS")
    group.add_argument("--drs", choices=("learnable", "fixed", "none"), default="learnable",
                       help="suppression controller; none is the plain CAM baseline")
    group.add_argument("--delta", type=positive_unit, default=0.55,
                       help="control value of --drs fixed")
    group.add_argument("--drs-where", nargs="+", metavar="PATTERN",
                       help="with --backbone: names of activations that DRS follows, such as "
                            "'layer4.*' (default: all)")
    group = parser.add_training(epochs=15, lr=1e-3, milestones=[5, 10], weight_decay=5e-4)
    group.add_argument("--recalibrate", action="store_true", default=None,
                       help="no training: --drs fixed joins the trained classifier of --init FILE "
                            "as it is, and batch norm gets new statistics in one pass over the "
                            "list (docs/backbones.md)")
    group.add_argument("--resize", type=positive_int,
                       help="side that images are resized to before the random crop "
                            "(default: 1.2 x image size)")
    parser.add_labelling()
    args = parser.parse_args(argv)
    args.resize = args.resize or round(1.2 * args.image_size)
    if args.resize < args.image_size:
        parser.error(f"--resize {args.resize} is smaller than --image-size {args.image_size}")
    if args.recalibrate:
        if args.drs != "fixed" or args.init in ("imagenet", "none"):
            parser.error("--recalibrate needs --drs fixed, which has no weights to train, and the "
                         "classifier's checkpoint by --init FILE")
        args.epochs = 1
    return args


def main(args: argparse.Namespace) -> None:
    """Data, network, optimizer, schedule; then the loop, from where it was."""
    import torch  # here, so that --help does not wait for it
    from torch.optim.lr_scheduler import MultiStepLR

    from datasets.layout import DataRoot
    from datasets.transforms import ClassifierTraining
    from datasets.voc import VOCDataset, collate, validation_set
    from labelling.image_scores import ImageScorer, verdict
    from labelling.validation import validate
    from models import build
    from models.classifier import classification_loss
    from utils.engine import renew_statistics, train_epoch
    from utils.loading import inference_batches, training_batches
    from utils.setup import (
        init_classifier,
        init_trunk,
        named_groups,
        new_network,
        suggest_lr,
        training_record,
    )
    from utils.training import Training

    root = DataRoot(args.data_root)
    runtime = begin(args)
    train_set = VOCDataset(root, root.entries(args.list),
                           ClassifierTraining(args.resize, args.image_size), seed=args.seed)
    batches = training_batches(train_set, args.batch_size, runtime, args.seed, args.num_workers,
                               collate)
    val_set = validation_set(root, args)
    val_batches = None if val_set is None else inference_batches(
        val_set, range(len(val_set)), args.batch_size, runtime, args.num_workers, collate)

    model = runtime.move(new_network(build, args, "classifier", len(root.classes)))
    optimizer = torch.optim.SGD(
        named_groups(model.parameter_groups(), args.lr, LR_FACTORS, args.weight_decay),
        lr=args.lr, momentum=0.9, nesterov=True)
    suggest_lr(args.batch_size, args.defaults["batch_size"], args.lr, args.defaults["lr"])
    scheduler = MultiStepLR(optimizer, [epoch - 1 for epoch in args.milestones])

    training = Training(args.output_dir, model, optimizer, scheduler,
                        training_record(args, root, train_set.entries, runtime, val_set),
                        runtime)
    if not training.resume(args.overwrite):
        if args.recalibrate:
            init_classifier(model, args.init, root.classes)
        else:
            init_trunk(model, args.init)
    if args.dry_run:
        return training.dry_run(batches, args.epochs)

    scorer = ImageScorer(len(root.classes))

    def loss_fn(network: torch.nn.Module, batch: dict) -> torch.Tensor:
        logits = network(batch["image"])
        scorer.update(logits, batch["labels"])
        return classification_loss(logits, batch["labels"])

    network = runtime.distribute(model, args.compile)
    for _ in training.epochs(args.epochs, batches, args.save_every, scorer):
        if args.recalibrate:
            figures = renew_statistics(network, batches, loss_fn, training)
        else:
            figures = train_epoch(network, batches, loss_fn, training)
            scheduler.step()
        scorer.gather(runtime)
        image_scores = scorer.scores()
        figures |= image_scores.figures() | validate(model, val_batches, args, runtime)
        training.end_epoch(figures, figures.get("miou"))
        if len(training.history) == args.epochs:
            log.info("on the training images, as they came:\n%s", image_scores.table(root.classes))
            log.info("%s", verdict(image_scores, held_out=False).sentence)


if __name__ == "__main__":
    launch(main, parse())
