"""The training loop that a user has anyway, resumable bit for bit: nothing in it knows of quantization."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from recipes.detection.batches import Scaled, loader, to_device
from recipes.detection.coco import Coco, Target
from recipes.detection.errors import OptionError

Loss = Callable[[nn.Module, Tensor, list[Target]], dict[str, Tensor]]

LONGEST_GRADIENT = 10.0
DECAY = 5e-4
WARM_UP = 0.05  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class Plan:
    """How to train: `rate` is the highest learning rate, `size` the side of the images in pixels, `network` a text that
    says what is trained.
    """

    epochs: int
    rate: float
    batch: int
    size: int
    seed: int = 0
    workers: int = 0
    device: str = "cpu"
    network: str = ""


def train(model: nn.Module, loss: Loss, coco: Coco, plan: Plan, checkpoint: Path, resume: bool, title: str) -> None:
    """Trains with AdamW, a warm-up and a cosine, and saves `checkpoint` after each epoch; with `resume` it goes on from
    there, if it exists. All that is random follows from the seed and the epoch, so that a run that was interrupted ends
    in the same numbers as one that was not. Prints the mean losses of each epoch.
    """
    model.to(plan.device)
    optimizer = torch.optim.AdamW(model.parameters(), plan.rate, weight_decay=DECAY)
    done = load(checkpoint, model, optimizer, plan) if resume and checkpoint.exists() else 0
    if resume:
        found = f"{checkpoint} has {done} of {plan.epochs} epochs" if done else f"no {checkpoint} to go on with"
        print(f"{title}: {found}", flush=True)
    batches = loader(Scaled(coco, plan.size, augmented=True), plan.batch, True, plan.workers)
    for epoch in range(done, plan.epochs):
        torch.manual_seed(plan.seed + epoch)
        model.train()
        name = f"{title}, epoch {epoch + 1} of {plan.epochs}"
        with tqdm(batches, desc=name, disable=None, leave=False) as bar:
            losses = one_epoch(model, loss, bar, optimizer, plan, epoch)
        print(f"{name}: {losses}", flush=True)
        model.eval()  # edgeq: this ends its epoch, so what is saved is whole
        save(checkpoint, model, optimizer, plan, epoch + 1)
    model.eval().cpu()


def one_epoch(model: nn.Module, loss: Loss, bar: tqdm, optimizer: torch.optim.Optimizer, plan: Plan, epoch: int) -> str:
    """Trains on the batches that `bar` shows; returns the means of the losses, by name."""
    sums: dict[str, float] = {}
    said = ""
    for step, (images, targets) in enumerate(to_device(bar, plan.device)):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * share_of_rate((epoch + step / len(bar)) / plan.epochs)
        losses = loss(model, images, targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        sums = {name: sums.get(name, 0.0) + value.item() for name, value in losses.items()}
        said = ", ".join(f"{name} {total / (step + 1):.3f}" for name, total in sums.items())
        bar.set_postfix_str(said)
    return said


def share_of_rate(progress: float) -> float:
    """The learning rate as a share of the highest, at a `progress` of 0..1 through the training."""
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, epochs: int) -> None:
    """Writes a checkpoint after so many epochs; the one before stays whole until this one is."""
    part = path.with_name(f"{path.name}.part")
    state = {"module": own(model).state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "plan": asdict(plan), "epoch": epochs}, part)
    os.replace(part, path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan) -> int:
    """Continues from a checkpoint; returns how many epochs are done. Raises OptionError when it is of another plan,
    which would end in other numbers; only the device may differ.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in asdict(plan).items():
        if name != "device" and state["plan"].get(name) != value:
            raise OptionError(
                f"{path} was trained with {name} {state['plan'].get(name)}, this run has {value}: give the same, or "
                f"begin anew without --resume, with its weights if you like: --checkpoint {path}."
            )
    own(model).load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"]


def own(model: nn.Module) -> nn.Module:
    """The network inside of a wrapper (edgeq's, or that of DistributedDataParallel), or the model itself."""
    return getattr(model, "module", model)
