"""Frozen dataclasses read from plain data: every key and type is checked, and what is written reads back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq import strict
from edgeq.arithmetic import PowerOfTwoRule, Rounding, Sign
from edgeq.errors import SpecError
from edgeq.spec import Granularity, Method, ScaleKind, TensorSpec


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Wheel:
    size: float = strict.number(1.0, 0.5, 2.0)
    spokes: int = 8


@dataclass(frozen=True)
class Cart:
    name: str = "cart"
    closed: bool = False
    colour: Colour = Colour.RED
    load: float | None = strict.number(None, 0.0, 10.0)
    label: str | None = None
    sizes: tuple[int, ...] = ()
    wheel: Wheel = Wheel()
    wheels: tuple[Wheel, ...] = ()

    def __post_init__(self) -> None:
        strict.validate(self)
        if self.name == "bad":
            raise SpecError("The name is bad.")


def test_plain_data_becomes_an_instance_with_its_types():
    data = {"closed": True, "colour": "green", "load": 3, "sizes": [1, 2], "wheel": {"size": 2}, "wheels": [{}]}
    cart = strict.read(Cart, data, "cart")
    assert cart == Cart(closed=True, colour=Colour.GREEN, load=3.0, sizes=(1, 2), wheel=Wheel(2.0), wheels=(Wheel(),))
    assert (type(cart.load), type(cart.wheel.size), cart.colour) == (float, float, Colour.GREEN)


def test_an_instance_is_taken_as_it_is():
    cart = Cart(name="mine")
    assert strict.read(Cart, cart, "cart") is cart


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "cart must be a table, got 7."),
        ({"colur": 1}, "Unknown key 'colur' in cart. Did you mean 'colour'? (Known: closed, colour, label, load,"),
        ({"wheel": {"sizes": 1}}, "Unknown key 'sizes' in cart.wheel. Did you mean 'size'? (Known: size, spokes.)"),
        ({"wheels": [{"spoke": 1}]}, "Unknown key 'spoke' in cart.wheels[0]. Did you mean 'spokes'?"),
        ({"zzz": 1}, "Unknown key 'zzz' in cart. Known: closed, colour, label, load, name, sizes, wheel, wheels."),
        ({3: 1}, "Unknown key 3 in cart. Known:"),
        ({"name": 3}, "cart.name must be str, got 3."),
        ({"name": None}, "cart.name must be str, got None."),
        ({"closed": 1}, "cart.closed must be bool, got 1."),
        ({"closed": "yes"}, "cart.closed must be bool, got 'yes'."),
        ({"wheel": {"spokes": 8.0}}, "cart.wheel.spokes must be int, got 8.0."),
        ({"wheel": {"spokes": True}}, "cart.wheel.spokes must be int, got True."),
        ({"load": "3"}, "cart.load must be float, got '3'."),
        ({"load": True}, "cart.load must be float, got True."),
        ({"load": 10.5}, "cart.load must lie in 0.0..10.0, got 10.5."),
        ({"load": float("nan")}, "cart.load must lie in 0.0..10.0, got nan."),
        ({"wheel": {"size": 3}}, "cart.wheel.size must lie in 0.5..2.0, got 3.0."),
        ({"wheel": 3}, "cart.wheel must be a table, got 3."),
        ({"colour": "grene"}, "cart.colour is 'grene'. Did you mean 'green'? (Known: green, red.)"),
        ({"colour": ["green"]}, "cart.colour is ['green']. "),
        ({"sizes": 3}, "cart.sizes must be a list, got 3."),
        ({"sizes": "12"}, "cart.sizes must be a list, got '12'."),
        ({"sizes": [1, "2"]}, "cart.sizes[1] must be int, got '2'."),
        ({"name": "bad"}, "cart: The name is bad."),
    ],
)
def test_a_message_names_the_place_the_value_and_the_way_out(data, message):
    with pytest.raises(SpecError) as error:
        strict.read(Cart, data, "cart")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("bitwidth", "bits"),  # TI
        ("qscheme", "symmetric and granularity"),  # PyTorch, TI
        ("power2_scale", 'scale = "power_of_two"'),  # TI
        ("range_shrink_percentile", 'observer = {name = "percentile", percentile = ...}'),
        ("dtype", "bits and sign"),  # PyTorch
        ("ch_axis", 'granularity = "channel"'),  # PyTorch
        ("observer_cls", "observer"),  # Quark
        ("bit", "bits"),  # MQBench
        ("pot_scale", 'scale = "power_of_two"'),  # MQBench
        ("bit_width", "bits"),  # Vitis AI
        ("round_mode", "rounding; it is the backend's, not the preset's"),  # Vitis AI
    ],
)
def test_a_word_of_another_toolkit_is_answered_with_edgeqs_own(word, hint):
    with pytest.raises(SpecError) as error:
        strict.read(TensorSpec, {word: 8}, "weight")
    assert str(error.value) == f"Unknown key {word!r} in weight. edgeq calls it {hint}."


def test_no_foreign_word_is_one_of_edgeqs_own_keys():
    own = {field.name for field in dataclasses.fields(TensorSpec)}
    assert own & set(strict.FOREIGN_WORDS) == set()


def test_none_is_a_word_in_a_file_for_a_number_but_not_for_a_text():
    assert strict.read(Cart, {"load": "none"}, "cart").load is None
    assert strict.read(Cart, {"label": "none"}, "cart").label == "none"
    with pytest.raises(SpecError, match=r"cart\.closed must be bool, got 'none'\."):
        strict.read(Cart, {"closed": "none"}, "cart")


def test_what_code_constructs_is_checked_and_converted_like_a_file():
    assert Cart(colour="green", load=3, sizes=[1]) == Cart(colour=Colour.GREEN, load=3.0, sizes=(1,))
    assert Cart(colour="green").colour is Colour.GREEN
    with pytest.raises(SpecError, match=r"Cart\.load must lie in 0\.0\.\.10\.0, got 11\.0\."):
        Cart(load=11)
    with pytest.raises(SpecError, match=r"Cart\.closed must be bool, got 1\."):
        dataclasses.replace(Cart(), closed=1)


def test_only_what_is_not_at_its_default_is_written():
    assert strict.write(Cart()) == {}
    assert strict.write(Cart(colour=Colour.GREEN, wheel=Wheel(spokes=9), wheels=(Wheel(2.0), Wheel()))) == {
        "colour": "green",
        "wheel": {"spokes": 9},
        "wheels": [{"size": 2.0}, {}],
    }


NUMBERS = st.none() | st.floats(1e-9, 1e9)
SPECS = st.builds(
    TensorSpec,
    bits=st.integers(3, 16),
    sign=st.sampled_from(Sign),
    symmetric=st.booleans(),
    granularity=st.sampled_from(Granularity),
    scale=st.sampled_from(ScaleKind),
    power_of_two_rule=st.sampled_from(PowerOfTwoRule),
    range_max=NUMBERS,
    fixed_range=NUMBERS,
    reduce_range=st.booleans(),
    rounding=st.sampled_from(Rounding),
    observer=st.floats(0, 49).map(lambda p: Method("percentile", (("percentile", p),))),
)


@settings(deadline=None, max_examples=100)
@given(SPECS)
def test_any_spec_reads_back_from_what_is_written(spec):
    assert strict.read(TensorSpec, strict.write(spec), "spec") == spec
