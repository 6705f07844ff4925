"""Matching: which nodes a pattern takes, and which it must leave to their other readers.

Tested elsewhere, word for word: values with two readers (tests/graph/test_fuse.py), a slice of a split's tuple
(tests/graph/test_convert.py), a norm of other dimensions than the layer (test_fuse.py), a training network without a
module between convolution and norm (test_fuse.py).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.modules.layer import QuantizedLayer
from tests.graph.parity import assert_exact, calibrated, images
from tests.scenarios.wired import Wired, assert_near, bounds, conv, folded, norm, quantizers, trained


def test_a_sum_that_the_activation_reads_leaves_its_other_reader_the_sum():
    def function(m, x):
        y = m.norm(m.conv(x)) + x
        return F.relu(y), y * y

    model, x = Wired(function, conv=conv(), norm=norm()).eval(), images()
    wrapped = calibrated(model, x)
    assert folded(wrapped) == {"conv": "norm"}
    assert quantizers(wrapped) == ["x", "conv", "add", "mul"]  # the ReLU shares the sum's range: zero has a code
    assert not any({"floor", "ceiling"} & {*node.kwargs} for node in wrapped.module.fx_graph.nodes)
    assert_near(wrapped, model, x, within=0.03)


def test_the_activation_of_a_neighbour_is_not_swallowed():
    """Two branches into one sum, of which only one has an activation, and a ReLU behind that both could claim."""

    def function(m, x):
        left, right = m.norm(m.left(x)), F.relu(m.right(x))
        return F.relu6(left + right), F.relu(right * 2)

    model, x = Wired(function, left=conv(), right=conv(3, 3, 3, padding=1), norm=norm()).eval(), images()
    wrapped = calibrated(model, x)
    assert folded(wrapped) == {"left": "norm", "right": "clip 0.."}
    assert bounds(wrapped) == {"add": (0.0, 6.0), "mul": (0.0, None), "right": (0.0, None)}
    assert_near(wrapped, model, x)


@pytest.mark.parametrize("index", [0, 1])
def test_an_item_of_a_tuple_is_read_where_it_is_and_not_fused_across(index):
    """A constant in the pattern, the index of the item, must be the one that was asked for."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large = conv(), conv()
            self.large.weight.data.mul_(10)

        def forward(self, x):
            return self.small(x), self.large(x)

    model, x = Wired(lambda m, x: F.relu(m.two(x)[index]), two=Two()).eval(), images()
    wrapped = calibrated(model, x)
    name = ("two.small", "two.large")[index]
    assert folded(wrapped)[name] == "clip 0.."
    assert float(wrapped.module.quantizers()[-1].zero_point) == 0
    assert_near(wrapped, model, x)


def test_one_relu_module_behind_many_operations_is_part_of_each():
    model = Wired(
        lambda m, x: m.relu(m.relu(m.one(x)) + m.relu(m.two(m.relu(x)))), one=conv(), two=conv(), relu=nn.ReLU()
    )
    model, x = model.eval(), images()
    wrapped = calibrated(model, x)
    assert folded(wrapped) == {"one": "clip 0..", "two": "clip 0.."}
    assert quantizers(wrapped) == ["x", "one", "two", "add"]
    assert_near(wrapped, model, x)


@pytest.mark.parametrize("shared", ["norm", "conv and norm"])
def test_one_batch_norm_behind_two_convolutions_is_folded_into_each(shared):
    parts = {"one": conv(), "two": conv(3, 3, 3, padding=1), "norm": norm()}
    second = "two" if shared == "norm" else "one"
    model = Wired(lambda m, x: m.norm(getattr(m, second)(F.relu(m.norm(m.one(x))))), **parts).eval()
    x = images()
    wrapped = calibrated(model, x)
    layers = wrapped.module.quantized_layers()
    assert [layer.site.norm is layers[0].site.norm for layer in layers] == [True, True]
    assert [(layer.site.floor, layer.site.name) for layer in layers] == [(0.0, "one"), (None, second)]
    assert quantizers(wrapped) == ["x", "one", "two" if shared == "norm" else "one_1"]
    assert_near(wrapped, model, x)
    assert_exact(trained(model, x), x)
    assert int(model.norm.num_batches_tracked) == 4  # two steps, two calls


def test_the_layers_of_a_training_are_of_the_users_classes_and_hold_their_norms_beside_them():
    model = nn.Sequential(conv(3, 4), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5), nn.BatchNorm1d(5))
    wrapped = edgeq.QATFxModule(model.train(), total_epochs=2)
    kinds = [type(module).__mro__[1:] for module in wrapped.module.modules() if isinstance(module, QuantizedLayer)]
    assert [mro[0] for mro in kinds] == [QuantizedLayer] * 2
    assert [next(cls for cls in (nn.Conv2d, nn.Linear) if cls in mro) for mro in kinds] == [nn.Conv2d, nn.Linear]
    assert type(wrapped.module.get_submodule("1")) is nn.BatchNorm2d
    assert folded(wrapped) == {"0": "norm, clip 0..", "4": "norm"}
    assert [name for name, _ in wrapped.module.named_parameters()] == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("interruption", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)])
def test_a_chain_that_is_interrupted_is_fused_up_to_there(interruption):
    model = nn.Sequential(conv(3, 4), nn.Hardtanh(-0.5, 0.5), interruption, norm(4), nn.ReLU(), conv(4, 2)).eval()
    wrapped = calibrated(model, images())
    assert (folded(wrapped)["0"], folded(wrapped)["5"]) == ("clip -0.5..0.5", "")
    assert wrapped.module.get_submodule("0").site.norm is None
    assert bounds(wrapped) == {"0": (-0.5, 0.5), "3": (0.0, None)}
    assert_near(wrapped, model, images(), within=0.03)


def test_calls_with_several_arguments_match_whatever_way_they_are_passed():
    calls = [
        lambda m, x: F.conv2d(x, m.weight, m.bias, 2, 1),
        lambda m, x: F.conv2d(input=x, weight=m.weight, bias=m.bias, stride=2, padding=1),
        lambda m, x: F.conv2d(x, m.weight, bias=m.bias, padding=(1, 1), stride=(2, 2)),
        lambda m, x: torch.conv2d(x, weight=m.weight, bias=m.bias, stride=[2, 2], padding=[1, 1]),
    ]
    torch.manual_seed(0)
    weight, bias, x = torch.randn(4, 3, 3, 3), torch.randn(4), images()
    found = []
    for call in calls:
        model = Wired(lambda m, x, call=call: torch.relu(input=call(m, x)), weight=weight.clone(), bias=bias.clone())
        wrapped = calibrated(model.eval(), x)
        assert folded(wrapped) == {"conv2d": "clip 0.."}
        found.append(assert_exact(wrapped, x)[0])
    assert all(torch.equal(output, found[0]) for output in found)
