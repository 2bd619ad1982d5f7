"""Other trunks than the paper's: networks of torchvision, and of timm where it is installed.

In: images (B, 3, H, W) float, normalised for ImageNet. Out: class maps (B, C, H/s, W/s), s the
output stride, by one 1x1 convolution on the trunk's features. DRS is put in by `add_drs`. The
trunk's parameters are `trunk.` and their own names. Another network is a name in `FAMILIES`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models.classifier import ClassifierOutput
from models.drs import add_drs
from models.localization import IMAGENET_MEAN, IMAGENET_STD, LocalizationNetwork, init_conv
from models.refine import RefinementOutput

# Names of torchvision, and whether strides can be traded for dilation: not where convolutions are
# as wide as their stride.
FAMILIES: dict[tuple[str, ...], bool] = {
    ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"): True,
    ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"): True,
    ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"): True,
    ("regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf"): True,
    ("densenet121",): True,
    ("convnext_tiny", "convnext_small"): False}
TIMM = "timm:"
# What follows the features in a classifier of torchvision.
ENDS = ("avgpool", "classifier", "fc")


class Backbone(LocalizationNetwork):
    """A trunk, and a 1x1 convolution that makes class maps of its features.

    Args:
        num_classes: foreground classes C.
        backbone: a name in `FAMILIES`, or "timm:NAME".
        output_stride: 8, 16, 32; None: 16 where the trunk can be dilated, else 32.

    Raises:
        ValueError: there is no such network, or not with this output stride.
    """

    def __init__(self, num_classes: int, backbone: str, output_stride: int | None = None) -> None:
        super().__init__()
        if backbone.startswith(TIMM):
            self.trunk, output_stride = _of_timm(backbone.removeprefix(TIMM), output_stride)
            about = getattr(self.trunk, "pretrained_cfg", {})
            self.input_mean = tuple(about.get("mean", IMAGENET_MEAN))
            self.input_std = tuple(about.get("std", IMAGENET_STD))
            self.imagenet_advice = (
                "make FILE where they can be, by torch.save(timm.create_model("
                f"{backbone.removeprefix(TIMM)!r}, pretrained=True).state_dict(), 'FILE')")
        else:
            self.trunk, output_stride = _of_torchvision(backbone, output_stride)
            weights = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"]
            self.imagenet_advice = (f"download {weights.url.rpartition('/')[2]} into "
                                    "~/.cache/torch/hub/checkpoints/")
        module: Any
        for module in self.trunk.modules():  # trainings keep no generator state to go on from
            if isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth)):
                module.p = 0.0
            elif hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        self.config = {"num_classes": num_classes, "backbone": backbone,
                       "output_stride": output_stride}
        self.head = nn.Conv2d(self._channels(), num_classes, 1)
        init_conv(self.head, std=0.01)

    @torch.no_grad()
    def _channels(self) -> int:
        device = next(self.trunk.parameters()).device
        try:
            images = torch.zeros(1, 3, 64, 64, device=device)
            shape = self._features(self.trunk.eval(), images).shape
        except (AssertionError, RuntimeError) as error:  # what networks of one size say
            raise ValueError(f"it takes no images of 64 pixels ({error})") from error
        self.trunk.train()
        return shape[1]

    @staticmethod
    def _features(trunk: nn.Module, images: Tensor) -> Tensor:
        features = getattr(trunk, "forward_features", trunk)(images)
        if features.dim() != 4:
            raise ValueError("its features are no map (B, C, H, W); choose a convolutional network")
        return features.movedim(3, 1) if getattr(trunk, "output_fmt", "") == "NHWC" else features

    def class_maps(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> maps (B, C, H/s, W/s), no activation on the output."""
        if (self.input_mean, self.input_std) != (IMAGENET_MEAN, IMAGENET_STD):
            theirs, mine = ([images.new_tensor(values)[:, None, None] for values in pair] for pair
                            in ((IMAGENET_MEAN, IMAGENET_STD), (self.input_mean, self.input_std)))
            images = (images * theirs[1] + theirs[0] - mine[0]) / mine[1]
        return self.head(self._features(self.trunk, images))

    def in_trunk(self, name: str) -> bool:
        """The network of another training; DRS's linear layers train like the head."""
        return name.startswith("trunk.") and ".control." not in name

    def load_trunk(self, state: Mapping[str, Tensor]) -> list[str]:
        """As in `LocalizationNetwork`; `state` may also be the plain network's."""
        if not any(name.startswith("trunk.") for name in state):
            state = {f"trunk.{name}": tensor for name, tensor in state.items()}
        # Old files do not count the batches, which matters to nothing here.
        counts = {name: tensor for name, tensor in self.state_dict().items()
                  if name.endswith("num_batches_tracked")}
        return super().load_trunk(counts | dict(state))

    def load_imagenet(self) -> None:
        """Trunk weights of the network's own, from torchvision or timm; downloads them."""
        name = self.config["backbone"]
        if name.startswith(TIMM):
            source = importlib.import_module("timm").create_model(name.removeprefix(TIMM),
                                                                  pretrained=True, num_classes=0)
        else:
            source = torchvision.models.get_model(name, weights="IMAGENET1K_V1")
        self.load_trunk(source.state_dict())


