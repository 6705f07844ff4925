"""The command line of the benchmarks; `recipes/benchmarks/__init__.py` says what they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import edgeq
from recipes import benchmarks
from recipes.benchmarks import accuracy, memory, networks, recovery, report, speed, subjects, training
from recipes.benchmarks.machine import environment
from recipes.benchmarks.report import Section
from recipes.benchmarks.tasks import Subject
from recipes.benchmarks.torch_ao import find_torch_ao
from recipes.data import DEVIATION, MEAN

AREAS = ("speed", "memory", "accuracy")
OF_TRAINED = ("accuracy", "recovery", "training")  # which need no torchvision
CALIBRATION_IMAGES = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints each table when it is there, and writes all of them."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    areas = AREAS if options.area == "all" else (options.area,)
    timed, notes = torchvision_subjects(options) if {"speed", "memory"} & set(areas) else ([], [])
    sections: list[Section] = []
    for area in areas:
        for section in measured(area, options, timed, notes):
            print(section, flush=True)
            sections.append(section)
    report.write(Path(options.output), environment(), sections)
    return 0


def measured(area: str, options: argparse.Namespace, timed: list[Subject], notes: list[str]) -> Iterator[Section]:
    """The tables of one area, as they are there."""
    if area == "speed":
        yield speed.measure(timed, options.rounds or (3 if options.quick else 7), notes)
    elif area == "memory":
        yield memory.measure(timed, notes)
    elif area == "accuracy":
        presets = [name for name in edgeq.preset_names() if not edgeq.load_preset(name).learns]
        yield accuracy.measure(trained_subject(options), presets, options.backend)
    elif area == "training":
        chosen = {name: way for name, way in training.ways().items() if name in options.ways}
        subject = trained_subject(options)
        yield training.measure(subject, chosen, options.backend, options.epochs, options.rate, options.seed)
    else:
        wanted = {name: steps for name, steps in recovery.methods().items() if name in options.methods}
        yield from recovery.measure(trained_subject(options), options.settings, wanted, options.backend, options.seed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with a message when it does not fit together."""
    description = (benchmarks.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m recipes.benchmarks", description=description)
    add = parser.add_argument
    choices = [*AREAS, "recovery", "training", "all"]
    add("area", nargs="?", default="all", choices=choices, help="what to measure; all is without the last two")
    add("--quick", action="store_true", help="fewer rounds, calibration images and epochs: figures are rough")
    add("--threads", type=int, default=1, help="of PyTorch; with 1, CPU time is measured (default: %(default)s)")
    add("--backend", default="qnnpack", help="what edgeq quantizes for (default: %(default)s)")
    add("--output", default="results", help="folder for benchmarks.md and .json (default: %(default)s)")

    group = parser.add_argument_group("speed and memory")
    add = group.add_argument
    default = ["resnet18", "mobilenet_v2"]
    add("--networks", nargs="+", default=default, metavar="NAME", help="classifiers of torchvision.models")
    add("--size", type=int, default=128, help="height and width of an image (default: %(default)s)")
    add("--batch", type=int, default=16, help="images a batch (default: %(default)s)")
    add("--rounds", type=int, help="how often each task is timed (default: 7, with --quick 3)")
    add("--preset", default="DEFAULT", help="how edgeq quantizes (default: %(default)s)")

    group = parser.add_argument_group(
        "accuracy and recovery", "without these, a small network trained on handwritten digits"
    )
    add = group.add_argument
    add("--network", metavar="FILE.py:CLASS", help="a network, built without arguments")
    add("--weights", help="its state dict")
    add("--images", help="folder with train/<class>/ and test/<class>/")
    add("--mean", nargs=3, type=float, default=MEAN, help="of RGB in 0..1 (default: ImageNet's)")
    add("--deviation", nargs=3, type=float, default=DEVIATION, help="of RGB in 0..1 (default: ImageNet's)")
    add("--crop", type=int, metavar="SIZE", help="resize and crop to this; without it images are taken as they are")
    add("--test-images", type=int, metavar="N", help="only the first N (default: all)")

    group = parser.add_argument_group("recovery", "of the same network, which takes minutes for each setting")
    add = group.add_argument
    add("--settings", nargs="+", default=list(recovery.SETTINGS), choices=list(recovery.SETTINGS), help="of bits")
    add("--methods", nargs="+", default=list(recovery.methods()), choices=list(recovery.methods()), help="to compare")
    add("--seed", type=int, default=0, help="of what is random in a recovery or training")

    group = parser.add_argument_group("training", "of the same network, which takes hours where images are many")
    add = group.add_argument
    add("--ways", nargs="+", default=list(training.ways()), choices=list(training.ways()), help="to compare")
    add("--epochs", type=int, default=4, help="of each (default: %(default)s)")
    add("--rate", type=float, default=0.01, help="learning rate at the start (default: %(default)s)")

    options = parser.parse_args(arguments)
    given = [options.network, options.weights, options.images]
    if any(given) and not all(given):
        parser.error("--network, --weights and --images go together")
    if options.area not in OF_TRAINED:
        unknown = sorted(set(options.networks) - set(networks.network_names()))
        if unknown:
            parser.error(f"torchvision.models has no {', '.join(unknown)}")
    return options


def torchvision_subjects(options: argparse.Namespace) -> tuple[list[Subject], list[str]]:
    """The networks to time, and what there is to say of the peer."""
    images = CALIBRATION_IMAGES // 4 if options.quick else CALIBRATION_IMAGES
    batches = networks.image_batches(images, options.batch, options.size)
    found = []
    notes = [
        f"Images 3x{options.size}x{options.size}, batches of {options.batch}, {len(batches)} of them to calibrate on; "
        f"preset {options.preset}, backend {options.backend}."
    ]
    for name in options.networks:
        model = networks.network(name, batches[:2])
        peer, note = find_torch_ao(model, batches[0])
        notes.append(f"{name}: {note}")
        found.append(Subject(name, model, batches, options.preset, options.backend, peer))
    return found, notes


def trained_subject(options: argparse.Namespace) -> subjects.Trained:
    """The network to judge, from the user's files or trained here."""
    if not options.network:
        return subjects.handwritten_digits(3 if options.quick else 10)
    return subjects.from_files(
        options.network,
        options.weights,
        options.images,
        tuple(options.mean),
        tuple(options.deviation),
        options.crop,
        options.test_images,
    )


if __name__ == "__main__":
    sys.exit(main())
