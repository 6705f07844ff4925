"""Text to token ids and back, with a vocabulary that is built from the training text and saved as JSON."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

PADDING, UNKNOWN, START = 0, 1, 2
SPECIAL = ("<padding>", "<unknown>", "<start>")

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")  # words with their apostrophes, and each other sign by itself


def split(text: str) -> list[str]:
    """The words and signs of a text, in lower case and Unicode's composed form."""
    return WORD.findall(unicodedata.normalize("NFC", text).lower())


class Tokenizer:
    """Gives each word of its vocabulary a number. `words` are those from the number 3 on: 0 pads, 1 stands for a word
    that is not known and 2 for the start of a text, where a classifier gives its result.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate((*SPECIAL, *self.words))}

    @classmethod
    def build(cls, texts: Iterable[str], size: int = 20000, least: int = 1) -> Tokenizer:
        """The `size` most frequent words of `texts` that occur at least `least` times; equally frequent ones in
        alphabetical order.
        """
        counts = Counter(word for text in texts for word in split(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([word for word in ranked[:size] if counts[word] >= least])

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, text: str, length: int) -> list[int]:
        """`length` ids: the start, then the words as far as they fit, then padding."""
        ids = [START, *(self._ids.get(word, UNKNOWN) for word in split(text))][:length]
        return ids + [PADDING] * (length - len(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids`, with spaces between; start and padding are left out."""
        names = (*SPECIAL, *self.words)
        return " ".join(names[index] for index in ids if index not in (PADDING, START))

    def save(self, path: str | Path) -> None:
        """Writes the vocabulary as JSON."""
        Path(path).write_text(json.dumps({"words": self.words}, ensure_ascii=False, indent=0), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a vocabulary that was saved. Raises FileNotFoundError when there is none."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8"))["words"])
