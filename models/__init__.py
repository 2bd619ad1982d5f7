"""The networks of DRS: `drs` (the contribution), `vgg` (trunk and head), `classifier`, `refine`;
other trunks are in `backbones`."""

from collections.abc import Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

from models.classifier import Classifier
from models.localization import LocalizationNetwork
from models.refine import RefineNet

NETWORKS: dict[str, type[LocalizationNetwork]] = {"classifier": Classifier, "refine": RefineNet}


class Undrawn(TorchFunctionMode):
    """Networks built within have no initial weights, for those of which only the shapes are wanted:
    on the meta device, drawing them would import PyTorch's compiler, for a second and a half."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None
                           ) -> Any:
        """`function`, unless it is one of torch.nn.init."""
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


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
