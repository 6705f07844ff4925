r"""The training of a classifier, as torchvision's reference script does it, quantized.

    python -m recipes.classification --data-path photos --model resnet18 --float --output-dir float
    python -m recipes.classification --data-path photos --model resnet18 --weights float/weights.pth \
        --preset WC8_AT8 --epochs 10 --lr 0.001 --lr-scheduler cosineannealinglr --model-ema
    torchrun --nproc-per-node 4 -m recipes.classification --data-path photos --sync-bn ...

Images are in photos/train/<class>/ and photos/val/<class>/. The lines that edgeq adds to the loop are marked.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, StepLR
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

import edgeq  # edgeq
from recipes.comparison import runtime, table
from recipes.data import Images, image_folder
from recipes.loop import options as command_line
from recipes.loop import processes
from recipes.loop.optimization import parameter_groups
from recipes.loop.training import Task, report, train
from recipes.networks import classifier
from recipes.torchvision_import import import_torchvision
from recipes.training import Network

SCHEDULES: dict[str, Callable[[Optimizer, int, argparse.Namespace], LRScheduler]] = {
    "steplr": lambda optimizer, epochs, options: StepLR(optimizer, options.lr_step_size, options.lr_gamma),
    "cosineannealinglr": lambda optimizer, epochs, options: CosineAnnealingLR(optimizer, epochs, options.lr_min),
    "exponentiallr": lambda optimizer, epochs, options: ExponentialLR(optimizer, options.lr_gamma),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or calibrates, measures and exports; returns 0 when the files compute what was validated, else 1."""
    options = parse(arguments)
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    with processes.joined(options.device) as device:
        torch.manual_seed(options.seed)
        images = load_images(options)
        model = calibrated(images, options, device) if options.calibrate else trained(images, options, device)
        is_first = processes.rank() == 0
    if options.test_only or not is_first:
        return 0
    network = model if options.float else model.module  # edgeq: what holds the float network's keys
    torch.save(network.state_dict(), Path(options.output_dir) / "weights.pth")
    return 0 if options.float or exported(model, load_images(options), options) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line.parser(__doc__, "results/classification", batch_size=32, epochs=90, rate=0.1)
    add = parser.add_argument_group("classification").add_argument
    add("--model", default="resnet18", help="a network of torchvision.models, or file.py:ClassName")
    add("--size", type=int, default=224, help="height and width of an image")
    add("--crop", type=float, default=0.5, help="least part of an image's area to train on")
    add("--no-flip", action="store_true", help="train on no mirrored images: digits, letters, signs")
    add("--label-smoothing", type=float, default=0.0, help="part of a label that all classes share")
    add("--mixup-alpha", type=float, default=0.0, help="blends images in pairs; 0.2 is usual")
    add("--cutmix-alpha", type=float, default=0.0, help="pastes a part of one image into another; 1 is usual")
    add("--lr-scheduler", default="steplr", choices=SCHEDULES, help="how the learning rate falls")
    add("--lr-step-size", type=int, default=30, help="epochs of a step of steplr")
    add("--lr-gamma", type=float, default=0.1, help="factor of steplr for a step, of exponentiallr for an epoch")
    add("--lr-min", type=float, default=0.0, help="where cosineannealinglr ends")
    add("--compare", type=int, default=1000, help="test images to compare the files on")
    return command_line.check(parser, parser.parse_args(arguments))


def load_images(options: argparse.Namespace) -> Images:
    """The folder of --data-path; of several processes, each has its part."""
    return image_folder(
        options.data_path,
        options.size,
        options.batch_size,
        workers=options.workers,
        crop=options.crop,
        flip=not options.no_flip,
    )


def float_network(images: Images, options: argparse.Namespace, device: torch.device) -> nn.Module:
    """The network, with the weights to begin with."""
    model = classifier(options.model, images.classes).to(device)
    if options.weights:
        edgeq.load_weights(model, options.weights, strict=True)  # or whatever else loads a state dict
        report("float", accuracy(model, images, device))
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if options.sync_bn else model


def calibrated(images: Images, options: argparse.Namespace, device: torch.device) -> Any:
    """The network of --weights, quantized without training."""
    model = float_network(images, options, device)
    model = edgeq.PTCFxModule(model, options.preset, options.backend)  # edgeq
    model.calibrate(batch.to(device) for batch, _ in images.calibration)  # edgeq
    report("calibrated", accuracy(model, images, device))
    return model


