"""Integer layers are what integer hardware computes, bit for bit, in the simulation and converted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeq.modules.exact import exact_parameters, largest_accumulator
from edgeq.modules.operation import Operation
from tests.modules.oracle import accumulator, calibrated, extreme_codes, layer_codes, real, set_codes, weight_codes

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "conv1d dilated": (lambda: nn.Conv1d(4, 4, 3, dilation=3, groups=2, bias=False), (2, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 8, 7)),
    "conv2d uneven": (lambda: nn.Conv2d(3, 5, (1, 4), stride=(2, 1), padding=(0, 3), dilation=(1, 2)), (2, 3, 6, 9)),
    "conv2d grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 6, 6)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 6, 6)),
    "conv2d same": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 6, 6)),
    "conv2d unbatched": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, stride=(1, 2, 1), padding=1), (1, 2, 5, 4, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1), (2, 3, 6)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (2, 3, 5, 5)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2), (2, 4, 5, 5)),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4, bias=False), (2, 4, 5, 5)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 3, 3)),
    "linear": (lambda: nn.Linear(7, 5), (6, 7)),
    "linear rank 3": (lambda: nn.Linear(7, 5, bias=False), (2, 3, 7)),
    "linear rank 4": (lambda: nn.Linear(7, 5), (2, 2, 3, 7)),
    "linear rank 1": (lambda: nn.Linear(7, 5), (7,)),
    **{
        f"{mode} {rank}d": (
            lambda kind=kind, mode=mode: kind(2, 3, 3, padding=2, padding_mode=mode),
            (1, 2, *[5] * rank),
        )
        for rank, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d))
        for mode in ("reflect", "replicate", "circular")
    },
}

scales = st.floats(-12, 2).map(lambda exponent: 2.0**exponent)
signs = st.booleans()


@st.composite
def tensors(draw):
    """Scale, zero point and sign of a tensor."""
    signed = draw(signs)
    return draw(scales), draw(st.integers(-128, 127) if signed else st.integers(0, 255)), signed


def assert_exact(wrapped, shape, rounding="half_even", bias_bits=32, **bounds):
    """Both forms of the one layer of `wrapped` give the codes that the oracle does, on codes of the whole range."""
    (layer,) = wrapped.module.quantized_layers()
    codes = extreme_codes(layer.site.source, shape)
    with torch.no_grad():
        expected = real(layer_codes(layer, codes, rounding, bias_bits, **bounds), layer.site.target)
        x = real(codes, layer.site.source)
        assert torch.equal(wrapped(x), expected)
        assert torch.equal(wrapped.convert()(x), expected)


@pytest.mark.parametrize("name", LAYERS)
@settings(deadline=None, max_examples=20)
@given(
    source=tensors(), target=tensors(), rounding=st.sampled_from(["half_even", "half_up", "half_away"]), data=st.data()
)
def test_every_layer_is_exact_for_any_scales_zero_points_and_roundings(name, source, target, rounding, data):
    make, shape = LAYERS[name]
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    wrapped = calibrated(make(), x=torch.randn(shape), rounding=rounding)
    (layer,) = wrapped.module.quantized_layers()
    set_codes(layer.site.source, *source)
    # an output scale near the one that the accumulators ask for, so that few codes only saturate
    spread = float(accumulator(layer, extreme_codes(layer.site.source, shape)).double().std()) / 60
    natural = spread * source[0] * float(layer.weight_quantizer.scale.mean())
    set_codes(layer.site.target, natural * (1 + target[0]), *target[1:])
    assert_exact(wrapped, shape, rounding)


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
def test_ties_go_where_the_backend_says(rounding):
    layer = nn.Linear(1, 1, bias=False)
    wrapped = calibrated(layer, x=torch.randn(4, 1), rounding=rounding)
    (quantized,) = wrapped.module.quantized_layers()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    quantized.weight_quantizer.scale.fill_(1.0)
    set_codes(quantized.site.source, 1.0, signed=True)
    set_codes(quantized.site.target, 2.0, signed=True)
    with torch.no_grad():
        found = wrapped(torch.tensor([[-5.0], [-3.0], [-1.0], [1.0], [3.0], [5.0]])).flatten().div(2).tolist()
    expected = {
        "half_even": [-2, -2, 0, 0, 2, 2],
        "half_up": [-2, -1, 0, 1, 2, 3],
        "half_away": [-3, -2, -1, 1, 2, 3],
    }
    assert found == expected[rounding]


@pytest.mark.parametrize(
    ("activation", "bounds"),
    [
        (nn.ReLU(), {"floor": 0.0}),
        (nn.ReLU6(), {"floor": 0.0, "ceiling": 6.0}),
        (nn.Hardtanh(), {"floor": -1.0, "ceiling": 1.0}),
    ],
)
@pytest.mark.parametrize("zero_point", [0, 31, 255])
def test_an_absorbed_activation_bounds_the_codes(activation, bounds, zero_point):
    wrapped = calibrated(nn.Conv2d(3, 4, 3), activation, x=torch.randn(2, 3, 6, 6))
    set_codes(wrapped.module.quantized_layers()[0].site.source, 0.11, 100)
    set_codes(wrapped.module.quantized_layers()[0].site.target, 0.07, zero_point)
    assert_exact(wrapped, (2, 3, 6, 6), **bounds)


@pytest.mark.parametrize("preset", ["WT8SYMP2_AT8SYMP2", "WC8SYMP2_AT8SYMP2", "WC8P2_AT8P2", "WC4_AT8"])
def test_every_kind_of_weight_scale_is_exact(preset):
    torch.manual_seed(1)
    preset = {"inherits": preset, "recovery": []}  # nearest rounding, which the oracle does
    assert_exact(calibrated(nn.Conv2d(3, 4, 3), x=torch.randn(2, 3, 6, 6), preset=preset), (2, 3, 6, 6))
    assert_exact(
        calibrated(nn.ConvTranspose2d(4, 6, 3, groups=2), x=torch.randn(2, 4, 6, 6), preset=preset), (2, 4, 6, 6)
    )


# ---- accumulators that float32 does not hold


WIDE = {
    "linear": (lambda: nn.Linear(2048, 3), (4, 2048)),
    "conv1d": (lambda: nn.Conv1d(700, 3, 3), (2, 700, 4)),
    "conv2d": (lambda: nn.Conv2d(160, 2, 5), (1, 160, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(260, 2, 3), (1, 260, 3, 3)),
    "one channel": (lambda: nn.Conv2d(1, 2, 30), (1, 1, 31, 31)),
    "grouped": (lambda: nn.Conv2d(300, 4, 3, groups=2), (1, 300, 4, 4)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(300, 4, 3, groups=2), (1, 300, 3, 3)),
}


@pytest.mark.parametrize("name", WIDE)
def test_sums_beyond_two_to_the_24_are_exact_too(name):
    make, shape = WIDE[name]
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():  # all weights at their greatest, and the least bit of the bias seen in the sum
        module.weight.copy_(torch.where(torch.rand(module.weight.shape) < 0.9, 0.127, -0.128))
    wrapped = calibrated(module, x=torch.rand(shape))
    (layer,) = wrapped.module.quantized_layers()
    set_codes(layer.site.source, 0.01, 0)
    layer.weight_quantizer.scale.fill_(0.001)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([3.0, -5.0, 7.0, 9.0])[: len(module.bias)] * 1e-5)
    codes = torch.randint(254, 256, shape)
    sums = accumulator(layer, codes)
    assert int(weight_codes(layer).max()) == 127
    assert sums.abs().max() > 2**24
    assert (sums % 2 != 0).any()  # odd sums, which float32 does not hold
    set_codes(layer.site.target, 1e-5 * float(sums.double().abs().max()) / 200, 20)
    with torch.no_grad():
        x = real(codes, layer.site.source)
        expected = real(layer_codes(layer, codes), layer.site.target)
        assert torch.equal(wrapped(x), expected)
        assert torch.equal(wrapped.convert()(x), expected)


@settings(deadline=None, max_examples=40)
@given(
    inputs=st.integers(2, 2000),
    high=st.integers(0, 255),
    weight=st.sampled_from([1, 127, -128]),
    bias=st.integers(-(2**25), 2**25),
)
def test_as_few_parts_are_made_as_keep_every_sum_exact(inputs, high, weight, bias):
    operation = Operation("linear")
    codes = torch.full((2, inputs), float(weight))
    low, high = torch.tensor(high - 255.0), torch.tensor(float(high))
    made = exact_parameters(operation, codes, torch.full((2,), float(bias)), torch.tensor(1.0), low, high)
    product = abs(weight) * max(255 - int(high), int(high))
    fewer = len(made.parts) - 1
    if fewer == 0:
        assert product * inputs + abs(bias) < 2**24
    elif fewer == 1:
        assert product * inputs + abs(bias) >= 2**24
    else:
        assert product * -(-inputs // fewer) >= 2**24
    assert sum(part.shape[1] for part in made.parts) == inputs
    for part in made.parts:
        assert part.dtype == torch.float32
        assert float(largest_accumulator(operation, part, low, high).max()) < 2**24


def test_the_bound_on_an_accumulator_is_reached_and_never_passed():
    torch.manual_seed(0)
    operation = Operation.of_module(nn.Conv2d(4, 6, 3, groups=2))
    weight = torch.randint(-128, 128, (6, 2, 3, 3)).float()
    bound = largest_accumulator(operation, weight, torch.tensor(-3.0), torch.tensor(252.0))
    worst = torch.where(weight > 0, 252.0, -3.0)  # the input that makes each row's products as great as they can be
    best = torch.where(weight > 0, -3.0, 252.0)
    positive, negative = ((weight * x).clamp(min=0).sum((1, 2, 3)) for x in (worst, best))
    reached = torch.maximum(
        torch.stack([(weight * worst).sum((1, 2, 3)), -(weight * best).sum((1, 2, 3))]).amax(0), positive
    )
    assert torch.equal(bound.float(), torch.maximum(reached, negative))


# ---- biases


@pytest.mark.parametrize(("bits", "greatest"), [(16, 2**15 - 1), (32, 2**31 - 128)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(6, 4, 1, groups=2)])
def test_a_bias_saturates_at_the_ends_of_its_type(make, bits, greatest):
    module = make()
    shape = (5, 6) if isinstance(module, nn.Linear) else (5, 6, 2, 2)
    wrapped = calibrated(module, x=torch.randn(shape), bias_bits=bits)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([1e9, -1e9, 1e-9, -0.01]))
    found = wrapped.convert().module.get_submodule("0").bias
    assert found[:3].tolist() == [greatest, -greatest - (1 if bits == 16 else 128), 0]
    set_codes(wrapped.module.quantized_layers()[0].site.target, 2.0**20 if bits == 32 else 8.0, 128)
    assert_exact(wrapped, shape, bias_bits=bits)


@settings(deadline=None, max_examples=15)
@given(size=st.floats(-4, 6), seed=st.integers(0, 999))
def test_a_bias_of_sixteen_bits_fits_because_the_weight_scale_makes_room(size, seed):
    torch.manual_seed(seed)
    module = nn.Linear(6, 4)
    with torch.no_grad():
        module.bias.mul_(10.0**size)
    wrapped = calibrated(module, x=torch.randn(5, 6), bias_bits=16)
    (layer,) = wrapped.module.quantized_layers()
    codes = layer.bias_codes(layer.bias)
    assert codes.abs().max() <= 2**15 - 1
    assert torch.allclose(
        codes * layer.accumulator_scale, layer.bias, rtol=0, atol=0.501 * float(layer.accumulator_scale.max())
    )
    assert_exact(wrapped, (5, 6), bias_bits=16)
