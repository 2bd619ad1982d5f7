"""Where a script runs: device, precision, seed, processes, and the data loaders that follow.

Every random choice in training is a function of (seed, epoch, sample), drawn where the sample is
made. So the result depends neither on the number of processes or workers nor on interruptions.
"""

import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from utils.files import UserError

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
    run. Every process must hold the same number of pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        full = x.to(self.weight.dtype)  # not the half precision of autocast
        mean = self._mean(full)
        variance = self._mean((full - mean) ** 2)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum)
        full = (full - mean) * torch.rsqrt(variance + self.eps)
        return (full * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @staticmethod
    def _mean(values: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(values.mean((0, 2, 3), keepdim=True)) / dist.get_world_size()


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

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device in channels_last, the layout that convolutions run fastest in."""
        return model.to(self.device, memory_format=torch.channels_last)

    def distribute(self, model: nn.Module) -> nn.Module:
        """The model as it is trained: wrapped for several processes, itself for one."""
        if self.world == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return nn.parallel.DistributedDataParallel(model, device_ids=[self.device.index])
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SharedBatchNorm2d  # the same module, with another forward
        return nn.parallel.DistributedDataParallel(model)

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

    def share(self, global_batch: int) -> int:
        """This process's part of a global batch.

        Raises:
            UserError: the batch cannot be divided evenly.
        """
        if global_batch % self.world:
            raise UserError(f"--batch-size {global_batch} is the global batch and cannot be "
                            f"divided among {self.world} processes")
        return global_batch // self.world


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
        torch.backends.cudnn.benchmark = True
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


class EpochSampler(DistributedSampler):
    """A shuffle that depends on (seed, epoch) only; yields (epoch, index).

    The epoch travels with the index, so that persistent workers can seed each sample by it.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


def training_loader(dataset: Dataset, batch_size: int, runtime: Runtime, seed: int,
                    num_workers: int, collate: Callable | None = None) -> DataLoader:
    """Shuffled batches: `batch_size` is the global batch, the incomplete last one is dropped.

    Raises:
        UserError: there are fewer images than a batch holds.
    """
    if len(dataset) < batch_size:
        raise UserError(f"--batch-size {batch_size} is larger than the list "
                        f"({len(dataset)} images): make it smaller or add images")
    local = runtime.share(batch_size)
    sampler = EpochSampler(dataset, runtime.world, runtime.rank, seed=seed, drop_last=True)
    return DataLoader(dataset, local, sampler=sampler, num_workers=num_workers, drop_last=True,
                      collate_fn=collate, pin_memory=runtime.device.type == "cuda",
                      persistent_workers=num_workers > 0)


def inference_loader(dataset: Dataset, todo: Sequence[int], batch_size: int, runtime: Runtime,
                     num_workers: int, collate: Callable | None = None) -> DataLoader:
    """The images `todo` (indices) in batches, every batch on exactly one process.

    The batches are cut from the whole data set before the processes share them out and before
    finished images are left out: the company that an image keeps does not depend on either.
    """
    wanted = set(todo)
    starts = range(0, len(dataset), batch_size)
    batches = [[i for i in range(start, min(start + batch_size, len(dataset))) if i in wanted]
               for start in starts]
    mine = [batch for batch in batches if batch][runtime.rank::runtime.world]
    return DataLoader(dataset, batch_sampler=mine, num_workers=num_workers, collate_fn=collate,
                      pin_memory=runtime.device.type == "cuda")
