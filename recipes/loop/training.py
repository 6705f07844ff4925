"""The training loop: epochs, learning rate, mixed precision, moving average, checkpoints, several processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from recipes.loop import checkpoints, processes
from recipes.loop.optimization import OPTIMIZERS, Groups, Precision, moving_average, warmed_up


@dataclass(frozen=True)
class Task:
    """What one training has of its own. `loss` takes the model, inputs and labels on the device; `measure` takes a
    model, puts it into eval mode, and its result can be printed. `schedule` makes the learning rate's schedule for so
    many steps, which are epochs or, with `each_batch`, batches. `origin` says what is trained, for checkpoints.
    """

    batches: DataLoader
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    measure: Callable[[nn.Module], Any]
    schedule: Callable[[Optimizer, int], LRScheduler]
    origin: Mapping[str, Any]
    each_batch: bool = False


def train(
    model: nn.Module, saved: nn.Module, groups: Groups, task: Task, options: argparse.Namespace, device: torch.device
) -> nn.Module:
    """Trains `model` as the options say and returns it, or its moving average if there is one, in eval mode. `saved`
    is the part of it whose state goes into the checkpoints.
    """
    optimizer = OPTIMIZERS[options.opt](groups, options)
    schedule = warmed_up(optimizer, task.schedule, len(task.batches) if task.each_batch else 1, options)
    average = moving_average(model, options, processes.count())
    precision = Precision(device, options.amp)
    parts: dict[str, Any] = {"model": saved, "model_ema": average}
    if not options.test_only:
        parts |= {"optimizer": optimizer, "lr_scheduler": schedule, "scaler": precision.scaler}
    start = checkpoints.load(options.resume, parts, task.origin) if options.resume else options.start_epoch
    if options.test_only:
        report("test", task.measure(average or model))
        start = options.epochs

    parallel = processes.parallel(model, device)
    for epoch in range(start, options.epochs):
        title = f"epoch {epoch + 1} of {options.epochs}"
        processes.begin_epoch(task.batches, options.seed, epoch)
        parallel.train()
        total = torch.zeros((), device=device)
        bar = tqdm(task.batches, desc=title, disable=processes.rank() > 0 or None, leave=False)
        for step, (inputs, labels) in enumerate(bar):
            with precision.autocast():
                loss = task.loss(parallel, inputs.to(device), labels.to(device))
            precision.step(loss, optimizer, model.parameters(), options.clip_grad_norm)
            if task.each_batch:
                schedule.step()
            if average is not None and step % options.model_ema_steps == 0:
                average.update_parameters(model)
                if epoch < options.lr_warmup_epochs:
                    average.n_averaged.zero_()  # the next update is a copy again
            total += loss.detach()
            if step % options.print_freq == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}", rate=f"{optimizer.param_groups[0]['lr']:.3g}")
        if not task.each_batch:
            schedule.step()
        report(f"{title}, loss {total.item() / len(task.batches):.4f}", task.measure(model))
        if average is not None:
            report(f"{title}, moving average", task.measure(average))
        checkpoints.save(Path(options.output_dir), parts, task.origin, epoch)
    return (model if average is None else average.module).eval()


def report(title: str, found: Any) -> None:
    """Prints what was measured, in one of the processes."""
    if processes.rank() == 0:
        print(f"{title}: {found}", flush=True)
