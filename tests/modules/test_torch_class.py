"""Subclasses of PyTorch's layers: those that compute as the class does are quantized as it is, others are traced."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import edgeq
from edgeq.modules.torch_class import torch_class
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import folded, quantizers


class Norm(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-3, momentum=0.3)


class NormOfAny(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, x):
        pass


class Conv(nn.Conv2d):
    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight)
        nn.init.ones_(self.bias)

    def fan_out(self):
        return self.out_channels * self.kernel_size[0]


class Heads(nn.MultiheadAttention):
    def _reset_parameters(self):
        nn.init.normal_(self.in_proj_weight, 0, 0.2)
        nn.init.zeros_(self.in_proj_bias)


class Pool(nn.MaxPool2d):
    pass


class Rows(nn.Embedding):
    pass


class StdConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / self.weight.std((1, 2, 3), keepdim=True), self.bias, padding=self.padding)


class SameConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class DoubledConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class ComputedConv(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.raw = nn.Parameter(self._parameters.pop("weight").data)

    @property
    def weight(self):
        return self.raw * 2


@pytest.mark.parametrize(
    ("module", "cls"),
    [
        (Norm(3), nn.BatchNorm2d),
        (NormOfAny(3), nn.modules.batchnorm._BatchNorm),
        (Conv(3, 4, 1), nn.Conv2d),
        (parametrizations.weight_norm(Conv(3, 4, 1)), nn.Conv2d),
        (Heads(8, 2), nn.MultiheadAttention),
        (nn.Conv2d(3, 4, 1), nn.Conv2d),
        (StdConv(3, 4, 1), StdConv),
        (DoubledConv(3, 4, 1), DoubledConv),
        (ComputedConv(3, 4, 1), ComputedConv),
        (nn.Sequential(), nn.Sequential),
        (edgeq.QuantStub(), edgeq.QuantStub),
        (None, type(None)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_module_computes_as_the_class_of_pytorch_whose_methods_it_has(module, cls):
    assert torch_class(module) is cls


def norms_trained(*norms):
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("norm", [Norm, NormOfAny])
def test_a_batch_norm_of_the_users_is_folded_and_goes_on_learning(norm):
    torch.manual_seed(0)
    model = nn.Sequential(Conv(3, 4, 3, bias=True), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    norms_trained(model[1])
    wrapped = calibrated(copy.deepcopy(model).eval(), images())
    assert folded(wrapped) == {"0": "norm, clip 0..", "4": ""}
    assert quantizers(wrapped) == ["input_1", "0", "4"]
    assert relative_error(assert_exact(wrapped, images()), model.eval()(images())) < 0.03
    assert type(wrapped.module.get_submodule("1")) is norm
    training = edgeq.QATFxModule(model, total_epochs=2).train()
    training(images())
    own = model[1]
    expected = copy.deepcopy(own)
    expected.running_mean.normal_()
    assert int(own.num_batches_tracked) == 1
    mean = model[0](images()).mean((0, 2, 3))
    before = own.running_mean.clone()
    training(images())
    rate = own.momentum
    assert torch.allclose(own.running_mean, before + rate * (mean - before), atol=0.02)
    assert int(own.num_batches_tracked) == 2


def test_other_subclasses_are_what_their_class_is():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.rows = Conv(3, 8, 1), Pool(2), Rows(5, 8)
            self.heads, self.last = Heads(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x, which):
            x = self.pool(self.conv(x)).flatten(2).transpose(1, 2) + self.rows(which).unsqueeze(1)
            return self.last(self.heads(x, x, x)[0])

    torch.manual_seed(0)
    model, inputs = Model().eval(), (images(), torch.tensor([1, 4]))
    wrapped = calibrated(model, *inputs)
    assert "pool" not in quantizers(wrapped)  # it moves codes
    assert {layer.site.name for layer in wrapped.module.quantized_layers()} >= {"conv", "heads.out_proj", "last"}
    assert len(wrapped.module.quantized_layers()) == 6
    assert relative_error(assert_exact(wrapped, *inputs), model(*inputs)) < 0.03


@pytest.mark.parametrize("cls", [StdConv, SameConv, DoubledConv, ComputedConv])
def test_what_a_subclass_does_in_its_own_way_is_traced(cls):
    torch.manual_seed(0)
    model = nn.Sequential(cls(3, 4, 2), nn.Flatten(), nn.LazyLinear(3)).eval()
    expected = model(images())
    wrapped = calibrated(model, images())
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(images()), expected, atol=1e-5)
    (found,) = assert_exact(wrapped, images())
    assert relative_error(found, expected) < 0.03
    names = {layer.site.name for layer in wrapped.module.quantized_layers()}
    assert names == {"0.conv2d", "2"}  # with the weight that it has or computes


def test_a_forward_that_was_put_on_one_object_is_traced():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    plain = nn.Conv2d.forward
    model[0].forward = types.MethodType(lambda self, x: plain(self, x) + 1, model[0])
    expected = model(images())
    wrapped = calibrated(model, images())
    with torch.no_grad():
        assert torch.allclose(wrapped.module.run_float(images()), expected, atol=1e-6)
    assert quantizers(wrapped) == ["input_1", "0_conv2d"]
    assert relative_error(assert_exact(wrapped, images()), expected) < 0.02


def test_a_rule_may_name_the_users_own_class():
    model = nn.Sequential(Conv(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    preset = {"rules": [{"type": "Conv", "quantize": False}]}
    wrapped = calibrated(model, images(), preset=preset)
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["2"]


def test_methods_of_the_class_are_still_there_where_the_layer_is_not_replaced():
    class Named(nn.GELU):
        def title(self):
            return "gelu"

    wrapped = calibrated(nn.Sequential(nn.Conv2d(3, 4, 1), Named()).eval(), images())
    assert wrapped.module.get_submodule("1").title() == "gelu"
    assert quantizers(wrapped) == ["input_1", "0", "1"]
