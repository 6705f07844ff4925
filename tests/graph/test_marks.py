"""Numbers that mark places, as an additive mask of attention holds them, are in no range."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.graph.marks import HOLDS, LEAST_MARK, MAKES
from tests.graph.parity import assert_exact, calibrated, images


class Attention(nn.Module):
    """Scores of keys and queries, a mask in some spelling, softmax, and the mean of the values that are looked at."""

    def __init__(self, mask):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("causal", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("bias", torch.linspace(-1, 1, 16).reshape(4, 4))
        self.mask = mask

    def forward(self, x, mask):
        scores = self.query(x) @ self.key(x).mT * 8**-0.5
        return self.mask(self, scores, mask).softmax(-1) @ self.value(x)


LOWEST = torch.finfo(torch.float32).min


def triangle(m, s, mask):
    length = s.size(-1)
    return s + torch.full((length, length), float("-inf")).triu(1)


def written(m, s, mask):
    made = s.new_zeros(4, 4)
    made[0, 1:] = float("-inf")
    return s + made


SPELLINGS = {
    "times": lambda m, s, mask: s + (1.0 - mask) * -10000.0,
    "finfo": lambda m, s, mask: s + (1.0 - mask[None]) * LOWEST,
    "from the left": lambda m, s, mask: -1e9 * (1.0 - mask.unsqueeze(0)) + s,
    "in place": lambda m, s, mask: s.add_((1.0 - mask).mul_(-1e9)),
    "of a comparison": lambda m, s, mask: s + (mask < 0.5).float() * -1e9,
    "not a floating tensor": lambda m, s, mask: s + (mask < 0.5) * -1e9,
    "full": triangle,
    "new_full": lambda m, s, mask: s + s.new_full((4, 4), -1e5).triu(1),
    "full_like": lambda m, s, mask: s + torch.full_like(s, float("-inf")).triu(1),
    "filled": lambda m, s, mask: s + s.new_zeros(s.size(-1), 4).masked_fill(mask < 0.5, float("-inf")),
    "written": written,
    "buffer": lambda m, s, mask: s + m.causal,
    "part of a buffer": lambda m, s, mask: s + m.causal[None, :4, :4],
    "stacked": lambda m, s, mask: s + torch.stack([m.causal, m.causal]),
    "fill": lambda m, s, mask: s.masked_fill(mask < 0.5, -1e9),
    "where": lambda m, s, mask: torch.where(mask > 0.5, s, float("-inf")),
    "where with a tensor": lambda m, s, mask: torch.where(mask > 0.5, s, torch.tensor(-1e9)),
    "input": lambda m, s, mask: s + (mask - 1) * 1e9,
}


def attention(spelling):
    return Attention(SPELLINGS[spelling]).eval(), images(2, 4, 8), torch.ones(4, 4).tril()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_mask_is_added_in_float_to_scores_that_are_quantized(spelling):
    model, x, mask = attention(spelling)
    wrapped = calibrated(model, x, mask, bias_calibration_factor=0)
    observed = [quantizer for quantizer in wrapped.module.quantizers() if quantizer.observed]
    names = ["x", "query", "key", "matmul", "mul", "softmax", "value", "matmul_1"]
    assert sorted(quantizer.name.rsplit("_1", 1)[0] for quantizer in observed) == sorted(
        name.rsplit("_1", 1)[0] for name in names
    )
    assert max(float(quantizer.scale) for quantizer in observed) < 0.1
    assert f"stays float: {HOLDS}" in wrapped.module.reasons.values()
    (found,) = assert_exact(wrapped, x, mask)
    assert (found - model(x, mask)).abs().max() < 0.05


@pytest.mark.parametrize("spelling", ["times", "finfo", "from the left"])
def test_what_a_mask_is_made_of_is_not_quantized_either(spelling):
    model, x, mask = attention(spelling)
    wrapped = calibrated(model, x, mask, preset="WC8SYMP2_AT8SYMP2", bias_calibration_factor=0)
    assert f"stays float: {MAKES}" in wrapped.module.reasons.values()
    (found,) = assert_exact(wrapped, x, mask)
    assert (found - model(x, mask)).abs().max() < 0.08


def mask_input(m, s, mask):
    return s + mask


def test_an_input_that_is_only_added_to_scores_is_a_mask():
    model, x = Attention(mask_input).eval(), images(2, 4, 8)
    wrapped = calibrated(model, x, model.causal)
    assert wrapped.module.quantizer_of("mask") is None
    assert wrapped.module.reasons["add"] == f"stays float: {HOLDS}"
    (found,) = assert_exact(wrapped, x, model.causal)
    assert (found - model(x, model.causal)).abs().max() < 0.05


MOVED = {
    "moved": lambda m, s, mask: s + mask[None, :, :].expand(2, -1, -1),
    "dropout behind": lambda m, s, mask: F.dropout(s + mask, 0.1, m.training),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_mask_may_be_moved_on_its_way(name):
    model, x = Attention(MOVED[name]).eval(), images(2, 4, 8)
    wrapped = calibrated(model, x, model.causal)
    assert f"stays float: {HOLDS}" in wrapped.module.reasons.values()
    assert_exact(wrapped, x, model.causal)


VALUES = {
    "a bias that is stored": lambda m, s, mask: s + m.bias,
    "an input that is used otherwise as well": lambda m, s, mask: (s + mask) * mask.sum(),
    "an input of two": lambda m, s, mask: s * 0 + (mask + mask),
    "a number below the least mark": lambda m, s, mask: s + mask * (LEAST_MARK / 2),
    "zero": lambda m, s, mask: s.masked_fill(mask < 0.5, 0.0),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_are_values_is_quantized(name):
    model, x, mask = Attention(VALUES[name]).eval(), images(2, 4, 8), torch.ones(4, 4).tril()
    wrapped = calibrated(model, x, mask)
    assert not any(reason.startswith("stays float") for reason in wrapped.module.reasons.values())
    assert_exact(wrapped, x, mask)


def test_a_layer_that_reads_marks_still_gets_integers():
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(self.first(x).masked_fill(x > 9, -1e9))  # never, in this data

    torch.manual_seed(0)
    model, x = Filled().eval(), images(8, 4)
    wrapped = calibrated(model, x)
    assert wrapped.module.quantized_layers()[1].site.source.name == "masked_fill"
    (found,) = assert_exact(wrapped, x)
    assert (found - model(x)).norm() < 0.03 * model(x).norm()
