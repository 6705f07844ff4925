"""Words to numbers and back."""

import pytest

from recipes.transformer.tokenizer import PADDING, START, UNKNOWN, Tokenizer, split

TEXTS = ["It wasn't bad, was it?", "Not bad. Not bad at all!"]


def test_known_words_come_back_from_their_numbers():
    tokenizer = Tokenizer.build(TEXTS)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, 20)).split() == split(text)
    assert split(TEXTS[0]) == ["it", "wasn't", "bad", ",", "was", "it", "?"]


def test_texts_start_with_a_sign_of_their_own_and_are_padded_and_cut():
    tokenizer = Tokenizer.build(["b a b"])
    assert tokenizer.words == ["b", "a"]
    assert tokenizer.encode("a b a", 6) == [START, 4, 3, 4, PADDING, PADDING]
    assert tokenizer.encode("a b a", 3) == [START, 4, 3]
    assert tokenizer.encode("", 2) == [START, PADDING]


def test_words_that_are_not_known_have_one_number():
    tokenizer = Tokenizer.build(["a b"])
    assert tokenizer.encode("a c d b", 5) == [START, 3, UNKNOWN, UNKNOWN, 4]
    assert tokenizer.decode([START, 3, UNKNOWN, PADDING]) == "a <unknown>"


def test_the_names_of_special_numbers_are_no_words_in_a_text():
    assert Tokenizer.build(["a"]).encode("<padding>", 4) == [START, UNKNOWN, UNKNOWN, UNKNOWN]


def test_the_vocabulary_holds_the_most_frequent_words_that_are_frequent_enough():
    texts = ["d d d c c b b a"]
    assert Tokenizer.build(texts, size=3).words == ["d", "b", "c"]
    assert Tokenizer.build(texts, least=2).words == ["d", "b", "c"]
    assert len(Tokenizer.build(texts, least=3)) == 4


def test_accents_and_capitals_are_the_same_word_however_they_are_written():
    tokenizer = Tokenizer.build(["Caf\u00e9"])
    assert tokenizer.encode("CAFE\u0301", 2) == [START, 3]


def test_a_vocabulary_is_saved_and_read(tmp_path):
    tokenizer = Tokenizer.build([*TEXTS, "Çok güzel, 日本語"])
    tokenizer.save(tmp_path / "vocabulary.json")
    again = Tokenizer.load(tmp_path / "vocabulary.json")
    assert again.words == tokenizer.words
    assert again.encode("güzel it wasn't", 6) == tokenizer.encode("güzel it wasn't", 6)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "no.json")
