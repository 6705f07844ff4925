"""The gradients of what quantizers learn: the formulas of the papers, and finite differences of what is smooth."""

import math

import pytest
import torch
from torch.func import functional_call

from edgeq.quantizers.apot import levels_of
from edgeq.quantizers.dsq import soft_staircase
from edgeq.quantizers.qil import interval
from tests.quantizers.layouts import normal
from tests.quantizers.schemes import activation, gradients, weight

X, UPSTREAM = normal(4, 300), normal(4, 300, seed=1)
TWO = {"scale": "power_of_two"}


def started(name, **changes):
    """Its range is that of a quarter of the data, so that some of it lies beyond."""
    made = activation(name, **changes)
    made(X / 4)
    return made


def parts(made, x=X):
    """The data in units of the scale, its codes, and where it lies above, below and inside."""
    scale, zero_point = made.scale.double(), made.zero_point.double()
    ratio = x.double() / scale
    low, high = made.quant_min - zero_point, made.quant_max - zero_point
    codes = (x / made.scale).round().double().clamp(low, high)
    return ratio, codes, ratio >= high, ratio <= low


def factor(made, elements):
    return 1 / math.sqrt(elements * float(made.quant_max))


@pytest.mark.parametrize("bounds", [(None, None), (0.0, None)])
def test_lsq(bounds):
    made = started("lsq")
    _, (found,) = gradients(lambda: made(X, *bounds), [made.scheme.step], UPSTREAM)
    x = X if bounds[0] is None else X.clamp(min=0)
    ratio, codes, above, below = parts(made, x)
    slope = torch.where(above | below, codes, codes - ratio)
    assert float(found) == pytest.approx(float((UPSTREAM * slope).sum()) * factor(made, X.numel()), rel=1e-3)


