"""A text classifier on a table or a folder of texts: trained in float, calibrated or trained quantized, and exported.

    python -m recipes.transformer.text --data-path reviews --float --output-dir float
    python -m recipes.transformer.text --data-path reviews --weights float/weights.pth --epochs 4 --lr 1e-4
    python -m recipes.transformer.text --data-path reviews --text sentence --max-length 128 --model distilbert --float

`--data-path` holds train.csv and test.csv (or .tsv) with the columns text and label, or a file a text in
reviews/train/<class>/*.txt and reviews/test/<class>/*.txt. The vocabulary is built from the training texts and saved
beside the weights; with `--weights` it is read from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from recipes.data import Images
from recipes.loop import options as command_line
from recipes.transformer import stages
from recipes.transformer.encoder import HuggingFaceEncoder, TextEncoder
from recipes.transformer.texts import batches, read
from recipes.transformer.tokenizer import Tokenizer

OWN = "own"
VOCABULARY = "vocabulary.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0 when the files compute what was validated, else 1."""
    options = parse(arguments)
    rows, held_out = read(options.data_path, options.text, options.label)
    tokenizer = vocabulary(options, [text for text, _ in rows])

    def load() -> Images:
        return batches(rows, held_out, tokenizer, options.max_length, options.batch_size, options.calibration)

    return stages.run(options, load, lambda classes: network(options, len(tokenizer), classes))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = stages.parser(__doc__, "results/text", epochs=20, rate=1e-3)
    add = parser.add_argument_group("text").add_argument
    add("--text", default="text", help="column of the texts")
    add("--label", default="label", help="column of the labels")
    add("--max-length", type=int, default=64, help="tokens of a text; longer ones are cut")
    add("--vocabulary", type=int, default=20000, help="greatest number of words")
    add("--least", type=int, default=2, help="how often a word occurs that has a number")
    add("--model", default=OWN, help="a type of model of the package transformers, such as bert, or PyTorch's encoder")
    add("--width", type=int, default=128, help="features of a token")
    add("--layers", type=int, default=2, help="layers of attention")
    add("--heads", type=int, default=4, help="heads of a layer")
    return command_line.check(parser, parser.parse_args(arguments))


def vocabulary(options: argparse.Namespace, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer of the weights, or one that is built from `texts`; it is saved in the output folder."""
    if options.weights:
        tokenizer = Tokenizer.load(Path(options.weights).with_name(VOCABULARY))
    else:
        tokenizer = Tokenizer.build(texts, options.vocabulary, options.least)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / VOCABULARY)
    return tokenizer


def network(options: argparse.Namespace, words: int, classes: int) -> nn.Module:
    """Token ids (batch, max-length) to logits (batch, classes)."""
    sizes = (words, classes, options.max_length, options.width, options.layers, options.heads)
    return TextEncoder(*sizes) if options.model == OWN else HuggingFaceEncoder(options.model, *sizes)


if __name__ == "__main__":
    sys.exit(main())
