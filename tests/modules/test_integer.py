"""Integer modules: what they hold, how large it is, and how they load."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeq
from edgeq import arithmetic
from edgeq.modules.codes import Codes, Dequantize, OnCodes, Quantize
from edgeq.modules.integer import IntegerLayer
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import Method, TensorSpec
from tests.modules.oracle import ROUNDINGS, set_codes
from tests.networks import NETWORKS, batches, network

IMAGE = batches(1, seed=9)[0]


def quantizer(scale, zero_point, signed, rounding="half_even"):
    made = TensorQuantizer("x", TensorSpec(rounding=arithmetic.Rounding(rounding)), Method("minmax"))
    set_codes(made, scale, zero_point, signed)
    return made


# ---- codes


@settings(deadline=None, max_examples=60)
@given(
    exponent=st.floats(-12, 6),
    signed=st.booleans(),
    zero=st.integers(0, 255),
    rounding=st.sampled_from(["half_even", "half_up", "half_away"]),
    floor=st.sampled_from([None, 0.0, -1.0]),
    ceiling=st.sampled_from([None, 6.0]),
)
def test_codes_are_those_of_the_arithmetic_within_the_bounds(exponent, signed, zero, rounding, floor, ceiling):
    zero = zero - 128 if signed else zero
    codes = Codes(quantizer(2.0**exponent, zero, signed, rounding), floor, ceiling)
    assert codes.zero_point.dtype == (torch.int8 if signed else torch.uint8)
    x = torch.cat([torch.linspace(-300, 300, 1203) * codes.scale, torch.tensor([-1e9, 1e9, 0.0])])
    found = codes.encode(x)
    assert found.dtype == codes.zero_point.dtype
    low, high = (-128, 127) if signed else (0, 255)

    def code(value):
        return int(ROUNDINGS[rounding]((torch.tensor(value) / codes.scale).double().numpy())) + zero

    low = low if floor is None else max(low, code(floor))
    high = high if ceiling is None else min(high, code(ceiling))
    ratio = (x / codes.scale).double().numpy()
    expected = torch.from_numpy(ROUNDINGS[rounding](ratio) + zero).clamp(low, high)
    assert torch.equal(found.double(), expected)
    assert (codes.low, codes.high) == (low, high)
    assert [int(end) for end in codes.reach()] == [low - zero, high - zero]
    assert torch.equal(codes.decode(found), (found.float() - zero) * codes.scale)
    assert torch.equal(codes.encode(codes.decode(found)), found)
    assert torch.equal(codes.centre(found), found.float() - zero)
    assert codes.code_of(0.0) == zero


def test_codes_themselves_are_no_function():
    with pytest.raises(TypeError, match="encode or decode"):
        Codes(quantizer(1.0, 0, False))(torch.ones(2))


def test_quantize_and_dequantize_are_the_two_directions():
    made = quantizer(0.5, 3, False)
    x = torch.tensor([-9.0, -1.0, 0.0, 0.24, 1.0, 1e9])
    assert Quantize(made)(x).tolist() == [0, 1, 3, 3, 5, 255]
    assert Dequantize(made)(torch.tensor([0, 3, 255], dtype=torch.uint8)).tolist() == [-1.5, 0.0, 126.0]
    assert Quantize(made, floor=0.0)(x).tolist() == [3, 3, 3, 3, 5, 255]


@pytest.mark.parametrize("as_float", [False, True])
def test_operations_that_move_codes_keep_their_type_and_leave_indices_alone(as_float):
    codes = Codes(quantizer(0.5, 3, False))
    moved = OnCodes(lambda x, index: (x.flip(0), index), None, codes, as_float)
    x, index = moved(torch.tensor([1, 2, 255], dtype=torch.uint8), torch.tensor([1, 0]))
    assert x.tolist() == [255, 2, 1]
    assert (x.dtype, index.dtype) == (torch.uint8, torch.int64)


# ---- what a converted network holds


def size(state):
    return sum(value.numel() * value.element_size() for value in state.values())


class Wide(nn.Module):
    """More than a million parameters in a few layers of each kind, with batch norms."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 128, 3, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 256, 3, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Conv2d(256, 256, 3, groups=256, bias=False), nn.BatchNorm2d(256), nn.ReLU6(),
            nn.ConvTranspose2d(256, 128, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(128 * 16, 200)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_converted_network_is_a_quarter_of_the_float_one():
    model = Wide().eval()
    wrapped = edgeq.PTCFxModule(model).calibrate(batches(1))
    state = wrapped.convert().state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000
    assert 0.25 < size(state) / size(model.state_dict()) < 0.26
    file, float_file = io.BytesIO(), io.BytesIO()
    torch.save(state, file)
    torch.save(model.state_dict(), float_file)
    assert 0.25 < len(file.getvalue()) / len(float_file.getvalue()) < 0.27


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_int8_biases_int32_and_scales_float32(name):
    converted = edgeq.PTCFxModule(network(name)).calibrate(batches()).convert()
    layers = [module for module in converted.modules() if isinstance(module, IntegerLayer)]
    assert len(layers) == {"residual": 3, "separable": 5, "attention": 6}[name]
    for layer in layers:
        state = {key: value.dtype for key, value in layer.state_dict().items()}
        types = {"weight": torch.int8, "weight_scale": torch.float32, "bias": torch.int32}
        for codes in ("source", "target"):
            types |= {f"{codes}.scale": torch.float32, f"{codes}.zero_point": torch.uint8}
        assert state == types
        assert layer.weight.to(torch.int32).abs().amax() >= 127
    assert not list(converted.parameters()) or name == "attention"  # its layer norms stay float


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_converted_network_loads_into_another(name):
    converted = edgeq.PTCFxModule(network(name)).calibrate(batches()).convert()
    other = edgeq.PTCFxModule(network(name, seed=5)).calibrate(batches(seed=5)).convert()
    expected = converted(IMAGE)
    assert not torch.equal(other(IMAGE), expected)  # and whatever it keeps is there by now
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    report = other.load_state_dict(torch.load(file, weights_only=True))
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    assert torch.equal(other(IMAGE), expected)
    assert torch.equal(copy.deepcopy(other)(IMAGE), expected)
    layer = next(module for module in other.modules() if isinstance(module, IntegerLayer))
    assert torch.equal(layer.bias_scale, layer.source.scale * layer.weight_scale)


@pytest.mark.parametrize("positive", [True, False])
def test_a_state_brings_the_sign_of_its_codes_along(positive):
    """Symmetric codes are unsigned where nothing was negative, which depends on the data of the calibration."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def made(x):
        return edgeq.PTCFxModule(copy.deepcopy(model), "WC8SYMP2_AT8SYMP2").calibrate([x]).convert()

    mixed, above = made(IMAGE), made(IMAGE.abs())
    source, other = (above, mixed) if positive else (mixed, above)
    types = [net.module.quantization.tensors.input_1.zero_point.dtype for net in (mixed, above)]
    assert types == [torch.int8, torch.uint8]
    expected = source(IMAGE)
    assert not torch.equal(other(IMAGE), expected)
    other.load_state_dict(source.state_dict())
    assert torch.equal(other(IMAGE), expected)
    assert other.module.quantization.tensors.input_1.zero_point.dtype == types[positive]


def test_a_pickled_copy_computes_the_same():
    converted = edgeq.PTCFxModule(network("separable")).calibrate(batches()).convert()
    expected = converted(IMAGE)
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(IMAGE), expected)


def test_integers_written_in_place_are_seen():
    converted = edgeq.PTCFxModule(network("residual")).calibrate(batches()).convert()
    before = converted(IMAGE)
    with torch.no_grad():
        converted.module.conv1.weight.neg_()
    found = converted(IMAGE)
    assert not torch.equal(found, before)
    assert torch.equal(found, copy.deepcopy(converted)(IMAGE))
