"""What depends on no input is computed at the conversion, once."""

import torch
from torch import nn

import edgeq
from tests.graph.parity import assert_exact, calibrated, images


class Positions(nn.Module):
    """A bias that a small network makes of fixed coordinates, as Swin V2 does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        steps = torch.linspace(-1, 1, 7)
        self.register_buffer("places", torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)[None])
        self.first, self.second, self.linear = nn.Linear(2, 512), nn.Linear(512, 3, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        bias = 16 * torch.sigmoid(self.second(torch.relu(self.first(self.places))))
        return self.linear(x) + bias.mean((0, 1, 2))


def test_the_branch_is_gone_and_its_integers_stay():
    wrapped = calibrated(Positions().eval(), images(4, 8))
    assert_exact(wrapped, images(4, 8))
    converted = wrapped.convert().module
    assert not hasattr(converted, "first")
    (folded,) = (value for key, value in converted.named_buffers() if "folded" in key)
    assert folded.dtype is torch.uint8
    assert folded.shape == (3,)
    quantizer = wrapped.module.quantizer_of("mean") or wrapped.module.quantizers()[-2]
    with torch.no_grad():
        model = Positions().eval()
        bias = 16 * torch.sigmoid(model.second(torch.relu(model.first(model.places))))
    assert ((folded - quantizer.zero_point) * quantizer.scale - bias.mean((0, 1, 2))).abs().max() < 0.1


def test_the_file_has_no_branch_that_a_runtime_would_compute_in_its_own_way(tmp_path):
    wrapped, x = calibrated(Positions().eval(), images(4, 8)), images(4, 8)
    result = wrapped.export(x, tmp_path / "positions.onnx")
    assert result.passed
    assert result.parity[1].unequal == 0
    assert "Sigmoid" not in result.nodes
    assert result.nodes["Gemm"] == 1


def test_random_numbers_are_drawn_anew():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) + torch.rand_like(self.linear.bias)

    model = edgeq.PTCFxModule(Noisy().eval(), bias_calibration_factor=0).train()
    model(images(16, 4))
    converted = model.eval().convert()
    assert not torch.equal(converted(images(16, 4)), converted(images(16, 4)))