def test_lsq_with_power_of_two_scales_passes_straight_through_to_the_step():
    made = started("lsq", **TWO)
    with torch.no_grad():
        made.scheme.step.fill_(0.3)
    _, (found,) = gradients(lambda: made(X), [made.scheme.step], UPSTREAM)
    assert float(made.scale) == 0.5
    ratio, codes, above, below = parts(made)
    slope = torch.where(above | below, codes, codes - ratio)
    expected = float((UPSTREAM * slope).sum()) * factor(made, X.numel()) * 0.5 / 0.3
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_lsq_of_a_weight_has_one_gradient_a_channel():
    x, upstream = normal(6, 4, 3, 3) / 10, normal(6, 4, 3, 3, seed=1)
    made = weight("lsq", x)
    with torch.no_grad():
        made.scheme.step.mul_(0.5)
    _, (found,) = gradients(lambda: made(x), [made.scheme.step], upstream)
    for channel in range(6):
        ratio = (x[channel] / made.scale[channel]).double()
        codes = ratio.round().clamp(-8, 7)
        slope = torch.where((ratio >= 7) | (ratio <= -8), codes, codes - ratio)
        expected = float((upstream[channel] * slope).sum()) / math.sqrt(36 * 7)
        assert float(found[channel]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_negative_step_counts_as_its_size():
    made = started("lsq")
    y, (before,) = gradients(lambda: made(X), [made.scheme.step], UPSTREAM)
    with torch.no_grad():
        made.scheme.step.neg_()
    z, (after,) = gradients(lambda: made(X), [made.scheme.step], UPSTREAM)
    assert torch.equal(y, z)
    assert torch.equal(before, -after)


def test_lsqplus():
    """Bhalgat et al., equations 5 and 6, with codes that count from zero at the offset."""
    made = started("lsqplus", symmetric=False)
    scheme = made.scheme
    _, (step, offset) = gradients(lambda: made(X), [scheme.step, scheme.offset], UPSTREAM)
    ratio, codes, above, below = parts(made)
    counted = codes + made.zero_point  # 0 below, 15 above
    slope = torch.where(above | below, counted, codes - ratio)
    shift = float(scheme.offset.detach()) / float(made.scale) + float(
        made.zero_point
    )  # what rounding it to a code leaves out
    correction = shift * float((UPSTREAM * (above | below)).sum())
    expected = float((UPSTREAM * slope).sum()) - correction
    assert float(step) == pytest.approx(expected * factor(made, X.numel()), rel=2e-3)
    beyond = float((UPSTREAM * (above | below)).sum())
    assert float(offset) == pytest.approx(beyond * factor(made, X.numel()), rel=1e-3)


@pytest.mark.parametrize("unsigned", [False, True])
def test_tqt(unsigned):
    """Jain et al., equations 6 and 8: inside is what rounds to a code."""
    made = activation("tqt", **TWO)
    made((X / 4).abs() if unsigned else X / 4)
    assert float(made.scale) == 2 ** math.ceil(float(made.scheme.threshold)) / (16 if unsigned else 8)
    _, (found,) = gradients(lambda: made(X), [made.scheme.threshold], UPSTREAM)
    ratio = X.double() / made.scale.double()
    low, high = int(made.quant_min), int(made.quant_max)
    codes = ratio.round()
    slope = torch.where(codes > high, high, torch.where(codes < low, low, codes - ratio))
    assert float(found) == pytest.approx(float((UPSTREAM * slope).sum() * made.scale) * math.log(2), rel=1e-3)


def test_tqts_data_gets_a_gradient_where_it_rounds_to_a_code():
    made = started("tqt", **TWO)
    x = X.clone().requires_grad_()
    made(x).sum().backward()
    codes = (X / made.scale).round()
    assert torch.equal(x.grad, ((codes <= 7) & (codes >= -8)).float())


@pytest.mark.parametrize("negative", [False, True])
def test_pact(negative):
    """Choi et al., equation 3: one where the activation reaches beyond alpha."""
    made = activation("pact")
    made(X / 4 if negative else (X / 4).abs())
    _, (found,) = gradients(lambda: made(X, None if negative else 0.0), [made.scheme.alpha], UPSTREAM)
    alpha = float(made.scheme.alpha)
    above, below = alpha <= X, -8 / 7 * alpha >= X
    expected = float((UPSTREAM * above).sum()) - (8 / 7 * float((UPSTREAM * below).sum()) if negative else 0)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_pact_of_an_affine_tensor_moves_either_end():
    made = started("pact", symmetric=False)
    scheme = made.scheme
    _, (alpha, beta) = gradients(lambda: made(X), [scheme.alpha, scheme.beta], UPSTREAM)
    _, _, above, below = parts(made)
    shift = (
        float(scheme.beta.detach()) / float(made.scale) + float(made.zero_point)
    ) / 15  # of rounding the zero point
    over, under = float((UPSTREAM * above).sum()), float((UPSTREAM * below).sum())
    assert float(alpha) == pytest.approx(over - shift * (over + under), rel=1e-3)
    assert float(beta) == pytest.approx(under + shift * (over + under), rel=1e-3)


def differences(function, value, h=1e-5):
    """Central differences of a function of one number, in double precision."""
    return float(function(value + h) - function(value - h)) / (2 * h)


def test_dsqs_gradients_are_those_of_the_soft_staircase():
    made = started("dsq")
    scheme = made.scheme
    x = X.clone().requires_grad_()
    _, (in_x, in_step, in_alpha) = gradients(lambda: made(x), [x, scheme.step, scheme.alpha], UPSTREAM)

    def soft(data, step, alpha):
        return UPSTREAM.double() * step * soft_staircase((data / step).clamp(-8, 7), torch.tensor(alpha).double())

    data, step, alpha = X.double(), float(made.scale), 0.4
    scaled = factor(made, X.numel())
    assert float(in_step) == pytest.approx(scaled * differences(lambda s: soft(data, s, alpha).sum(), step), rel=1e-3)
    assert float(in_alpha) == pytest.approx(scaled * differences(lambda a: soft(data, step, a).sum(), alpha), rel=1e-3)
    h = 1e-6
    slope = (soft(data + h, step, alpha) - soft(data - h, step, alpha)) / (2 * h)
    assert torch.allclose(in_x.double(), slope, rtol=1e-3, atol=1e-3)


def test_the_soft_staircase_is_nearly_a_line_at_one_end_and_a_staircase_at_the_other():
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    assert torch.allclose(soft_staircase(x, torch.tensor(0.49).double()), x, atol=0.03)
    off = (x % 1 - 0.5).abs() > 0.15
    assert torch.allclose(soft_staircase(x, torch.tensor(1e-9).double())[off], x[off].round(), atol=0.01)
    integers = torch.arange(-3.0, 4.0)
    assert torch.allclose(soft_staircase(integers, torch.tensor(0.2)), integers, atol=1e-5)


def test_dorefas_gradient_is_that_of_its_transform():
    x, upstream = normal(6, 9).double() / 10, normal(6, 9, seed=1).double()
    made = weight("dorefa", x.float())
    size = float(made.scheme.size)
    assert size == float(x.float().abs().max())

    def bent(data):
        return (upstream * size * torch.tanh(data) / torch.tanh(data).abs().max()).sum()

    data = x.clone().requires_grad_()
    made.transform(data).backward(upstream)
    for place in [(0, 0), (3, 4), tuple(divmod(int(x.abs().argmax()), 9))]:
        step = torch.zeros_like(x)
        step[place] = 1e-6
        assert float(data.grad[place]) == pytest.approx(float(bent(x + step) - bent(x - step)) / 2e-6, rel=1e-3)


def test_qils_gradients_are_those_of_its_interval():
    x, upstream = normal(6, 9) / 10, normal(6, 9, seed=1)
    made = weight("qil", x)
    scheme = made.scheme
    values = {"centre": 0.4, "distance": 0.35, "exponent": 1.3}
    with torch.no_grad():
        for name, value in values.items():
            getattr(scheme, name).fill_(value)
    _, found = gradients(lambda: made.transform(x), list(scheme.parameters()), upstream)
    size, scaled = float(scheme.size), 1 / math.sqrt(x.numel() * 7)
    for (name, value), grad in zip(values.items(), found, strict=True):

        def total(number, name=name):
            numbers = [torch.tensor(v, dtype=torch.float64) for v in (values | {name: number}).values()]
            return (upstream.double() * size * double_interval(x.double(), *numbers)).sum()

        assert float(grad) == pytest.approx(scaled * differences(total, value), rel=2e-3), name


def double_interval(x, centre, distance, exponent):
    """Jung et al., equation 2, as it is written."""
    alpha, beta = 0.5 / distance, -0.5 * centre / distance + 0.5
    inside = (alpha * x.abs() + beta).clamp(1e-6, 1) ** exponent
    return (
        torch.where(x.abs() < centre - distance, 0.0, torch.where(x.abs() > centre + distance, 1.0, inside)) * x.sign()
    )


def test_qils_interval_prunes_and_clips():
    x = torch.tensor([0.0, 0.1, -0.24, 0.3, -0.5, 0.75, 0.9, -2.0])
    found = interval(x, torch.tensor(0.5), torch.tensor(0.25), torch.tensor(2.0))
    assert torch.allclose(found, torch.tensor([0.0, 0, 0, 0.01, -0.25, 1, 1, -1]), atol=1e-6)


@pytest.mark.parametrize("unsigned", [False, True])
def test_apot(unsigned):
    """Li et al., equation 5: the sign beyond, and within what the nearest level differs by."""
    made = activation("apot")
    made((X / 4).abs() if unsigned else X / 4)
    y, (found,) = gradients(lambda: made(X), [made.scheme.alpha], UPSTREAM)
    levels = torch.tensor(levels_of(4 if unsigned else 3), dtype=torch.float64)
    ratio = (X.double() / float(made.scale)).clamp(0 if unsigned else -1, 1)
    nearest = levels[(ratio.abs().unsqueeze(-1) - levels).abs().argmin(-1)] * ratio.sign()
    assert torch.allclose(y.double(), nearest * float(made.scale), atol=1e-6)
    assert float(found) == pytest.approx(float((UPSTREAM * slope_of(ratio, nearest)).sum()), rel=1e-3)


def slope_of(ratio, nearest):
    return torch.where((ratio.abs() >= 1) | (ratio == 0), nearest, nearest - ratio)


def test_nnies_gradient_is_that_of_the_data_itself():
    made = activation("nnie", bits=8)
    x = X.clone().requires_grad_()
    made(x).backward(UPSTREAM)
    assert torch.equal(x.grad, UPSTREAM)
    assert list(made.parameters()) == []


def test_nnie_finds_the_levels_of_numbers_in_half_precision_as_of_others():
    made = activation("nnie", bits=8)
    x = X.to(torch.bfloat16)
    assert torch.equal(made(x), made(x.float()).to(torch.bfloat16))


def test_the_gradients_are_those_that_functional_transforms_find():
    """Another way through autograd: nothing depends on which object a parameter is."""
    made = started("lsq")
    step = made.scheme.step.detach().clone().requires_grad_()
    y = functional_call(made, {"scheme.step": step}, (X,))
    (other,) = torch.autograd.grad(y, step, UPSTREAM)
    _, (mine,) = gradients(lambda: made(X), [made.scheme.step], UPSTREAM)
    assert torch.equal(mine, other)
