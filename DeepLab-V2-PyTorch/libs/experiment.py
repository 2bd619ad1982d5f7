"""What all commands of one experiment share: configuration, machine, folders, data, network."""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.layout import DataRoot
from labelling.crf import CRFParams
from libs.config import Config, load_config
from libs.deeplab import MultiScale, build
from libs.init import with_prefix
from libs.sections import list_folder
from utils import checkpoint
from utils.files import UserError
from utils.runtime import setup
from utils.stage import note, open_output


class Experiment:
    """A configuration on a machine.

    Attributes:
        config: `libs.config.Config`.
        runtime: device, precision, processes.

    Raises:
        UserError: see `load_config` and `utils.runtime.setup`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.config = load_config(args.config, args.overrides)
        self.runtime = setup(self.config.RUN.DEVICE, self.config.RUN.AMP, self.config.EXP.SEED)
        self.dry_run, self.command = args.dry_run, args.command
        self.models = self.folder("models", self.config.SPLIT.TRAIN)
        if args.command != "train":
            args.checkpoint = args.checkpoint or self.models / "checkpoint_final.pth"

    def folder(self, kind: str, image_list: str) -> Path:
        """Where outputs of one kind, made from one list, lie."""
        config = self.config
        return (config.EXP.OUTPUT_DIR / kind / config.EXP.ID / config.MODEL.NAME
                / list_folder(image_list))

    def open(self, *folders: Path) -> None:
        """Lock the output folders, begin the log."""
        options = {f"{section}.{key}": value for section, values in self.config.to_dict().items()
                   for key, value in values.items()}
        logs = None if self.dry_run else self.config.EXP.OUTPUT_DIR / "logs" / self.config.EXP.ID
        open_output(self.runtime, logs, self.command, options, () if self.dry_run else folders)
        note(defaults={f"{section}.{key}": value for section, values in Config().to_dict().items()
                       for key, value in values.items()})

    def data_root(self) -> DataRoot:
        """The configured data set."""
        root = self.config.DATASET.ROOT
        if root is None or not root.is_dir():
            raise UserError(f"DATASET.ROOT {root}: no such folder; set it to the data set in the "
                            "configuration, or on the command line")
        return DataRoot(root)

    def network_config(self, num_classes: int) -> dict[str, Any]:
        """The configured network with `num_classes` (background included), as `build` takes it."""
        model = self.config.MODEL
        return {"num_classes": num_classes, "blocks": model.BLOCKS, "width": model.WIDTH,
                "rates": model.ATROUS_RATES, "freeze_bn": model.FREEZE_BN, "scales": model.SCALES}

    def load_network(self, path: Path, classes: Iterable[str] | None = None
                     ) -> tuple[MultiScale, list[str] | None]:
        """The network of a checkpoint on the device, and the class names that the file records.

        Args:
            path: ours (built as recorded in it) or a released one (built as configured).
            classes: that it must have been trained for.

        Raises:
            UserError: it is none of DeepLab, does not fit, or was trained for other classes.
        """
        source = checkpoint.read(path)
        if source.network["network"] != "deeplab":
            raise UserError(f"checkpoint {path}: holds a {source.network['network']} network, "
                            "not DeepLab-V2")
        state = with_prefix(source.state)
        num_classes = len(state.get("base.aspp.c0.bias", ()))
        if classes is not None and (num_classes != len(list(classes)) + 1
                                    or source.classes not in (None, list(classes))):
            raise UserError(f"checkpoint {path}: was trained for {num_classes - 1} classes"
                            f" ({', '.join(source.classes or ['not named'])}), the data set has "
                            f"{len(list(classes))} ({', '.join(classes)})")
        network = source.network if source.own else self.network_config(num_classes)
        model: Any = replace(source, state=state, network=network).instantiate(build)
        return self.runtime.move(model), source.classes

    def crf_params(self) -> CRFParams:
        """Parameters of the CRF."""
        crf = self.config.CRF
        return CRFParams(crf.ITER_MAX, crf.POS_W, crf.POS_XY_STD, crf.BI_W, crf.BI_XY_STD,
                         crf.BI_RGB_STD, crf.NEGLIGIBLE, crf.BACKEND)
