"""Texts and labels from tables and folders."""

import pytest
import torch

from recipes.transformer.texts import batches, read
from recipes.transformer.tokenizer import START, Tokenizer


def test_a_table_with_commas_may_quote_its_texts(tmp_path):
    (tmp_path / "train.csv").write_text('label,text\npos,"Good, ""very"" good\nindeed"\nneg,Bad\n')
    (tmp_path / "test.csv").write_text("\ufefftext,label\nBad,neg\n", encoding="utf-8")
    assert read(tmp_path) == ([('Good, "very" good\nindeed', "pos"), ("Bad", "neg")], [("Bad", "neg")])


def test_a_table_with_tabs_takes_quotation_marks_as_they_are(tmp_path):
    (tmp_path / "train.tsv").write_text('sentence\tid\tlabel\nA 5" screen\t7\t1\nIt is "fine\t8\t0\n')
    (tmp_path / "dev.tsv").write_text("sentence\tid\tlabel\nFine\t9\t1\n")
    rows, held_out = read(tmp_path, "sentence")
    assert rows == [('A 5" screen', "1"), ('It is "fine', "0")]
    assert held_out == [("Fine", "1")]


def test_a_folder_has_a_text_a_file(tmp_path):
    for part, label, name, content in (
        ("train", "pos", "2", "good"),
        ("train", "pos", "1", "great\nfun"),
        ("train", "neg", "3", "bad"),
        ("test", "neg", "1", "dull"),
    ):
        place = tmp_path / part / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.txt").write_text(content)
    assert read(tmp_path) == ([("bad", "neg"), ("great\nfun", "pos"), ("good", "pos")], [("dull", "neg")])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("text,label\na,1\n", None, "has none of test.csv, test.tsv, test, val.csv"),
        ("text,label\na,1\n", "text,label\nb,2\nc,3\n", r"of '.*test\.csv' do not occur in '.*train\.csv': 2, 3"),
        ("text,class\na,1\n", "text,label\nb,1\n", "has no column 'label', only text, class"),
        ("text,label\na,1\nb\n", "text,label\nb,1\n", "Row 2 of .* has too few columns"),
        ("text,label\n", "text,label\nb,1\n", r"train\.csv' holds no text"),
        ("", "text,label\nb,1\n", "has no column 'text'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, train, test, message):
    for name, content in (("train", train), ("test", test)):
        if content is not None:
            (tmp_path / f"{name}.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path)


def test_batches_are_token_ids_and_numbers_of_labels():
    rows, held_out = [("a b", "yes"), ("b", "no"), ("a", "yes")], [("a c", "no"), ("b", "yes")]
    tokenizer = Tokenizer.build(text for text, _ in rows)
    texts = batches(rows, held_out, tokenizer, 4, batch=2, calibration=2)
    ((tokens, labels),) = texts.test
    assert texts.classes == 2
    assert tokens.tolist() == [[START, 3, 1, 0], [START, 4, 0, 0]]
    assert (tokens.dtype, labels.dtype, labels.tolist()) == (torch.int64, torch.int64, [0, 1])
    assert [len(batch) for batch, _ in texts.calibration] == [2]
    assert [len(batch) for batch, _ in texts.train] == [2]  # three texts: the last one is dropped, in turn
