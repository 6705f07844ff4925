"""A few great features of a transformer do not cost the others their codes, and the float function stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.recovery.measured import Measured
from edgeq.recovery.outlier_suppression import migration, outlier_suppression, read_ends
from edgeq.recovery.pairs import find_pairs
from tests.networks import network
from tests.recovery.uneven import DATA, calibrated, decibels, difference, layer, uneven, work_on

CALLS = [((x,), {}) for x in DATA]


def pair_of(wrapped, name):
    return next(pair for pair in find_pairs(wrapped.module, CALLS[0]).found if pair.source.name == name)


@pytest.mark.parametrize("options", [{"shift": False}, {"alpha": 0.0}, {}, {"alpha": 1.0}], ids=str)
@pytest.mark.parametrize("name", ["attention", "chain"])
def test_the_float_function_stays_and_parameters_are_the_user_s_own(name, options):
    model = uneven(name)
    expected, parameters = model(DATA[7]).detach(), dict(model.named_parameters())
    wrapped = calibrated(model)
    assert outlier_suppression(work_on(wrapped), **options)
    assert difference(expected, model(DATA[7])) < 1e-5
    assert all(parameters[key] is value for key, value in wrapped.module.named_parameters() if key in parameters)


def test_features_and_weights_come_to_the_same_range():
    """At alpha of one half max|X| and max|W| are equal but for one factor for all features."""
    wrapped = calibrated(uneven("attention"))
    outlier_suppression(work_on(wrapped), shift=False)
    low, high = read_ends(pair_of(wrapped, "norm1"), Measured(wrapped.module, work_on(wrapped).seen))
    features = torch.maximum(low.abs(), high.abs())
    weights = layer(wrapped, "qkv").weight.abs().amax(0)
    ratio = features / weights
    assert ratio.amax() / ratio.amin() < 1.001


def test_the_scale_is_that_of_smoothquant():
    wrapped = calibrated(uneven("attention"))
    pair, measured = pair_of(wrapped, "norm2"), Measured(wrapped.module, CALLS)
    found = migration(pair, measured, 0.75)
    low, high = read_ends(pair, measured)
    expected = (
        torch.maximum(low.abs(), high.abs()) ** 0.75 / layer(wrapped, "fc1").weight.detach().abs().amax(0) ** 0.25
    )
    assert torch.allclose(found, expected / expected.log().mean().exp(), rtol=1e-4)


def test_the_middle_of_each_feature_comes_to_zero():
    model = network("attention")
    with torch.no_grad():
        model.norm1.bias.copy_(torch.linspace(-20, 20, 16))
    wrapped = calibrated(model)
    outlier_suppression(work_on(wrapped), alpha=0.0)
    low, high = read_ends(pair_of(wrapped, "norm1"), Measured(wrapped.module, work_on(wrapped).seen))
    assert torch.allclose(low, -high, atol=1e-4)


def test_a_transformer_with_outliers_gains_many_decibels():
    model = uneven("attention", powers=5.0)
    with torch.no_grad():
        model.norm1.bias[2] += 300.0
    expected = model(DATA[7]).detach()
    wrapped = calibrated(model, "MSA_WC8_AT8")
    before = decibels(expected, wrapped(DATA[7]))
    (step,) = wrapped.recover(DATA, ["outlier_suppression"]).steps
    assert step.kept
    assert decibels(expected, wrapped(DATA[7])) > before + 10


def test_several_linear_layers_that_read_one_norm_are_rescaled_together():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm = nn.LayerNorm(6)
            self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4, bias=False)

        def forward(self, x):
            x = self.norm(x)
            return torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1) @ self.v(x)

    data = [torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    model = Three()
    expected, weight = model(data[7]).detach(), model.norm.weight.detach().clone()
    note = outlier_suppression(work_on(calibrated(model, data=data), data))
    assert note == "0 tensors shifted, 1 rescaled"  # v has no bias that could take a shift
    assert difference(expected, model(data[7])) < 1e-5
    assert not torch.allclose(model.norm.weight, weight)


def test_a_norm_that_a_sum_reads_too_is_left_alone():
    class PostNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            x = self.norm(x)
            return x + self.fc(x)

    data = [torch.randn(4, 6) for _ in range(8)]
    model = PostNorm()
    weight = model.norm.weight.detach().clone()
    assert outlier_suppression(work_on(calibrated(model, data=data), data)) == "0 tensors shifted, 0 rescaled"
    assert torch.equal(model.norm.weight, weight)


def test_an_rms_norm_has_no_bias_to_shift_but_a_weight_to_rescale():
    torch.manual_seed(0)
    data = [torch.randn(4, 6) * torch.tensor([1.0, 1, 1, 50, 1, 1]) for _ in range(8)]
    model = nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 4))
    expected = model(data[7]).detach()
    assert outlier_suppression(work_on(calibrated(model, data=data), data)) == "0 tensors shifted, 1 rescaled"
    assert difference(expected, model(data[7])) < 1e-5


def test_ranges_behind_a_gelu_end_at_so_many_deviations_of_their_features():
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc3(torch.relu(self.fc2(F.gelu(self.fc1(x)))))

    data = [torch.randn(64, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    data[3][5] *= 50
    model = Mlp()
    wrapped = calibrated(model, "MSA_WC8_AT8", data)
    before = [tensor.scale.clone() for tensor in wrapped.module.quantizers()]
    work = work_on(wrapped, data)
    assert outlier_suppression(work, shift=False, alpha=0.0, sigmas=4.0) == "1 clipped"
    hidden = F.gelu(model.fc1(torch.cat([call[0][0] for call in work.seen]))).detach().double()
    mean, deviation = hidden.mean(0), hidden.std(0, correction=0)
    source = layer(wrapped, "fc2").site.source
    low = max(float((mean - 4 * deviation).amin()), float(source.observer.low))
    high = float((mean + 4 * deviation).amax())
    assert source.scale.item() == pytest.approx((high - low) / 255, rel=0.02)
    changed = [q for q, scale in zip(wrapped.module.quantizers(), before, strict=True) if q.scale != scale]
    assert changed == [source]
    assert torch.equal(wrapped.convert()(data[7]), wrapped(data[7]))
