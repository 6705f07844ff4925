"""A vision transformer on a folder of images: trained in float, calibrated or trained quantized, and exported.

    python -m recipes.transformer.vit --data-path photos --model vit_b_16 --weights vit.pth --calibrate
    python -m recipes.transformer.vit --data-path photos --model vit_b_16 --weights vit.pth --epochs 4 --lr 1e-5
    python -m recipes.transformer.vit --data-path photos --size 32 --patch 4 --width 64 --layers 2 --heads 4 --float

Images are in photos/train/<class>/ and photos/val/<class>/. `--model` names a network of torchvision's, or of timm's
where that is installed; without it torchvision's VisionTransformer is built as small as you say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from torch import nn

from recipes.data import Images, image_folder
from recipes.loop import options as command_line
from recipes.torchvision_import import import_torchvision
from recipes.transformer import stages

OWN = "own"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0 when the files compute what was validated, else 1."""
    options = parse(arguments)

    def load() -> Images:
        return image_folder(
            options.data_path,
            options.size,
            options.batch_size,
            options.calibration,
            options.workers,
            options.crop,
            flip=not options.no_flip,
        )

    return stages.run(options, load, lambda classes: network(options, classes))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = stages.parser(__doc__, "results/vit", epochs=100, rate=1e-3)
    add = parser.add_argument_group("vision").add_argument
    add("--size", type=int, default=224, help="height and width of an image")
    add("--crop", type=float, default=0.5, help="least part of an image's area to train on")
    add("--no-flip", action="store_true", help="train on no mirrored images: digits, letters, signs")
    add("--model", default=OWN, help="a network of torchvision.models or of timm, or what the next four say")
    add("--patch", type=int, default=16, help="height and width of a patch")
    add("--width", type=int, default=192, help="features of a patch")
    add("--layers", type=int, default=6, help="layers of attention")
    add("--heads", type=int, default=3, help="heads of a layer")
    return command_line.check(parser, parser.parse_args(arguments))


def network(options: argparse.Namespace, classes: int) -> nn.Module:
    """Images (batch, 3, size, size) to logits (batch, classes). Raises ValueError for a name that nobody knows."""
    models = import_torchvision().models
    if options.model == OWN:
        width = options.width
        sizes = (options.size, options.patch, options.layers, options.heads, width, 4 * width)
        return models.VisionTransformer(*sizes, num_classes=classes)
    if options.model in models.list_models(models):
        return models.get_model(options.model, weights=None, image_size=options.size, num_classes=classes)
    try:
        import timm
    except ImportError:
        raise ValueError(f"torchvision has no network {options.model!r}, and timm is not installed.") from None
    if not timm.is_model(options.model):
        raise ValueError(f"Neither torchvision nor timm has a network {options.model!r}.")
    return timm.create_model(options.model, img_size=options.size, num_classes=classes)


if __name__ == "__main__":
    sys.exit(main())
