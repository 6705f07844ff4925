"""The host's integer kernels against sums in float64, and the probe that decides on them."""

from itertools import product

import pytest
import torch
from torch import nn

import edgeq
from edgeq.modules import onednn
from edgeq.modules.integer import IntegerLayer, IntegerParameters
from edgeq.modules.onednn import IntegerKernel, fused_is_exact, is_exact, signed, slices, supports, unsigned
from edgeq.modules.operation import Operation
from tests.networks import batches, network

with_exact_kernels = pytest.mark.skipif(not is_exact(), reason="this CPU has no exact integer kernels (VNNI)")

ZERO = torch.tensor(0, dtype=torch.uint8)


def case(seed, dtype, linear, groups):
    generator = torch.Generator().manual_seed(seed)
    limits = torch.iinfo(dtype)
    shape = (24, 40) if linear else (24, 16 // groups, 3, 3)
    weight = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    codes = torch.randint(limits.min, limits.max + 1, (3, 40) if linear else (3, 16, 9, 7), generator=generator).to(
        dtype
    )
    bias = torch.randint(-(1 << 20), 1 << 20, (24,), generator=generator)
    zero_point = torch.randint(limits.min, limits.max + 1, (), generator=generator).to(dtype)
    options = (("dilation", (1, 1)), ("groups", groups), ("padding", (1, 2)), ("stride", (2, 1)))
    operation = Operation("linear") if linear else Operation("conv2d", options)
    exact = operation(codes.double() - zero_point, weight.double(), bias.double())
    return operation, weight, bias, zero_point, codes, exact


CASES = list(product(range(4), (torch.uint8, torch.int8), ((True, 1), (False, 1), (False, 4), (False, 8))))


@with_exact_kernels
@pytest.mark.parametrize(("seed", "dtype", "form"), CASES)
def test_sums_are_those_of_float64(seed, dtype, form):
    operation, weight, bias, zero_point, codes, exact = case(seed, dtype, *form)
    kernel = IntegerKernel(operation, weight, bias, zero_point)
    assert kernel.outputs(codes) == exact.shape
    assert torch.equal(kernel(codes).double(), exact)


@with_exact_kernels
@pytest.mark.parametrize(("seed", "dtype", "form"), CASES)
def test_with_powers_of_two_and_an_even_zero_point_the_fused_codes_are_exact_ties_included(seed, dtype, form):
    operation, weight, bias, zero_point, codes, exact = case(seed, dtype, *form)
    factor = torch.tensor([2.0**-12, 2.0**-11, 2.0**-9]).repeat(8)
    assert fused_is_exact(factor, torch.tensor(74))
    channels = exact.movedim(1, -1)
    first = channels.reshape(-1, 24)[0]
    to_a_tie = (0.5 - first * factor) % 1 / factor  # how much the bias must grow for the first sum of each channel
    bias, channels = bias + to_a_tie.long(), channels + to_a_tie
    exact = channels.movedim(-1, 1)
    made = IntegerKernel(operation, weight, bias, zero_point, factor)(codes, torch.uint8, 74)
    scaled = exact * operation.spread(factor.double(), exact)
    assert int((scaled % 1 == 0.5).sum()) >= 24
    assert torch.equal(made.double(), (scaled.round() + 74).clamp(0, 255))


def test_fused_rounding_is_refused_where_it_would_not_be_exact():
    powers = torch.tensor([2.0**-9, 2.0**-15])
    assert [fused_is_exact(powers, torch.tensor(zero)) for zero in (0, 2, 3)] == [True, True, False]
    assert not fused_is_exact(torch.tensor([2.0**-9, 0.003]), torch.tensor(0))
    assert fused_is_exact(powers / 2, torch.tensor(0))
    assert not fused_is_exact(powers / 2, torch.tensor(2))


def test_codes_change_their_sign_bit_and_come_back():
    codes = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8)
    assert torch.equal(unsigned(codes).to(torch.int16), codes.to(torch.int16) + 128)
    assert torch.equal(signed(unsigned(codes)), codes)


def test_slices_cover_a_batch_once():
    for shape in ((1, 5), (7, 1 << 18), (100, 1 << 20), (0, 3)):
        assert [i for part in slices(shape) for i in range(*part.indices(shape[0]))] == list(range(shape[0]))


def test_what_the_kernels_cannot_do_is_not_given_to_them():
    weight = torch.zeros(2, 2, 3, 3)
    options = (("dilation", 1), ("groups", 1), ("padding", "same"), ("stride", 1))
    assert not supports(Operation("conv2d", options), weight, ZERO)
    assert not supports(Operation("conv2d", (), "reflect", (1, 1, 1, 1)), weight, ZERO)
    assert not supports(Operation("conv_transpose2d"), weight, ZERO)
    assert not supports(Operation("conv3d"), weight, ZERO)