def trained(images: Images, options: argparse.Namespace, device: torch.device) -> Any:
    """The trained network, or its moving average if there is one."""
    model = saved = float_network(images, options, device)
    origin = {"model": options.model, "classes": images.classes}
    if not options.float:
        model = edgeq.QATFxModule(model, options.preset, options.backend, total_epochs=options.epochs)  # edgeq
        saved = model.module  # edgeq: its state dict has the float network's keys, and the quantizers' own
        origin |= {"preset": options.preset, "backend": options.backend}  # edgeq
    mix = mixing(images.classes, options)

    def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
        batch, labels = mix(batch, labels)
        return nn.functional.cross_entropy(model(batch), labels, label_smoothing=options.label_smoothing)

    def schedule(optimizer: Optimizer, epochs: int) -> LRScheduler:
        return SCHEDULES[options.lr_scheduler](optimizer, epochs, options)

    task = Task(images.train, loss, lambda model: accuracy(model, images, device), schedule, origin)
    return train(model, saved, parameter_groups(model, options), task, options, device)


def mixing(classes: int, options: argparse.Namespace) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What mixes the images and labels of a batch, one of the two ways at random."""
    import_torchvision()
    from torchvision.transforms import v2

    ways: list[nn.Module] = []
    if options.mixup_alpha:
        ways.append(v2.MixUp(alpha=options.mixup_alpha, num_classes=classes))
    if options.cutmix_alpha:
        ways.append(v2.CutMix(alpha=options.cutmix_alpha, num_classes=classes))
    return v2.RandomChoice(ways) if ways else lambda batch, labels: (batch, labels)


@dataclass(frozen=True)
class Accuracy:
    """In percent, of so many images; `top_5` is of as many classes as there are, if those are fewer."""

    top_1: float
    top_5: float
    images: int

    def __str__(self) -> str:
        return f"top-1 {self.top_1:.2f} %, top-5 {self.top_5:.2f} % of {self.images} images"


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images, device: torch.device) -> Accuracy:
    """Of a model on the test images, over all processes."""
    model.eval()
    processes.share_buffers(model)
    right = torch.zeros(3, device=device)
    for batch, labels in tqdm(images.test, desc="test", disable=processes.rank() > 0 or None, leave=False):
        logits, labels = model(batch.to(device)), labels.to(device)
        first = logits.argmax(1) == labels  # of equal logits, which quantized ones may be, always the first
        five = logits.topk(min(5, images.classes)).indices == labels[:, None]
        right += torch.stack([first.sum(), five.sum(), torch.as_tensor(len(labels), device=device)])
    top_1, top_5, count = processes.total(right).tolist()
    return Accuracy(100 * top_1 / count, 100 * top_5 / count, int(count))


def exported(model: Any, images: Images, options: argparse.Namespace) -> bool:
    """Writes the files and compares them with the network; whether they compute what it does."""
    folder, model = Path(options.output_dir), model.cpu()
    images = dataclasses.replace(images, test=spread(images.test, options.compare))
    converted = model.convert()  # edgeq
    files = {form: folder / f"{form}.onnx" for form in ("qdq", "integer")}
    results = [converted.export(images.example, file, format=form, dynamic_batch=True) for form, file in files.items()]

    networks: dict[str, Network] = {
        "float": model.module.run_float,  # edgeq: the same weights without quantization
        "trained quantized": model,
        "converted": converted,
        **{f"ONNX Runtime, {form}": runtime(file) for form, file in files.items()},
    }
    sizes = {f"ONNX Runtime, {form}": file.stat().st_size for form, file in files.items()}
    text = "\n\n".join([table(networks, sizes, images), "\n".join(map(str, results))])
    print(f"{options.model}, preset {options.preset}, backend {options.backend}\n\n{text}")
    (folder / "table.md").write_text(f"{text}\n")
    return all(result.passed for result in results)


def spread(loader: DataLoader, count: int) -> DataLoader:
    """About `count` of the loader's images, evenly spread: folders are in the order of their classes."""
    size = len(loader.dataset)  # type: ignore[arg-type]
    chosen = Subset(loader.dataset, range(0, size, max(1, size // count)))
    return DataLoader(chosen, loader.batch_size, num_workers=loader.num_workers)


if __name__ == "__main__":
    sys.exit(main())
