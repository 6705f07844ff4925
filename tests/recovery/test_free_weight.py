"""A weight that is trained: where it begins, what its gradients are, and what is kept of it."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.recovery.free_weight import FreeWeight
from tests.recovery.learning import DATA


def layer_of(preset="WC4_AT8"):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    return edgeq.PTCFxModule(model, preset).calibrate(DATA).module.quantized_layers()[0]


def test_it_begins_with_the_codes_that_the_layer_has():
    for preset in ("WC4_AT8", "WC8_AT8"):
        layer = layer_of(preset)
        offset = layer.weight_quantizer.offset
        assert (offset is None) == (preset == "WC8_AT8")
        weight, bias = layer.folded(layer.weight, layer.bias)
        free = FreeWeight(layer, has_own_bias=True)
        codes = layer.weight_quantizer.codes(weight)
        assert torch.equal(free.codes(), codes)
        assert torch.allclose(free.weight(), codes * layer.weight_quantizer.scale.reshape(-1, 1, 1, 1))
        assert torch.equal(free.bias, bias)
        assert free.penalty(0.5) == 0.0


def test_the_gradients_are_straight_through_and_those_of_lsq():
    layer = layer_of()
    free = FreeWeight(layer, has_own_bias=True)
    with torch.no_grad():
        free.real.mul_(1.3)  # some of it lies outside now
    upstream = torch.randn(free.real.shape, generator=torch.Generator().manual_seed(1))
    slopes = torch.autograd.grad((free.weight() * upstream).sum(), [free.real, free.theta])
    step = layer.weight_quantizer.scale.reshape(-1, 1, 1, 1)
    ratio = free.real.detach() / step
    inside = (ratio > -8.5) & (ratio < 7.5)
    assert 0 < int((~inside).sum()) < inside.numel()
    assert torch.equal(slopes[0], upstream * inside)
    by_scale = torch.where(inside, ratio.round() - ratio, ratio.round().clamp(-8, 7)) * upstream * step
    assert torch.allclose(slopes[1], by_scale.flatten(1).sum(1), atol=1e-4)


def test_its_pace_is_relative_to_what_learns():
    free = FreeWeight(layer_of(), has_own_bias=True)
    paces = {id(tensor): pace for tensor, pace in free.parameters}
    assert paces[id(free.real)] == pytest.approx(float(free.first.std()))
    assert paces[id(free.bias)] == pytest.approx(float(free.bias.detach().std()))
    assert len(FreeWeight(layer_of(), has_own_bias=False).parameters) == 2
    assert len(FreeWeight(layer_of("WT8SYMP2_AT8SYMP2"), has_own_bias=True).parameters) == 2  # its scale cannot learn


def test_the_penalty_is_the_drift_relative_to_the_weight():
    free = FreeWeight(layer_of(), has_own_bias=True)
    with torch.no_grad():
        free.real.mul_(1.5)
    assert free.penalty(0.0).item() == pytest.approx(0.25, rel=1e-5)


def test_networks_that_share_a_bias_keep_it():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x).relu())

    torch.manual_seed(0)
    model = edgeq.PTCFxModule(Shared().eval(), "WC4_AT8", bias_calibration_factor=0.0).calibrate(DATA)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.recover(DATA, [("fast_finetuning", {"steps": 20, "batch": 8})])
    for key in ("module.conv.bias", "module.conv.weight"):
        assert torch.equal(model.state_dict()[key], before[key])
