r"""The training of a segmentation network, as torchvision's reference script does it, quantized.

    python -m recipes.segmentation --data-path voc --model deeplabv3_resnet50 --aux-loss --float --output-dir float
    python -m recipes.segmentation --data-path voc --model deeplabv3_resnet50 --aux-loss \
        --weights float/weights.pth --preset WC8_AT8 --epochs 5 --lr 0.001
    torchrun --nproc-per-node 4 -m recipes.segmentation --data-path voc --sync-bn ...

Images are in voc/train/images/*.jpg and voc/val/images/*.jpg, the classes of their pixels in voc/train/masks/*.png and
voc/val/masks/*.png, where 255 does not count. The lines that edgeq adds are marked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import PolynomialLR
from tqdm import tqdm

import edgeq  # edgeq
from recipes.comparison import runtime
from recipes.data import Images, loaders
from recipes.loop import options as command_line
from recipes.loop import processes
from recipes.loop.optimization import Groups, parameter_groups
from recipes.loop.training import Task, report, train
from recipes.masks import IGNORED, Masks
from recipes.segmentation_networks import segmenter
from recipes.training import Network

AUXILIARY = 0.5  # weight of the auxiliary loss
POWER = 0.9  # of the polynomial that the learning rate follows


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or calibrates, measures and exports; returns 0 when the file computes what was validated, else 1."""
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
    parser = command_line.parser(__doc__, "results/segmentation", batch_size=8, epochs=30, rate=0.01)
    add = parser.add_argument_group("segmentation").add_argument
    add("--model", default="lraspp_mobilenet_v3_large", help="of torchvision.models.segmentation, or lraspp_small ...")
    add("--num-classes", type=int, default=21, help="classes of pixels, the background included")
    add("--aux-loss", action="store_true", help="train with an auxiliary classifier, which is not exported")
    add("--size", type=int, default=480, help="height and width that images are brought to")
    return command_line.check(parser, parser.parse_args(arguments))


def load_images(options: argparse.Namespace) -> Images:
    """The folder of --data-path; of several processes, each has its part."""
    root = Path(options.data_path)
    train_set, unchanged, test = (
        Masks(root / part, options.num_classes, options.size, augmented)
        for part, augmented in (("train", True), ("train", False), ("val", False))
    )
    return loaders(root.name, train_set, unchanged, test, options.num_classes, options.batch_size, 256, options.workers)


def float_network(images: Images, options: argparse.Namespace, device: torch.device) -> nn.Module:
    """The network, with the weights to begin with."""
    model = segmenter(options.model, options.num_classes, options.aux_loss).to(device)
    if options.weights:
        edgeq.load_weights(model, options.weights, strict=True)  # or whatever else loads a state dict
        report("float", overlap(model, images, device))
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if options.sync_bn else model


def calibrated(images: Images, options: argparse.Namespace, device: torch.device) -> Any:
    """The network of --weights, quantized without training."""
    model = float_network(images, options, device)
    model.aux_classifier = None  # only the training needs it
    model = edgeq.PTCFxModule(model, options.preset, options.backend)  # edgeq
    model.calibrate(batch.to(device) for batch, _ in images.calibration)  # edgeq
    report("calibrated", overlap(model, images, device))
    return model


def trained(images: Images, options: argparse.Namespace, device: torch.device) -> Any:
    """The trained network, or its moving average if there is one."""
    model = saved = float_network(images, options, device)
    groups = groups_of(model, options)  # of the float network: wrapping it keeps its parameters
    origin = {"model": options.model, "classes": options.num_classes, "aux_loss": options.aux_loss}
    if not options.float:
        model = edgeq.QATFxModule(model, options.preset, options.backend, total_epochs=options.epochs)  # edgeq
        saved = model.module  # edgeq: its state dict has the float network's keys, and the quantizers' own
        origin |= {"preset": options.preset, "backend": options.backend}  # edgeq

    task = Task(
        images.train,
        loss,
        lambda model: overlap(model, images, device),
        lambda optimizer, steps: PolynomialLR(optimizer, steps, POWER),
        origin,
        each_batch=True,
    )
    return train(model, saved, groups, task, options, device)


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The mean over all pixels that count, and a part of the auxiliary classifier's."""
    losses = {
        name: nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)
        for name, logits in model(images).items()
    }
    return losses["out"] + AUXILIARY * losses["aux"] if "aux" in losses else losses["out"]


