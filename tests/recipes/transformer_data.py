"""Data of the recipes for transformers: digits as image files, and sentences whose label follows a rule."""

import io
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SUBJECTS = ("film", "plot", "cast", "music", "ending", "story", "dialogue")
DEGREES = ("", "very ", "really ")
GOOD = ("good", "great", "charming", "funny", "brilliant", "warm", "clever")
BAD = ("bad", "dull", "boring", "weak", "clumsy", "awful", "tedious")
ASIDES = ("We saw it on a rainy day.", "It runs for two hours.", "My brother chose it.", "It was shot in spring.")


def write_digits(folder: Path, kinds: int = 10, count: int | None = None) -> Path:
    """Handwritten digits of 8x8 pixels as train/<digit>/*.png and test/<digit>/*.png: those below `kinds` among the
    first `count` ones. Of each digit every fourth is for the test.
    """
    found = load_digits()
    seen: Counter[int] = Counter()
    for image, digit in zip(found.images[:count], found.target[:count], strict=True):
        if digit < kinds:
            seen[digit] += 1
            place = folder / ("test" if seen[digit] % 4 == 1 else "train") / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).astype(np.uint8)).save(place / f"{seen[digit]}.png")
    return folder


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts and labels: an opinion, which a "not" in it turns round, among asides that have no say."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        likes, turned = generator.random() < 0.5, generator.random() < 0.5
        opinion = generator.choice(GOOD if likes else BAD)
        degree = generator.choice(DEGREES)
        parts = [f"The {generator.choice(SUBJECTS)} was {'not ' if turned else ''}{degree}{opinion}."]
        parts += generator.sample(ASIDES, generator.randrange(3))
        generator.shuffle(parts)
        rows.append((" ".join(parts), "negative" if likes == turned else "positive"))
    return rows


def write_sentences(folder: Path, train: int = 1200, test: int = 400) -> Path:
    """Sentences as train.tsv and test.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 0), ("test", test, 1)):
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in sentences(count, seed))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def train_in_three_ways(main: Callable[[list[str]], int], arguments: list[str], folder: Path, **more: str) -> str:
    """Trains in float, calibrates, and trains quantized, in folders of these names; each has to succeed. `more` are
    further options of each. Returns what was printed.
    """
    printed = io.StringIO()
    weights = ["--weights", str(folder / "float" / "weights.pth")]
    ways = {"float": ["--float"], "calibrated": [*weights, "--calibrate"], "quantized": weights}
    with redirect_stdout(printed):
        for name, way in ways.items():
            output = ["--output-dir", str(folder / name)]
            assert main([*arguments, *way, *output, *more.get(name, "").split()]) == 0, printed.getvalue()
    return printed.getvalue()


def accuracies(printed: str, name: str) -> list[float]:
    """What was measured under a title that begins so, in percent."""
    return [float(found) for found in re.findall(rf"^{name}.*: top-1 ([\d.]+) %", printed, re.MULTILINE)]


def read_table(folder: Path) -> dict[str, list[float | None]]:
    """The table that a recipe wrote: the name of each network, and its numbers."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: [float(cell) if cell else None for cell in row[1:]] for row in cells[2:]}