@with_exact_kernels
@pytest.mark.parametrize("preset", ["WC8_AT8", "MSA_WC8P2_AT8P2", "WC8SYMP2_AT8SYMP2", "WC4M4_AT8"])
@pytest.mark.parametrize("name", ["residual", "separable"])
def test_a_converted_network_gives_the_same_numbers_without_them(name, preset, monkeypatch):
    wrapped = edgeq.PTCFxModule(network(name), preset).calibrate(batches())
    image = batches(1, seed=5, size=6)[0]
    converted = wrapped.convert()
    layers = [module for module in converted.modules() if isinstance(module, IntegerLayer)]
    assert all(isinstance(layer.exact_parameters(), IntegerParameters) for layer in layers)
    found = converted(image)
    monkeypatch.setattr(onednn, "is_exact", lambda: False)
    without = wrapped.convert()
    expected = without(image)
    layers = [module for module in without.modules() if isinstance(module, IntegerLayer)]
    assert not any(isinstance(layer.exact_parameters(), IntegerParameters) for layer in layers)
    assert torch.equal(found, expected)
    assert torch.equal(found, wrapped(image))


@with_exact_kernels
def test_sums_beyond_float32_are_used_only_where_they_saturate_anyway():
    def layer(scale):
        model = nn.Sequential(nn.Conv2d(600, 2, 3, bias=False))
        with torch.no_grad():
            model[0].weight.fill_(1.0)
        wrapped = edgeq.PTCFxModule(model.eval(), "WC8_AT8")
        wrapped.calibrate([torch.full((1, 600, 3, 3), 1.0) * torch.tensor([scale]).view(1, 1, 1, 1)])
        return wrapped

    wrapped = layer(1.0)
    converted = wrapped.convert()
    (made,) = [module for module in converted.modules() if isinstance(module, IntegerLayer)]
    assert 600 * 9 * 127 * 255 > 2**24
    # The whole output range is used by those sums, so that float32 would not hold the ones that matter.
    assert not isinstance(made.exact_parameters(), IntegerParameters)
    image = torch.rand(2, 600, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(converted(image), wrapped(image))


def test_grouped_convolutions_with_a_zero_point_are_left_to_the_exact_path():
    weight, options = (
        torch.ones(96, 24, 3, 3, dtype=torch.int8),
        (("dilation", 1), ("groups", 2), ("padding", 1), ("stride", 1)),
    )
    grouped, depthwise = Operation("conv2d", options), Operation("conv2d", (*options[:1], ("groups", 96), *options[2:]))
    assert not supports(grouped, weight, torch.tensor(117, dtype=torch.uint8))
    assert not supports(grouped, weight, torch.tensor(0, dtype=torch.int8))  # an unsigned code of 128
    assert supports(grouped, weight, ZERO) == is_exact()
    assert supports(depthwise, weight[:, :1], torch.tensor(117, dtype=torch.uint8)) == is_exact()


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "kernel"), [(24, 48, 2, 3), (24, 96, 2, 3), (20, 40, 4, 5), (16, 64, 4, 5)]
)
def test_a_grouped_layer_converts_exactly_whatever_its_zero_point(inputs, outputs, groups, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs * groups, outputs * groups, kernel, padding=kernel // 2, groups=groups)
    model, x = edgeq.PTCFxModule(nn.Sequential(conv).eval()), torch.randn(2, inputs * groups, 10, 10)
    model.train()
    model(x)
    model.eval()
    assert torch.equal(model.convert()(x), model(x))
    assert (model(x) - conv(x)).norm() < 0.05 * conv(x).norm()


@pytest.mark.parametrize(
    ("inputs", "kernel", "stride", "padding", "size"),
    [(32, 4, 4, 0, 28), (16, 8, 1, 0, 14), (16, 8, 4, 1, 28), (32, 8, 8, 0, 56), (48, 4, 4, 0, 28), (3, 16, 16, 0, 32)],
)
def test_a_kernel_as_large_as_patches_are_converts_exactly(inputs, kernel, stride, padding, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, 16, kernel, stride, padding)
    model, x = edgeq.PTCFxModule(nn.Sequential(conv).eval()), torch.randn(2, inputs, size, size)
    model.train()
    model(x)
    model.eval()
    assert torch.equal(model.convert()(x), model(x))
    assert (model(x) - conv(x)).norm() < 0.05 * conv(x).norm()


def integer_layers(converted):
    return [module for module in converted.modules() if isinstance(module, IntegerLayer)]


@with_exact_kernels
def test_a_kernel_that_is_off_by_one_for_a_shape_is_found_and_not_used(monkeypatch):
    wrapped = edgeq.PTCFxModule(network("residual"))
    wrapped.train()
    x = batches(1)[0]
    wrapped(x)
    wrapped.eval()
    converted = wrapped.convert()
    assert torch.equal(converted(x), wrapped(x))
    assert all(isinstance(layer.exact_parameters(), IntegerParameters) for layer in integer_layers(converted))
    right = IntegerKernel.__call__

    def wrong(self, codes, dtype=torch.float32, output_zero_point=0):
        sums = right(self, codes, dtype, output_zero_point)
        return sums + 200 * self.scale if codes.shape[-1] == 8 and dtype is torch.float32 else sums

    monkeypatch.setattr(IntegerKernel, "__call__", wrong)
    converted = wrapped.convert()
    assert torch.equal(converted(x), wrapped(x))
    on_kernels = [isinstance(layer.exact_parameters(), IntegerParameters) for layer in integer_layers(converted)]
    assert 0 < sum(on_kernels) < len(on_kernels)