class BackboneClassifier(ClassifierOutput, Backbone):
    """The classifier on another trunk; see `models.classifier.Classifier`.

    Args:
        num_classes, backbone, output_stride: see `Backbone`.
        drs, delta: "learnable", "fixed" with its control value, or "none".
        drs_where: names of the activations that DRS follows, see `add_drs`.
    """

    def __init__(self, num_classes: int, backbone: str, output_stride: int | None = None,
                 drs: str = "learnable", delta: float = 0.55,
                 drs_where: Sequence[str] = ("*",)) -> None:
        super().__init__(num_classes, backbone, output_stride)
        self.config |= {"network": "classifier", "drs": drs, "delta": delta,
                        "drs_where": list(drs_where)}
        if drs != "none":
            add_drs(self.trunk, drs, delta, drs_where)


class BackboneRefineNet(RefinementOutput, Backbone):
    """The refinement network on another trunk, with its plain activations."""

    def __init__(self, num_classes: int, backbone: str, output_stride: int | None = None) -> None:
        super().__init__(num_classes, backbone, output_stride)
        self.config |= {"network": "refine"}


NETWORKS: dict[str, type[LocalizationNetwork]] = {"classifier": BackboneClassifier,
                                                  "refine": BackboneRefineNet}


def _of_torchvision(name: str, output_stride: int | None) -> tuple[nn.Module, int]:
    family = next((names for names in FAMILIES if name in names), None)
    if family is None:
        known = ", ".join(name for names in FAMILIES for name in names)
        raise ValueError(f"there is no such network; choose vgg16, {known}, or timm:NAME")
    extra = {"init_weights": True} if name.startswith("vgg") else {}
    network = _made(lambda: torchvision.models.get_model(name, weights=None, **extra))
    trunk = nn.Sequential()
    for child, module in network.named_children():
        if child not in ENDS:
            trunk.add_module(child, module)
    if name.startswith("densenet"):  # has its last ReLU as a function
        trunk.add_module("relu", nn.ReLU(inplace=True))
    output_stride = output_stride or (16 if FAMILIES[family] else 32)
    if output_stride < 32:
        if not FAMILIES[family]:
            raise ValueError(f"it cannot be dilated; use --output-stride 32, not {output_stride}")
        dilate(trunk, output_stride)
    return trunk, output_stride


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    """Made on the CPU, because some networks (RegNet) then compute with tensors, which the meta
    device cannot; and moved to whatever device is the default."""
    with torch.device("cpu"):
        network = make()
    return network.to(torch.empty(0).device)


def _of_timm(name: str, output_stride: int | None) -> tuple[nn.Module, int]:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise ValueError(f"it needs the package timm ({error}): pip install timm") from error
    stride = {} if output_stride in (None, 32) else {"output_stride": output_stride}
    try:
        trunk = _made(lambda: timm.create_model(name, pretrained=False, num_classes=0, **stride))
    except Exception as error:  # unknown, or without dilation: each network has its own words
        raise ValueError(f"timm cannot make it ({error})") from error
    return trunk, output_stride or 32


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts that run one after the other."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _blocks(child)
    else:
        yield module


def dilate(trunk: nn.Module, output_stride: int) -> None:
    """Where `trunk` would go below this stride, keep the size and dilate what follows, in place."""
    stride, rate = 1, 1
    for block in _blocks(trunk):
        halving = [module for module in block.modules()
                   if getattr(module, "stride", 1) in (2, (2, 2))]
        before = rate
        if halving and stride >= output_stride:
            rate *= 2
            for module in halving:
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
                else:  # a pool that keeps the size, as in the paper's network
                    pool: Any = module
                    pool.kernel_size, pool.stride, pool.padding = 3, 1, 1
                    if isinstance(pool, nn.AvgPool2d):
                        pool.count_include_pad = False
        elif halving:
            stride *= 2
        if rate == 1:
            continue
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                # The convolution that had the stride still sees features at the rate before.
                own = before if module in halving else rate
                module.dilation = (own, own)
                module.padding = tuple(own * (side - 1) // 2 for side in module.kernel_size)
