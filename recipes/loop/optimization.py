"""Optimizers, learning rates, mixed precision and a moving average of the parameters."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Groups = list[dict[str, Any]]

OPTIMIZERS: dict[str, Callable[[Groups, argparse.Namespace], Optimizer]] = {
    "sgd": lambda groups, options: SGD(groups, options.lr, options.momentum),
    "sgd_nesterov": lambda groups, options: SGD(groups, options.lr, options.momentum, nesterov=True),
    "rmsprop": lambda groups, options: RMSprop(groups, options.lr, momentum=options.momentum, eps=0.0316, alpha=0.9),
    "adamw": lambda groups, options: AdamW(groups, options.lr),
}
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


def parameter_groups(model: nn.Module, options: argparse.Namespace, rate: float | None = None) -> Groups:
    """The parameters of `model` with their weight decay, and with a learning rate of their own if one is given:
    normalization layers, which are known by their class, may have another decay than the rest.
    """
    norms, others = [], []
    for module in model.modules():
        chosen = norms if isinstance(module, NORMS) and options.norm_weight_decay is not None else others
        chosen += [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
    found = [(others, options.weight_decay), (norms, options.norm_weight_decay)]
    rates = {} if rate is None else {"lr": rate}
    return [{"params": params, "weight_decay": decay, **rates} for params, decay in found if params]


def warmed_up(
    optimizer: Optimizer, main: Callable[[Optimizer, int], LRScheduler], steps: int, options: argparse.Namespace
) -> LRScheduler:
    """A schedule with so many steps in an epoch: through the first epochs the learning rate rises in a line, and is
    then what `main` makes of the number of the steps that are left.
    """
    warmup, all_steps = options.lr_warmup_epochs * steps, options.epochs * steps
    if not warmup:
        return main(optimizer, all_steps)
    rising = LinearLR(optimizer, start_factor=options.lr_warmup_decay, total_iters=warmup)
    return SequentialLR(optimizer, [rising, main(optimizer, max(1, all_steps - warmup))], milestones=[warmup])


class Precision:
    """Mixed precision, if it is wanted: float16 with scaled gradients on CUDA, else bfloat16."""

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.device, self.enabled = device.type, enabled
        self.dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled and device.type == "cuda")

    def autocast(self) -> torch.autocast:
        """The context that the forward pass and the loss are computed in."""
        return torch.autocast(self.device, self.dtype, enabled=self.enabled)

    def step(self, loss: Tensor, optimizer: Optimizer, parameters: Iterable[nn.Parameter], clip: float | None) -> None:
        """One step of the optimizer down the gradient of `loss`, whose norm is cut to `clip`."""
        optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if clip is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()


def moving_average(model: nn.Module, options: argparse.Namespace, processes: int) -> AveragedModel | None:
    """The average of parameters and buffers that `--model-ema` asks for. As in torchvision's scripts the weight of a
    new value grows with the share of the training that lies between two updates.
    """
    if not options.model_ema:
        return None
    share = processes * options.batch_size * options.model_ema_steps / options.epochs
    weight = min(1.0, (1 - options.model_ema_decay) * share)
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - weight), use_buffers=True)
