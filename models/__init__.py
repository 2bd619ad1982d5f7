"""The networks of DRS: `drs` (the contribution), `vgg` (trunk and head), `classifier`, `refine`."""

from collections.abc import Mapping
from typing import Any

from models.classifier import Classifier
from models.refine import RefineNet
from models.vgg import DilatedVGG16

NETWORKS: dict[str, type[DilatedVGG16]] = {"classifier": Classifier, "refine": RefineNet}


def build(config: Mapping[str, Any]) -> DilatedVGG16:
    """The network that `config` (its own `config`, as checkpoints record it) describes."""
    arguments = dict(config)
    return NETWORKS[arguments.pop("network")](**arguments)
