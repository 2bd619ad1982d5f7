"""Where a script runs: device, precision, seed and processes."""

import logging
import os
import platform
import random
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from utils.files import UserError
from utils.processes import cores

log = logging.getLogger("drs")
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(_, gradient)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, for the CPU, where nn.SyncBatchNorm does not
    run. The processes may hold different numbers of images."""

    num_batches_tracked: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        full = x.to(self.weight.dtype)  # not the half precision of autocast
        count = torch.tensor(x.numel() // x.shape[1])
        dist.all_reduce(count)
        mean = self._mean(full, count)
        variance = self._mean((full - mean) ** 2, count)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum)
        full = (full - mean) * torch.rsqrt(variance + self.eps)
        return (full * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @staticmethod
    def _mean(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(values.sum((0, 2, 3), keepdim=True)) / count


Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """Device, precision and place among the processes of one script."""

    device: torch.device
    rank: int
    world: int
    amp_dtype: torch.dtype | None

    @property
    def main(self) -> bool:
        """Whether this is the process that logs and writes shared files."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Mixed precision for the forward pass, or nothing where it is off."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype or torch.bfloat16,
                              enabled=self.amp_dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only fp16 needs."""
        return torch.amp.GradScaler(self.device.type,
                                    enabled=self.amp_dtype is torch.float16)

    def move(self, model: Model) -> Model:
        """The model on the device in channels_last, the layout that convolutions run fastest in."""
        return model.to(self.device).to(memory_format=torch.channels_last)

    def distribute(self, model: nn.Module, compiled: bool = False) -> nn.Module:
        """The model as it is trained: wrapped for several processes, compiled if asked for."""
        network = model
        if self.world > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            network = nn.parallel.DistributedDataParallel(model, device_ids=[self.device.index])
        elif self.world > 1:
            for module in model.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = SharedBatchNorm2d  # the same module, another forward
            network = nn.parallel.DistributedDataParallel(model)
        return self.compile(network) if compiled else network

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum of `values` over all processes."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gather(self, value: object) -> list:
        """`value` of every process, in the order of ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    @property
    def cores(self) -> int:
        """The CPU cores that this process has for itself."""
        return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", self.world)))

    def describe(self) -> str:
        """Device, processes and precision in words."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" \
            else f"CPU, {torch.get_num_threads()} threads"
        return f"device {device}, processes {self.world}, precision {self.precision}"

    @property
    def precision(self) -> str:
        """The type in which the networks compute, in words."""
        return str(self.amp_dtype or torch.float32).removeprefix("torch.")

    def compile(self, function: Any) -> Any:
        """`function` compiled by torch.compile.

        Raises:
            UserError: there is no compiler for this device.
        """
        if self.device.type == "cpu" and not any(map(shutil.which, (
                os.environ.get("CXX", "c++"), "g++", "clang++"))):
            raise UserError("--compile: there is no C++ compiler on the PATH; leave --compile out")
        return torch.compile(function)


def setup(device: str = "auto", amp: str = "auto", seed: int = 0) -> Runtime:
    """Choose device and precision, seed, and join the other processes under torchrun.

    Raises:
        UserError: `device` is "cuda" and there is none, or the precision is not supported.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        target = torch.device("cpu")
    else:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise UserError(f"--gpus: process {local} has no GPU of its own "
                            f"({torch.cuda.device_count()} found)")
        target = torch.device("cuda", local)
        torch.cuda.set_device(target)
        # "off" means full float32, so that released weights give the published outputs.
        torch.backends.cudnn.allow_tf32 = amp != "off"
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if target.type == "cuda" else "gloo",
                                timeout=timedelta(hours=2))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return Runtime(target, rank, world, _amp_dtype(amp, target))


def _amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    if amp == "auto":
        return torch.bfloat16 if _fast_bf16(device) else None
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; use bf16, auto or off on the CPU")
    return AMP_DTYPES[amp]


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not hasattr(torch.cpu, "get_capabilities"):  # older PyTorch cannot tell
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def shutdown() -> None:
    """Leave the process group, if any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def now() -> dict[str, Any]:
    """When, by which command and with which versions something is made now."""
    return {"when": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": list(sys.argv), "python": platform.python_version(),
            "torch": str(torch.__version__), "torchvision": version("torchvision"),
            "numpy": np.__version__}
