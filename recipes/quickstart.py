"""From a float network to a file that is proven to compute what was validated, in one go.

    python -m recipes.quickstart
    python -m recipes.quickstart --data photos --arch mobilenet_v2 --checkpoint mobilenet.pt --preset WC8_AT8

Without arguments it trains a small network on scikit-learn's handwritten digits. With `--data` it takes a folder
of images (photos/train/<class>/*.jpg, photos/test/<class>/*.jpg) and a classifier of torchvision's by name, and
with `--checkpoint` weights that are trained already.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import edgeq
from recipes.comparison import runtime, state_size, table
from recipes.data import Images, digits, image_folder
from recipes.digits_network import DigitsNetwork
from recipes.torchvision_import import import_torchvision
from recipes.training import Network, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every stage; returns 0 when the files compute what was validated, else 1."""
    options = parse(arguments)
    torch.manual_seed(options.seed)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    images = image_folder(options.data, options.size) if options.data else digits()
    model = float_network(options, images)

    calibrated = edgeq.PTCFxModule(copy.deepcopy(model), options.preset, options.backend)
    calibrated.calibrate(images.calibration)
    trained = edgeq.QATFxModule(copy.deepcopy(model), options.preset, options.backend, total_epochs=options.qat_epochs)
    train(trained, images.train, options.qat_epochs, options.rate / 10, "quantization-aware training")
    torch.save(trained.state_dict(), folder / "qat.pt")
    converted = trained.convert()

    example = images.example
    files = {form: folder / f"{form}.onnx" for form in ("qdq", "integer")}
    exports = {form: trained.export(example, path, format=form, dynamic_batch=True) for form, path in files.items()}
    networks: dict[str, Network] = {
        "float": model,
        "calibrated": calibrated,
        "trained quantized": trained,
        "converted": converted,
        **{f"ONNX Runtime, {form}": runtime(path) for form, path in files.items()},
    }
    sizes = {
        "float": state_size(model),
        "converted": state_size(converted),
        **{f"ONNX Runtime, {form}": path.stat().st_size for form, path in files.items()},
    }
    text = table(networks, sizes, images)
    proof = "\n".join(str(result) for result in exports.values())
    print(f"{images.name}, preset {options.preset}, backend {options.backend}\n\n{text}\n\n{proof}")
    (folder / "table.md").write_text(f"{text}\n\n```\n{proof}\n```\n")
    (folder / "placement.txt").write_text(trained.explain() + "\n")
    return 0 if all(result.passed for result in exports.values()) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", help="folder with train/<class>/ and test/<class>/; without it, handwritten digits")
    add("--arch", default="resnet18", help="a classifier of torchvision.models, for --data (default: %(default)s)")
    add("--checkpoint", help="trained float weights; without them the network is trained here")
    add("--size", type=int, default=224, help="height and width of an image, for --data (default: %(default)s)")
    add("--preset", default="DEFAULT", help="what to quantize and how (default: %(default)s)")
    add("--backend", default="onnxruntime", help="what the files are for (default: %(default)s)")
    add("--epochs", type=int, default=10, help="epochs of float training (default: %(default)s)")
    add("--qat-epochs", type=int, default=6, help="epochs of quantized training (default: %(default)s)")
    add("--rate", type=float, default=0.1, help="learning rate of float training (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--output", default="results/quickstart", help="folder for what comes out (default: %(default)s)")
    return parser.parse_args(arguments)


def float_network(options: argparse.Namespace, images: Images) -> nn.Module:
    """The float network, from the checkpoint or trained here; in eval mode."""
    if options.data:
        model = import_torchvision().models.get_model(options.arch, num_classes=images.classes)
    else:
        model = DigitsNetwork(images.classes)
    if options.checkpoint:
        edgeq.load_weights(model, options.checkpoint, strict=True)
    else:
        train(model, images.train, options.epochs, options.rate, "float training")
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
