"""What both programs do with a transformer: train or calibrate it, measure it, and export it.

It is the loop of `recipes.loop` with AdamW, a warm-up and a cosine over all batches. What edgeq adds is marked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import edgeq  # edgeq
from recipes.classification import accuracy, exported
from recipes.data import Images
from recipes.loop import options as command_line
from recipes.loop import processes
from recipes.loop.optimization import parameter_groups
from recipes.loop.training import Task, report, train


def parser(description: str | None, output: str, epochs: int, rate: float) -> argparse.ArgumentParser:
    """The options that both programs have, with defaults for a transformer that is trained from the beginning. To train
    one further, quantized, a tenth of the rate or less and some epochs are enough.
    """
    made = command_line.parser(description, output, batch_size=64, epochs=epochs, rate=rate)
    made.set_defaults(opt="adamw", weight_decay=0.05, norm_weight_decay=0.0, lr_warmup_epochs=2, clip_grad_norm=1.0)
    made.set_defaults(preset="MSA_WC8_AT8")  # edgeq: attention needs the greatest values, which this one keeps
    add = made.add_argument_group("transformer").add_argument
    add("--label-smoothing", type=float, default=0.05, help="part of a label that all classes share")
    add("--calibration", type=int, default=256, help="inputs that ranges are found on")
    add("--compare", type=int, default=1000, help="test inputs to compare the files on")
    return made


def run(options: argparse.Namespace, load: Callable[[], Images], network: Callable[[int], nn.Module]) -> int:
    """Takes the network for so many classes through what the options say; returns 0 when the files compute what was
    validated, else 1. `load` makes the batches; of several processes each gets its part.
    """
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with processes.joined(options.device) as device:
        torch.manual_seed(options.seed)
        data = load()
        model = network(data.classes).to(device)
        if options.weights:
            is_final = options.calibrate or options.test_only  # else another number of classes may be learned
            report("weights", edgeq.load_weights(model, options.weights, strict=is_final))  # edgeq: or load_state_dict
            report("float", accuracy(model, data, device))
        result = (calibrated if options.calibrate else trained)(model, data, options, device)
        is_first = processes.rank() == 0
    if options.test_only or not is_first:
        return 0
    saved = result if options.float else result.module  # edgeq: what holds the float network's keys
    torch.save(saved.state_dict(), folder / "weights.pth")
    if options.float:
        return 0
    (folder / "placement.txt").write_text(result.explain() + "\n")  # edgeq: what is quantized, and how
    return 0 if exported(result, load(), options) else 1


def calibrated(model: nn.Module, data: Images, options: argparse.Namespace, device: torch.device) -> Any:
    """The network of --weights, quantized without training."""
    example = data.example.to(device)
    wrapped = edgeq.PTCFxModule(model, options.preset, options.backend, example_inputs=example)  # edgeq
    wrapped.calibrate(batch.to(device) for batch, _ in data.calibration)  # edgeq
    report("calibrated", accuracy(wrapped, data, device))
    return wrapped


def trained(model: nn.Module, data: Images, options: argparse.Namespace, device: torch.device) -> Any:
    """The trained network, or its moving average if there is one."""
    origin = {"model": options.model, "classes": data.classes, "epochs": options.epochs}
    saved = model
    if not options.float:
        example, epochs = data.example.to(device), options.epochs
        model = edgeq.QATFxModule(  # edgeq
            model, options.preset, options.backend, example_inputs=example, total_epochs=epochs
        )
        saved = model.module  # edgeq: its state dict has the float network's keys, and the quantizers' own
        origin |= {"preset": options.preset, "backend": options.backend}  # edgeq

    def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch), labels, label_smoothing=options.label_smoothing)

    def schedule(optimizer: Optimizer, batches: int) -> LRScheduler:
        return CosineAnnealingLR(optimizer, batches)

    task = Task(data.train, loss, lambda model: accuracy(model, data, device), schedule, origin, each_batch=True)
    return train(model, saved, parameter_groups(model, options), task, options, device)
