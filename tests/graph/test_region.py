"""QuantStub and DeQuantStub mark a region; nothing else is quantized."""

import torch
from torch import nn

import edgeq
from edgeq.modules.stubs import DeQuantStub, QuantStub
from tests.graph.parity import assert_exact, calibrated, images


class Marked(nn.Module):
    """Float, then a region, then float, with a path around the region."""

    def __init__(self, stubs=True):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.inside, self.deep, self.after = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.quant, self.dequant = (QuantStub(), DeQuantStub()) if stubs else (nn.Identity(), nn.Identity())

    def forward(self, x):
        x = torch.relu(self.before(x))
        y = self.deep(torch.relu(self.inside(self.quant(x))))
        return self.after(self.dequant(y) + x)


def test_only_the_region_is_quantized():
    wrapped = calibrated(Marked().eval(), images())
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["inside", "deep"]
    assert [quantizer.name for quantizer in wrapped.module.quantizers()] == ["quant", "inside", "deep"]
    assert type(wrapped.module.before) is type(wrapped.module.after) is nn.Conv2d
    for name in ("before", "relu", "add", "after"):
        assert wrapped.module.reasons[name] == "stays float: outside of the region that stubs mark"
    assert_exact(wrapped, images())


def test_outside_of_the_region_the_numbers_are_those_of_float():
    model = Marked().eval()
    wrapped = calibrated(model, images(), bias_calibration_factor=0)
    with torch.no_grad():
        x = torch.relu(model.before(images()))
        y = wrapped.module.quantization.tensors["quant"](x)
        inside = wrapped.module.deep(wrapped.module.inside(y))
        assert torch.equal(wrapped(images()), model.after(inside + x))
        assert not torch.equal(y, x)


def test_without_stubs_everything_is_quantized():
    wrapped = calibrated(Marked(stubs=False).eval(), images())
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["before", "inside", "deep", "after"]


def test_a_quant_stub_without_an_end_marks_the_rest():
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.quant, self.second = nn.Linear(4, 4), QuantStub(), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(self.quant(self.first(x)))

    wrapped = calibrated(Open().eval(), images(3, 4))
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["second"]
    assert_exact(wrapped, images(3, 4))


def test_a_dequant_stub_alone_marks_nothing():
    wrapped = calibrated(nn.Sequential(nn.Linear(4, 4), DeQuantStub(), nn.Linear(4, 4)).eval(), images(3, 4))
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["0", "2"]
    assert_exact(wrapped, images(3, 4))


def test_the_region_trains():
    wrapped = edgeq.QATFxModule(Marked().train(), total_epochs=4).train()
    wrapped(images()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in wrapped.parameters())
    assert_exact(wrapped.eval(), images())
