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
from edgeq.onnx.export import ExportResult
from recipes.detection.average_precision import AveragePrecision, average_precision
from recipes.detection.batches import Scaled, loader
from recipes.detection.coco import Coco, read_coco
from recipes.detection.detectors import DETECTORS, Detector, Network
from recipes.detection.errors import AnnotationError, InputError
from recipes.detection.shapes import write_shapes
from recipes.detection.training import Plan, train

CALIBRATION = 256  # images


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0 when the file computes what was validated, 1 when it does not, and 2, with a line
    that says why, for files or options that cannot be used.
    """
    options = parse(arguments)
    try:
        return 0 if all(result.passed for result in run(options)) else 1
    except (InputError, edgeq.SpecError) as error:
        said = str(error).strip().rpartition("AnnotationError: ")[2]  # a worker that reads images adds its traceback
        print(f"error: {said}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> list[ExportResult]:
    """Every stage; returns how the files compare with the network."""
    torch.manual_seed(options.seed)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    training, validation = data(options, folder)
    detector = DETECTORS[options.arch]
    model = detector.build(len(training.classes), options.size, options.width, options.depth)
    if options.checkpoint:
        print(edgeq.load_weights(model, options.checkpoint))

    # edgeq: a preset that does not fit shall be known before the training, not after it.
    quantization = {"backend": options.backend, **detector.quantization(options.size)}
    edgeq.PTCFxModule(copy.deepcopy(model), options.preset, **quantization)
    train(model, detector.loss, training, plan(options), folder / "float.pt", options.resume, "float training")

    # edgeq: calibration is enough for many networks.
    calibrated = edgeq.PTCFxModule(copy.deepcopy(model), options.preset, **quantization)
    calibrated.calibrate(calibration_batches(training, options))
    networks: dict[str, Network] = {"float": model, "calibrated": calibrated}
    quantized: edgeq.PTCFxModule | edgeq.QATFxModule = calibrated
    if options.qat_epochs:
        # edgeq: the same loop trains the network as it will be when it is quantized.
        quantized = edgeq.QATFxModule(
            copy.deepcopy(model), options.preset, total_epochs=options.qat_epochs, **quantization
        )
        fine = plan(options, quantized=True)
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
    return results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m recipes.detection", description=(__doc__ or "").partition("\n")[0])
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
    add("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    add("--resume", action="store_true", help="goes on with the checkpoints in the output folder")
    add("--output", default="results/detection", help="folder for what comes out (default: %(default)s)")
    return check(parser, parser.parse_args(arguments))


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """The options, if they fit together; else the program ends with a message."""
    if bool(options.train) != bool(options.val):
        parser.error("--train and --val belong together")
    for name, least in {"size": 1, "epochs": 0, "qat_epochs": 0, "batch": 1, "workers": 0}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    for name in ("width", "depth", "rate"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} must be greater than 0, got {value}")
    try:
        torch.empty(0, device=options.device)
    except (AssertionError, RuntimeError) as error:
        parser.error(f"--device {options.device} cannot be used: {str(error).partition(chr(10))[0]}")
    options.size = options.size or (320 if options.train else 96)
    return options


def plan(options: argparse.Namespace, quantized: bool = False) -> Plan:
    """How to train in float, or quantized: at a tenth of the rate."""
    given = {"width": options.width, "depth": options.depth}
    epochs, rate = options.epochs, options.rate
    if quantized:
        given |= {"preset": options.preset, "backend": options.backend}
        epochs, rate = options.qat_epochs, options.rate / 10
    network = " ".join([options.arch, *(f"--{name} {value}" for name, value in given.items() if value)])
    return Plan(epochs, rate, options.batch, options.size, options.seed, options.workers, options.device, network)


def data(options: argparse.Namespace, folder: Path) -> tuple[Coco, Coco]:
    """Images for training and validation: the user's, or drawn here. Raises AnnotationError when the classes differ, or
    one of them shows no object.
    """
    if options.train:
        training, validation = read_coco(*options.train), read_coco(*options.val)
    else:
        training = read_coco(*write_shapes(folder / "shapes" / "train", 400, options.size, seed=0))
        validation = read_coco(*write_shapes(folder / "shapes" / "val", 100, options.size, seed=1))
    for name, coco in (("training", training), ("validation", validation)):
        print(f"{name}: {coco}", flush=True)
        if not coco.objects:
            raise AnnotationError(f"There is no object in any image for {name}.")
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
