"""The configuration: every key with its type, range and default (the paper's), and the loading.

configs/voc12.yaml explains the keys. A training may go on with other values of NEUTRAL ones: they
do not shape its result, or their contents are recorded instead.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from libs.sections import (
    Count,
    Few,
    FewOrNone,
    ImageList,
    Location,
    Name,
    Range,
    Scales,
    Section,
    Share,
    Weight,
    load,
)

HERE = Path(__file__).resolve().parent.parent  # where relative paths in a configuration start
NEUTRAL = "does not shape the training's result"


class Exp(Section):
    ID: Annotated[Name, NEUTRAL] = "voc12"
    OUTPUT_DIR: Annotated[Location, NEUTRAL] = HERE / "data"
    SEED: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Dataset(Section):
    ROOT: Annotated[Location | None, NEUTRAL] = None
    LABEL_DIR: Annotated[Location | None, NEUTRAL] = None
    MASK_DIR: Annotated[Location | None, NEUTRAL] = None


class Split(Section):
    TRAIN: ImageList = "train_aug"
    VAL: Annotated[ImageList, NEUTRAL] = "val"


class Image(Section):
    MEAN: Annotated[list[Annotated[float, Field(ge=0, le=255)]],
                    Field(min_length=3, max_length=3)] = [104.008, 116.669, 122.675]
    CROP: Annotated[int, Field(ge=1, le=8192)] = 321
    SCALES: Scales = [0.5, 0.75, 1.0, 1.25, 1.5]


class Model(Section):
    NAME: Annotated[Name, NEUTRAL] = "deeplabv2_resnet101_msc"
    BLOCKS: Annotated[list[Few], Field(min_length=4, max_length=4)] = [3, 4, 23, 3]
    WIDTH: Annotated[float, Field(ge=0.01, le=16)] = 1.0
    ATROUS_RATES: Annotated[list[Few], Field(min_length=1, max_length=32)] = [6, 12, 18, 24]
    SCALES: Scales = [0.5, 0.75]
    FREEZE_BN: bool = True
    INIT_MODEL: Annotated[Location | Literal["imagenet", "none"], NEUTRAL] = "none"


class Solver(Section):
    ITER_MAX: Count = 20000
    BATCH_SIZE: Few = 5
    ITER_SIZE: Few = 2
    LR: Weight = 2.5e-4
    ASPP_FACTOR: Weight = 10.0
    LR_DECAY: Count = 10
    POLY_POWER: Annotated[float, Field(ge=0, le=10)] = 0.9
    MOMENTUM: Share = 0.9
    WEIGHT_DECAY: Share = 5e-4
    ONLINE_LABEL: Literal["official", "masked", "off"] = "official"
    ITER_SAVE: Count = 500


class Eval(Section):
    SAVE_LOGITS: bool = False


class Crf(Section):
    BACKEND: Literal["torch", "pydensecrf"] = "torch"
    ITER_MAX: FewOrNone = 10
    POS_W: Weight = 3.0
    POS_XY_STD: Range = 1.0
    BI_W: Weight = 4.0
    BI_XY_STD: Range = 67.0
    BI_RGB_STD: Range = 3.0
    NEGLIGIBLE: Share = 0.05


class Run(Section):
    DEVICE: Literal["auto", "cpu", "cuda"] = "auto"
    AMP: Literal["auto", "bf16", "fp16", "off"] = "auto"
    COMPILE: bool = False
    NUM_WORKERS: FewOrNone | None = None


class Config(Section):
    """The whole configuration, section by section."""
    EXP: Exp = Exp()
    DATASET: Dataset = Dataset()
    SPLIT: Split = Split()
    IMAGE: Image = Image()
    MODEL: Model = Model()
    SOLVER: Solver = Solver()
    EVAL: Annotated[Eval, NEUTRAL] = Eval()
    CRF: Annotated[Crf, NEUTRAL] = Crf()
    RUN: Annotated[Run, NEUTRAL] = Run()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values, section by section, as YAML and checkpoints can hold them."""
        return self.model_dump(mode="json")

    def shaping(self) -> dict[str, Any]:
        """"SECTION.KEY" -> plain value, of the options that shape the training's result."""
        return {f"{section}.{key}": value
                for section, values in self.to_dict().items()
                if NEUTRAL not in Config.model_fields[section].metadata
                for key, value in values.items()
                if NEUTRAL not in type(getattr(self, section)).model_fields[key].metadata}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, then `overrides` ("SECTION.KEY=VALUE"); errors are those of `sections.load`."""
    return load(Config, path, overrides, HERE)
