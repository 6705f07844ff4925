"""What is written as TOML is read back by Python's own reader as the same data."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.toml import dumps

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)  # all but half of a surrogate pair
SCALAR = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
INLINE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
TABLE = st.dictionaries(TEXT, INLINE, max_size=3)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(TEXT, INLINE | TABLE | st.lists(TABLE, max_size=3), max_size=4))
def test_any_table_of_scalars_lists_and_tables_reads_back(data):
    read = tomllib.loads(dumps(data))
    assert read == data
    assert {key: type(value) for key, value in read.items()} == {key: type(value) for key, value in data.items()}


def test_scalars_come_first_and_tables_are_sections():
    weight = {"bits": 4, "observer": {"name": "x", "p": 0.5}}
    data = {"name": "a", "weight": weight, "rules": [{"type": "A"}], "on": True}
    assert dumps(data) == (
        'name = "a"\non = true\n\n[weight]\nbits = 4\nobserver = {name = "x", p = 0.5}\n\n[[rules]]\ntype = "A"\n'
    )


@pytest.mark.parametrize("value", [1e22, 1e-9, 0.1, -0.0, float("inf"), 2.0**-60])
def test_floats_keep_every_bit(value):
    assert tomllib.loads(dumps({"x": value}))["x"].hex() == value.hex()


def test_text_keeps_quotes_breaks_and_other_alphabets():
    text = 'a "b"\n\tc\\d\x00\x7f é 量子化'
    assert tomllib.loads(dumps({"x": text, "a b": 1})) == {"x": text, "a b": 1}
