"""Training in several processes, which torchrun starts; alone, every function here does next to nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """The device of this process, as a member of the group that torchrun's environment variables describe."""
    if "RANK" not in os.environ:
        yield torch.device(device)
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield own
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def begin_epoch(loader: DataLoader, seed: int, epoch: int) -> None:
    """Makes all that is random in an epoch follow from its number, so that one that is begun anew is the same."""
    torch.manual_seed(seed + epoch * count() + rank())
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.set_epoch(epoch)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` such that the gradients of all processes are averaged."""
    if not dist.is_initialized():
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def total(values: Tensor) -> Tensor:
    """The sum of the values over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Gives every process the buffers of the first one, such as the statistics of batch norms."""
    if dist.is_initialized():
        for buffer in model.buffers():
            value = buffer.clone()
            dist.broadcast(value, 0)
            buffer.copy_(value)
