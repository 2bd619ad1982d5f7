"""The networks of DRS: `drs` (the contribution), `vgg` (trunk and head), `classifier`, `refine`;
other trunks are in `backbones`."""

from collections.abc import Mapping
from typing import Any

from models.classifier import Classifier
from models.localization import LocalizationNetwork
from models.refine import RefineNet

NETWORKS: dict[str, type[LocalizationNetwork]] = {"classifier": Classifier, "refine": RefineNet}


def build(config: Mapping[str, Any]) -> LocalizationNetwork:
    """The network that `config` (its own `config`, as checkpoints record it) describes.

    Raises:
        ValueError: there is no such network.
    """
    arguments = dict(config)
    kind = arguments.pop("network")
    if "backbone" in arguments:
        from models import backbones  # here, because torchvision's networks take their time

        return backbones.NETWORKS[kind](**arguments)
    return NETWORKS[kind](**arguments)
