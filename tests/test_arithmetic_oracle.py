"""torch.ao as an oracle, where its definitions are edgeq's."""

import pytest
import torch
from torch.ao.quantization import MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

from edgeq.arithmetic import fake_quantize
from edgeq.observers.registry import OBSERVERS
from edgeq.qparams import qparams_of_range
from edgeq.spec import TensorSpec

EIGHT_BITS = {"dtype": torch.quint8, "quant_min": 0, "quant_max": 255}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def zero(n):
    return torch.tensor(n, dtype=torch.int32)


@pytest.mark.parametrize("scale", [2.0**-7, 2.0**-3, 4.0])
@pytest.mark.parametrize("codes", [(0, 255), (-128, 127), (-8, 7)])
def test_fake_quantize_is_torchs_at_powers_of_two(codes, scale):
    x = torch.cat([normal(10000) * 100 * scale, torch.arange(-400, 400) * scale / 2])  # ties among them
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 3, *codes)
    assert torch.equal(fake_quantize(x, torch.tensor(scale), zero(3), *codes), expected)


@pytest.mark.parametrize("scale", [0.037, 0.1, 1 / 3])
def test_fake_quantize_is_torchs_off_ties_at_other_scales(scale):
    """torch.ao multiplies by the reciprocal, so that it may round otherwise what is within rounding of a tie."""
    x = normal(10000) * 100 * scale
    ratio = x.double() / torch.tensor(scale).double()
    off_ties = ((ratio - ratio.floor()) - 0.5).abs() > 1e-4
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 3, -128, 127)
    assert torch.equal(fake_quantize(x, torch.tensor(scale), zero(3), -128, 127)[off_ties], expected[off_ties])
    assert off_ties.float().mean() > 0.99


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_fake_quantize_is_torchs_per_channel(axis):
    x = normal(4, 4, 3, 4) * 5
    scale, zero_point = 2.0 ** torch.tensor([-4.0, -2.0, -1.0, 0.0]), torch.tensor([0, 1, -2, 5], dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, -8, 7)
    assert torch.equal(fake_quantize(x, scale, zero_point, -8, 7, axis), expected)


@pytest.mark.parametrize(
    ("name", "options", "oracle"),
    [
        ("minmax", {}, MinMaxObserver(**EIGHT_BITS)),
        ("moving_average", {"momentum": 0.2}, MovingAverageMinMaxObserver(0.2, **EIGHT_BITS)),
    ],
)
def test_observers_find_torchs_ranges_scales_and_zero_points(name, options, oracle):
    observer = OBSERVERS[name](TensorSpec(), **options)
    for seed in range(8):
        x = normal(3, 50, seed=seed) * (1 + seed) + 0.3
        observer.observe(x)
        oracle(x)
        low, high = observer.range()
        assert torch.allclose(torch.stack([low, high]), torch.stack([oracle.min_val, oracle.max_val]), rtol=1e-6)
        expected_scale, expected_zero_point = oracle.calculate_qparams()
        scale, zero_point, *_ = qparams_of_range(TensorSpec(), low, high)
        assert scale.item() == pytest.approx(expected_scale.item(), rel=1e-6)
        assert zero_point.item() == expected_zero_point.item()


@pytest.mark.parametrize("axis", [0, 1])
def test_ranges_of_channels_are_torchs(axis):
    x = normal(5, 5, 3)
    oracle = PerChannelMinMaxObserver(ch_axis=axis)
    oracle(x)
    low, high = OBSERVERS["minmax"](TensorSpec(), 5, axis).measure(x)
    assert torch.equal(low, oracle.min_val)
    assert torch.equal(high, oracle.max_val)
