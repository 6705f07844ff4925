"""The command line that the training programs share, with the names that torchvision's reference scripts have."""

from __future__ import annotations

import argparse

import torch

from recipes.loop.optimization import OPTIMIZERS


def parser(description: str | None, output: str, batch_size: int, epochs: int, rate: float) -> argparse.ArgumentParser:
    """A parser of the shared options; the arguments are defaults that differ between programs."""
    made = argparse.ArgumentParser(
        description=(description or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _data(made, output, batch_size)
    _training(made, epochs, rate)
    _averaging(made)
    _quantization(made)
    return made


def _data(made: argparse.ArgumentParser, output: str, batch_size: int) -> None:
    add = made.add_argument_group("data and files").add_argument
    add("--data-path", required=True, help="folder of the images")
    add("--weights", help="trained float weights to begin with")
    add("-b", "--batch-size", type=int, default=batch_size, help="images in a batch, of each process")
    add("-j", "--workers", type=int, default=2, help="processes that read images, for each process that trains")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    add("--output-dir", default=output, help="folder for what comes out")
    add("--resume", help="checkpoint to go on from")
    add("--test-only", action="store_true", help="only measure the network")
    add("--print-freq", type=int, default=10, help="steps between two updates of the progress bar's loss")


def _training(made: argparse.ArgumentParser, epochs: int, rate: float) -> None:
    add = made.add_argument_group("training").add_argument
    add("--epochs", type=int, default=epochs, help="epochs in all")
    add("--start-epoch", type=int, default=0, help="number of the first epoch; --resume knows it")
    add("--opt", default="sgd", choices=OPTIMIZERS, help="optimizer")
    add("--lr", type=float, default=rate, help="learning rate at its highest")
    add("--momentum", type=float, default=0.9, help="of SGD and RMSprop")
    add("--wd", "--weight-decay", dest="weight_decay", type=float, default=1e-4, help="weight decay")
    add("--norm-weight-decay", type=float, help="weight decay of normalization layers, if it is another one")
    add("--lr-warmup-epochs", type=int, default=0, help="epochs in which the learning rate rises")
    add("--lr-warmup-decay", type=float, default=0.01, help="share of the learning rate that they begin with")
    add("--clip-grad-norm", type=float, help="greatest norm of all gradients together")
    add("--amp", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 elsewhere")
    add("--sync-bn", action="store_true", help="statistics of batch norms over all processes")
    add("--seed", type=int, default=0, help="of all that is random; each epoch adds its number")


def _averaging(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("moving average of the parameters").add_argument
    add("--model-ema", action="store_true", help="keep one, and export it in the end")
    add("--model-ema-steps", type=int, default=32, help="steps between two updates")
    add("--model-ema-decay", type=float, default=0.99998, help="decay for a batch of one and a single epoch")


def _quantization(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("quantization").add_argument
    add("--preset", default="DEFAULT", help="what to quantize and how")
    add("--backend", default="onnxruntime", help="what the files are for")
    add("--calibrate", action="store_true", help="calibrate the network of --weights instead of training it")
    add("--float", action="store_true", help="train the float network, without edgeq")


def check(made: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """The options, if they fit together; else the program ends with a message."""
    if options.calibrate and options.float:
        made.error("--calibrate and --float exclude each other")
    if options.calibrate and not (options.weights or options.resume):
        made.error("--calibrate needs a trained network: give its --weights")
    if options.test_only and not (options.weights or options.resume):
        made.error("--test-only needs a trained network: give its --weights or a checkpoint to --resume")
    if options.sync_bn and torch.device(options.device).type == "cpu":
        made.error("--sync-bn needs a GPU: PyTorch has no synchronized batch norm for the CPU")
    for name in ("epochs", "batch_size", "model_ema_steps", "print_freq"):
        if getattr(options, name) < 1:
            made.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if options.start_epoch and options.resume:
        made.error("--start-epoch is what --resume reads from the checkpoint; give one of them")
    return options