def groups_of(model: nn.Module, options: argparse.Namespace) -> Groups:
    """The parameters; the auxiliary classifier learns ten times as fast."""
    parts = [model.backbone, model.classifier]
    groups = [group for part in parts for group in parameter_groups(part, options)]
    return groups + (parameter_groups(model.aux_classifier, options, 10 * options.lr) if options.aux_loss else [])


@dataclass(frozen=True)
class Overlap:
    """In percent: the mean over the classes of intersection over union, and the share of pixels that are right."""

    mean_iou: float
    accuracy: float
    images: int

    def __str__(self) -> str:
        return f"mean IoU {self.mean_iou:.2f} %, pixel accuracy {self.accuracy:.2f} % of {self.images} images"


def overlap(model: nn.Module, images: Images, device: torch.device) -> Overlap:
    """Of a model on the test images, over all processes."""
    model.eval()
    processes.share_buffers(model)
    return overlap_of(lambda batch: model(batch)["out"], images, device)


@torch.inference_mode()
def overlap_of(network: Network, images: Images, device: torch.device) -> Overlap:
    """As `overlap`, of anything that gives logits (batch, classes, height, width). Of classes that neither a mask nor
    the network has there is no union, and they do not count.
    """
    classes = images.classes
    table = torch.zeros(classes * classes + 1, dtype=torch.int64, device=device)  # pixels by true class and found one
    for batch, labels in tqdm(images.test, desc="test", disable=processes.rank() > 0 or None, leave=False):
        found, labels = network(batch.to(device)).argmax(1), labels.to(device)
        counted = labels != IGNORED
        pairs = classes * labels[counted] + found[counted]
        table[:-1] += torch.bincount(pairs, minlength=classes * classes)
        table[-1] += len(batch)
    *pixels, count = processes.total(table).tolist()
    confusion = torch.tensor(pixels, dtype=torch.float64).reshape(classes, classes)
    right, union = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    mean_iou = (right / union)[union > 0].mean()
    return Overlap(100 * float(mean_iou), 100 * float(right.sum() / confusion.sum()), count)


def exported(model: Any, images: Images, options: argparse.Namespace) -> bool:
    """Writes the file and compares it with the network; whether it computes what the network does."""
    folder, model = Path(options.output_dir), without_auxiliary(model, options).cpu()
    converted = model.convert()  # edgeq
    result = converted.export(images.example, folder / "model.onnx", dynamic_batch=True, output_names=["out"])  # edgeq

    networks: dict[str, Network] = {
        "float": lambda batch: model.module.run_float(batch)["out"],  # edgeq: the same weights without quantization
        "simulated": lambda batch: model(batch)["out"],
        "converted": lambda batch: converted(batch)["out"],
        "ONNX Runtime": runtime(result.path),
    }
    found = {name: overlap_of(network, images, torch.device("cpu")) for name, network in networks.items()}
    rows = [f"| {name:<12} | {one.mean_iou:10.2f} | {one.accuracy:16.2f} |" for name, one in found.items()]
    head = ["| network      | mean IoU % | pixel accuracy % |", "|--------------|-----------:|-----------------:|"]
    text = "\n".join([*head, *rows, "", str(result)])
    print(f"{options.model}, preset {options.preset}, backend {options.backend}\n\n{text}")
    (folder / "table.md").write_text(f"{text}\n")
    return result.passed


def without_auxiliary(model: Any, options: argparse.Namespace) -> Any:
    """The same quantized network without the auxiliary classifier, which only the training needs."""
    if not options.aux_loss or options.calibrate:
        return model
    network = segmenter(options.model, options.num_classes).to(next(model.parameters()).device)
    bare = edgeq.QATFxModule(network, options.preset, options.backend, total_epochs=options.epochs)  # edgeq
    report = bare.load_weights(model.module.state_dict())  # edgeq: says what found no place
    if report.missing or report.mismatched:
        raise RuntimeError(f"The network without its auxiliary classifier is another one:\n{report}")
    return bare.eval()


if __name__ == "__main__":
    sys.exit(main())
