r"""From annotated images to a quantized detector in a file that is proven to compute what was validated.

    python -m recipes.detection
    python -m recipes.detection --train annotations/instances_train2017.json train2017 \
        --val annotations/instances_val2017.json val2017 --size 640 --epochs 100 --device cuda --workers 8

Without data it draws coloured shapes. A network is trained in float (or taken from `--checkpoint`, with `--epochs 0`),
calibrated, trained quantized (unless `--qat-epochs 0`), converted and exported. With `--resume` an interrupted run goes
on where it was.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

import edgeq
from recipes.detection.average_precision import AveragePrecision, average_precision
from recipes.detection.batches import Scaled, loader
from recipes.detection.coco import AnnotationError, Coco, read_coco
from recipes.detection.detectors import DETECTORS, Detector, Network
from recipes.detection.shapes import write_shapes
from recipes.detection.training import Plan, train

CALIBRATION = 256  # images


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every stage; returns 0 when the file computes what was validated, else 1."""
    options = parse(arguments)
    torch.manual_seed(options.seed)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    training, validation = data(options, folder)
    detector = DETECTORS[options.arch]
    model = detector.build(len(training.classes), options.size, options.width, options.depth)
    if options.checkpoint:
        print(edgeq.load_weights(model, options.checkpoint))
    train(model, detector.loss, training, plan(options), folder / "float.pt", options.resume, "float training")

    # edgeq: calibration is enough for many networks.
    quantization = {"backend": options.backend, **detector.quantization(options.size)}
    calibrated = edgeq.PTCFxModule(copy.deepcopy(model), options.preset, **quantization)
    calibrated.calibrate(calibration_batches(training, options))
    networks: dict[str, Network] = {"float": model, "calibrated": calibrated}
    quantized: edgeq.PTCFxModule | edgeq.QATFxModule = calibrated
    if options.qat_epochs:
        # edgeq: the same loop trains the network as it will be when it is quantized.
        epochs, rate = options.qat_epochs, options.rate / 10
        quantized = edgeq.QATFxModule(copy.deepcopy(model), options.preset, total_epochs=epochs, **quantization)
        fine = plan(options, epochs, rate)
        train(quantized, detector.loss, training, fine, folder / "qat.pt", options.resume, "quantized training")
        networks["trained quantized"] = quantized

    # edgeq: the network of integers, and the files, which are compared with it.
    networks["converted"] = quantized.convert()
    images = next(iter(loader(Scaled(validation, options.size, False), options.batch, False, 0)))[0]
    results = detector.export(quantized, images, folder)
    networks["ONNX Runtime"] = detector.deployed(model, results)

    found = {name: evaluate(network, detector, validation, options, name) for name, network in networks.items()}
    text, proof = table(found), "\n".join(map(str, results))
    print(f"{options.arch}, preset {options.preset}, backend {options.backend}\n\n{text}\n\n{proof}")
    (folder / "table.md").write_text(f"{text}\n\n```\n{proof}\n```\n")
    return 0 if all(result.passed for result in results) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    files = ("ANNOTATIONS", "IMAGES")
    add("--train", nargs=2, metavar=files, help="annotations in COCO's format and their folder of images")
    add("--val", nargs=2, metavar=files, help="the same, to measure on")
    add("--arch", default="yolo", choices=DETECTORS, help="kind of network (default: %(default)s)")
    add("--width", type=float, help="scales the channels; unless given 0.25 for yolo, else 1")
    add("--depth", type=float, help="scales the number of blocks of yolo; unless given 0.34")
    add("--checkpoint", help="float weights to begin with; what does not fit is reported")
    add("--size", type=int, help="height and width of an image; unless given 320, and 96 for drawn shapes")
    add("--preset", default="DEFAULT", help="what to quantize and how (default: %(default)s)")
    add("--backend", default="onnxruntime", help="what the file is for (default: %(default)s)")
    add("--epochs", type=int, default=30, help="epochs of float training (default: %(default)s)")
    add("--qat-epochs", type=int, default=6, help="epochs of quantized training; 0 only calibrates (default: 6)")
    add("--rate", type=float, default=2e-3, help="learning rate; quantized, a tenth (default: %(default)s)")
    add("--batch", type=int, default=16, help="images at a time (default: %(default)s)")
    add("--workers", type=int, default=2, help="processes that read images (default: %(default)s)")
    add("--device", default="cpu", help="where to train (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--resume", action="store_true", help="goes on with the checkpoints in the output folder")
    add("--output", default="results/detection", help="folder for what comes out (default: %(default)s)")
    options = parser.parse_args(arguments)
    if bool(options.train) != bool(options.val):
        parser.error("--train and --val belong together")
    options.size = options.size or (320 if options.train else 96)
    return options


def plan(options: argparse.Namespace, epochs: int | None = None, rate: float | None = None) -> Plan:
    """The plan of float training, or with other epochs and rate."""
    epochs, rate = options.epochs if epochs is None else epochs, options.rate if rate is None else rate
    return Plan(epochs, rate, options.batch, options.size, options.seed, options.workers, options.device)


def data(options: argparse.Namespace, folder: Path) -> tuple[Coco, Coco]:
    """Images for training and validation: the user's, or drawn here. Raises AnnotationError when the classes differ."""
    if options.train:
        training, validation = read_coco(*options.train), read_coco(*options.val)
    else:
        training = read_coco(*write_shapes(folder / "shapes" / "train", 400, options.size, seed=0))
        validation = read_coco(*write_shapes(folder / "shapes" / "val", 100, options.size, seed=1))
    if training.classes != validation.classes:
        raise AnnotationError(f"The categories differ: {training.classes} in --train, {validation.classes} in --val.")
    return training, validation


def calibration_batches(coco: Coco, options: argparse.Namespace) -> DataLoader:
    """Plain training images for calibration, the same ones each time."""
    chosen = torch.randperm(len(coco), generator=torch.Generator().manual_seed(0))[:CALIBRATION].tolist()
    return loader(Subset(Scaled(coco, options.size, False), chosen), options.batch, False, options.workers)


@torch.no_grad()
def evaluate(
    network: Network, detector: Detector, coco: Coco, options: argparse.Namespace, name: str
) -> AveragePrecision:
    """Of a network on all images of `coco`."""
    found, targets = [], []
    batches = loader(Scaled(coco, options.size, False), options.batch, False, options.workers)
    for images, wanted in tqdm(batches, desc=name, disable=None, leave=False):
        found += detector.detect(network, images)
        targets += wanted
    return average_precision(found, targets, len(coco.classes))


def table(found: dict[str, AveragePrecision]) -> str:
    """One row a network."""
    rows = [f"| {name:<17} | {ap.at_50:8.2f} | {ap.at_50_95:13.2f} |" for name, ap in found.items()]
    head = f"| {'network':<17} | AP@0.5 % | AP@0.5:0.95 % |"
    return "\n".join([head, f"|{'-' * 19}|{'-' * 9}:|{'-' * 14}:|", *rows])


if __name__ == "__main__":
    sys.exit(main())
