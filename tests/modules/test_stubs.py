"""QuantStub and DeQuantStub mark what is quantized."""

import torch
from torch import nn

import edgeq


class Marked(nn.Module):
    """Three layers, of which the stubs enclose the second."""

    def __init__(self):
        super().__init__()
        self.before, self.inside, self.behind = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.begin, self.end = edgeq.QuantStub(), edgeq.DeQuantStub()

    def forward(self, x):
        return self.behind(self.end(self.inside(self.begin(self.before(x)))))


def test_a_stub_gives_what_it_takes():
    x = torch.randn(3)
    assert edgeq.QuantStub()(x) is x
    assert edgeq.DeQuantStub()(x) is x


def test_only_what_lies_between_stubs_is_quantized():
    torch.manual_seed(0)
    model, x = Marked(), torch.randn(4, 3, 9, 9)
    wrapped = edgeq.PTCFxModule(model, bias_calibration_factor=0).calibrate([x])
    (layer,) = wrapped.module.quantized_layers()
    assert layer is wrapped.module.inside
    with torch.no_grad():
        codes = layer.site.source(model.before(x))
        expected = model.behind(layer(codes))
        assert torch.allclose(wrapped(x), expected, atol=1e-6)
        assert torch.allclose(wrapped.convert()(x), expected, atol=1e-6)
    types = {key: value.dtype for key, value in wrapped.convert().module.state_dict().items()}
    assert types["before.weight"] == torch.float32
    assert types["inside.weight"] == torch.int8
    assert types["behind.weight"] == torch.float32


def test_without_stubs_everything_is_quantized():
    model = Marked()
    model.begin, model.end = nn.Identity(), nn.Identity()
    assert len(edgeq.PTCFxModule(model).module.quantized_layers()) == 3
