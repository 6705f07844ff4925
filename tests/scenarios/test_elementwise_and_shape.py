"""Element-wise arithmetic and operations on shapes: how many quantizers stand where, and what shares them.

Tested elsewhere: every spelling of every operation, one at a time (tests/graph/test_coverage.py); tensors that are
not floating (tests/graph/test_kinds.py).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.modules.codes import Dequantize, Quantize
from edgeq.modules.pair import IntegerPair
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import Wired, WiredPair, conv, trained


def names(wrapped):
    """The quantizers that saw floating tensors, in order."""
    return [quantizer.name for quantizer in wrapped.module.quantizers() if quantizer.observed]


def counts(wrapped, *kinds):
    """How many modules of each kind the converted network has."""
    modules = list(wrapped.convert().module.modules())
    return [sum(isinstance(module, kind) for module in modules) for kind in kinds]


def observed(function, **parts):
    """The calibrated network of a function, after a check that it converts exactly; as it is written."""
    model, x = Wired(function, **parts).eval(), images()
    wrapped = calibrated(model, x, rewrites=AS_WRITTEN, bias_calibration_factor=0)
    assert_exact(wrapped, x)
    assert relative_error(wrapped(x), model(x)) < 0.04
    return wrapped


def two():
    return {"a": conv(3, 4), "b": conv(3, 4, 3, padding=1)}


SUMS = {
    "add": (lambda m, x: m.a(x) + m.b(x), "add"),
    "add in place": (lambda m, x: m.a(x).add_(m.b(x)), "add_"),
    "function": (lambda m, x: torch.add(m.a(x), m.b(x)), "add"),
    "mul": (lambda m, x: m.a(x) * m.b(x), "mul"),
    "mul in place": (lambda m, x: m.a(x).mul_(m.b(x)), "mul_"),
    "sub": (lambda m, x: m.a(x) - m.b(x), "sub"),
}


@pytest.mark.parametrize("name", SUMS)
def test_both_operands_and_the_result_have_a_quantizer_each(name):
    function, operation = SUMS[name]
    wrapped = observed(function, **two())
    assert names(wrapped) == ["x", "a", "b", operation]
    is_pair = operation != "sub"
    assert counts(wrapped, IntegerPair, Quantize, Dequantize) == [is_pair, 2 - is_pair, 1 if is_pair else 3]


RELUS = {
    "module": lambda m, y: m.relu(y),
    "function": lambda m, y: F.relu(y),
    "method in place": lambda m, y: y.relu_(),
    "six": lambda m, y: F.relu6(y),
}


@pytest.mark.parametrize("operation", [torch.add, torch.mul])
@pytest.mark.parametrize("name", RELUS)
def test_an_activation_behind_a_sum_or_a_product_is_part_of_it(name, operation):
    wrapped = observed(lambda m, x: RELUS[name](m, operation(m.a(x), m.b(x))), **two(), relu=nn.ReLU(inplace=True))
    assert names(wrapped) == ["x", "a", "b", "add" if operation is torch.add else "mul"]
    assert counts(wrapped, IntegerPair, Quantize, Dequantize) == [1, 1, 1]
    targets = [node.target for node in wrapped.module.fx_graph.nodes]
    assert "relu" not in targets


def test_one_relu_module_behind_two_sums_is_absorbed_by_each():
    def function(m, x):
        y = m.relu(m.a(x) + m.b(x))
        return m.relu(y + m.c(y))

    wrapped = observed(function, **two(), c=conv(4, 4), relu=nn.ReLU())
    assert names(wrapped) == ["x", "a", "b", "add", "c", "add_1"]
    assert [int(q.zero_point) for q in wrapped.module.quantizers() if q.name.startswith("add")] == [0, 0]
    assert counts(wrapped, IntegerPair, Quantize, Dequantize) == [2, 1, 1]


def test_one_relu_module_behind_a_layer_and_a_sum():
    wrapped = observed(lambda m, x: m.relu(m.relu(m.a(x)) + m.b(x)), **two(), relu=nn.ReLU())
    (a, _) = wrapped.module.quantized_layers()
    assert (a.site.floor, a.site.ceiling) == (0.0, None)
    assert names(wrapped) == ["x", "a", "b", "add"]


SCALARS = [lambda y: y + 3, lambda y: 3 + y, lambda y: y - 0.5, lambda y: 1 - y, lambda y: y * 2, lambda y: y / 4]


@pytest.mark.parametrize("index", range(len(SCALARS)))
def test_a_number_has_no_quantizer(index):
    wrapped = observed(lambda m, x: m.b(SCALARS[index](m.a(x))), a=conv(3, 4), b=conv(4, 2))
    assert len(names(wrapped)) == 4


def test_a_number_and_an_activation_are_one_operation():
    wrapped = observed(lambda m, x: F.relu(m.a(x) + 0.2) * 3, a=conv(3, 4))
    assert names(wrapped) == ["x", "a", "add", "mul"]


def test_a_sum_before_the_first_layer_and_behind_the_last():
    wrapped = observed(lambda m, x: m.a(x + x) + 1, a=conv(3, 4))
    assert names(wrapped) == ["x", "add", "a", "add_1"]


def test_a_sum_with_an_operand_that_is_not_quantized_before():
    model, inputs = WiredPair(lambda m, x, y: F.relu(m.a(x) + y), a=conv(3, 4)).eval(), (images(), images(2, 4, 8, 8))
    wrapped = calibrated(model, *inputs, bias_calibration_factor=0)
    assert names(wrapped) == ["x", "y", "a", "add"]
    assert_exact(wrapped, *inputs)
    assert relative_error(wrapped(*inputs), model(*inputs)) < 0.03


def test_training_has_the_same_quantizers():
    x = images()
    for operation in (torch.add, torch.mul):
        wrapped = trained(Wired(lambda m, x, operation=operation: F.relu(operation(m.a(x), m.b(x))), **two()), x)
        assert len(names(wrapped)) == 4
        assert len(list(wrapped.module.quantization.tensors.children())) == 4
        assert_exact(wrapped, x)


# ---- values that are only moved


def test_a_concatenation_its_inputs_and_its_output_have_one_quantizer():
    wrapped = observed(lambda m, x: m.c(torch.cat([m.a(x), m.b(x), m.a(x)], 1)), **two(), c=conv(12, 2))
    assert names(wrapped) == ["x", "a", "c"]
    sites = {layer.site.name: layer.site for layer in wrapped.module.quantized_layers()}
    assert sites["a"].target is sites["b"].target is sites["c"].source


def shapes(m, x):
    """More than forty operations in a row that move values, on an image (2, 8, 4, 4)."""
    y = m.a(x)
    y = F.max_pool2d(m.pool(y), 1).contiguous().clone().detach()
    y = torch.transpose(y, 1, 2).transpose(1, 2).permute(0, 1, 3, 2).permute([0, 1, 3, 2])
    y = y.unsqueeze(1).squeeze(1).unsqueeze_(0).squeeze_(0)
    y = y.flatten(1).reshape(2, 8, 4, 4).view(2, 8, -1).view(y.shape[0], 8, 4, 4).unflatten(1, (2, 4)).flatten(1, 2)
    y = torch.flatten(y, 2).reshape(y.size(0), y.size(1), 4, 4).repeat(1, 2, 1, 1)[:, :8].expand(2, -1, -1, -1)
    y = y.repeat_interleave(2, 1)[:, ::2].narrow(2, 0, 4).select(0, 1).unsqueeze(0).expand(2, 8, 4, 4)
    first, second = y.chunk(2, 1)
    y = torch.cat([second, first], 1)
    y = torch.stack(y.unbind(1), 1).roll(1, 2).flip(3).movedim(1, -1).movedim(-1, 1).swapaxes(2, 3)
    y = torch.cat(torch.split(F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1], [3, 5], 1), 1)
    y = F.interpolate(y, scale_factor=2)[..., ::2, ::2]
    y = F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2).index_select(1, m.order).gather(1, m.places)
    return m.c(m.dropout(m.identity(y)))


def test_forty_operations_in_a_row_quantize_once_and_dequantize_once():
    model = Wired(
        shapes, a=conv(3, 8), c=conv(8, 2), pool=nn.AdaptiveMaxPool2d(4), dropout=nn.Dropout(), identity=nn.Identity()
    )
    model.register_buffer("order", torch.tensor([7, 6, 5, 4, 3, 2, 1, 0]))
    model.register_buffer("places", torch.randint(0, 8, (2, 8, 4, 4), generator=torch.Generator().manual_seed(0)))
    model.eval()
    x = images()
    wrapped = calibrated(model, x, bias_calibration_factor=0)
    assert_exact(wrapped, x)
    assert relative_error(wrapped(x), model(x)) < 0.03
    moved = [node for node in wrapped.module.fx_graph.nodes if wrapped.module.groups.get(node.name) == "a"]
    assert len(moved) > 40
    assert names(wrapped) == ["x", "a", "c"]
    assert counts(wrapped, Quantize, Dequantize) == [1, 1]


def test_a_copy_in_front_of_everything_shares_the_quantizer_of_the_input():
    for copy in (torch.clone, lambda x: x.contiguous(), lambda x: x.detach(), lambda x: x.reshape(2, 3, 8, 8)):
        wrapped = observed(lambda m, x, copy=copy: m.a(copy(x)), a=conv(3, 4))
        assert names(wrapped) == ["x", "a"]
        assert wrapped.module.quantized_layers()[0].site.source.name == "x"


def test_what_only_moves_values_without_any_layer_around_it_stays_as_it_is():
    wrapped = observed(lambda m, x: (m.a(x), x.flip(1).reshape(2, -1)), a=conv(3, 4))
    found = wrapped(images())[1]
    quantized = wrapped.module.quantizers()[0](images())
    assert torch.equal(found, quantized.flip(1).reshape(2, -1))  # its source is quantized, for the layer
    assert names(wrapped) == ["x", "a"]


def test_parts_of_a_tensor_share_its_quantizer_and_each_may_be_read_by_another_layer():
    def function(m, x):
        first, second, third = torch.chunk(m.a(x), 3, 1)
        return m.b(first), m.c(second), third

    wrapped = observed(function, a=conv(3, 6), b=conv(2, 2), c=conv(2, 3))
    assert names(wrapped) == ["x", "a", "b", "c"]
    assert [layer.site.source.name for layer in wrapped.module.quantized_layers()] == ["x", "a", "a"]


def test_sizes_and_shapes_cost_nothing():
    def function(m, x):
        y = m.a(x)
        height, width = y.shape[-2:]
        return m.b(y.view(y.size(0), y.shape[1] // 2, 2, height, width).flatten(1, 2))[..., : y.size(3) - 1]

    wrapped = observed(function, a=conv(3, 4), b=conv(4, 2))
    assert names(wrapped) == ["x", "a", "b"]
    assert counts(wrapped, Quantize, Dequantize) == [1, 1]


def test_masks_are_never_observed():
    def function(m, x):
        y = m.a(x)
        mask = (y > 0) & (y < 1)
        return m.b(torch.where(mask, y, 0.0)), mask

    wrapped = calibrated(Wired(function, a=conv(3, 4), b=conv(4, 2)).eval(), images())
    assert [quantizer.name for quantizer in wrapped.module.quantizers()] == ["x", "a", "b"]
    assert assert_exact(wrapped, images())[1].dtype is torch.bool


VALUES = {  # one operation on the output of a layer, and the quantizer that its output has
    "max_pool": (lambda y: F.max_pool2d(y, 2), "a"),
    "adaptive max_pool": (lambda y: F.adaptive_max_pool2d(y, 3), "a"),
    "avg_pool": (lambda y: F.avg_pool2d(y, 2), "avg_pool2d"),
    "adaptive avg_pool": (lambda y: F.adaptive_avg_pool2d(y, 1), "adaptive_avg_pool2d"),
    "mean": (lambda y: y.mean((2, 3), keepdim=True), "mean"),
    "nearest": (lambda y: F.interpolate(y, scale_factor=2), "a"),
    "bilinear": (lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"), "interpolate"),
    "clamp at zero": (lambda y: torch.clamp(y.flatten(2), 0).unflatten(2, (8, 8)), "a"),
    "clamp": (lambda y: torch.clamp(y.flatten(2), -0.3, 0.4).unflatten(2, (8, 8)), "clamp"),
    "hardtanh": (lambda y: F.hardtanh(y.flip(1), -0.3, 0.4), "hardtanh"),
    "relu6": (lambda y: F.relu6(y.flip(1)), "relu6"),
}


@pytest.mark.parametrize("name", VALUES)
def test_operations_on_values_pick_them_or_have_a_range_of_their_own(name):
    function, quantizer = VALUES[name]
    wrapped = observed(lambda m, x: m.b(function(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    assert names(wrapped) == ["x", "a", *([] if quantizer == "a" else [quantizer]), "b"]
    assert wrapped.module.quantized_layers()[1].site.source.name == quantizer


def test_pools_of_the_networks_input():
    for pool in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4)):
        wrapped = observed(lambda m, x: m.a(m.pool(x)), pool=pool, a=conv(3, 4))
        assert names(wrapped) == ["x", "pool", "a"]
