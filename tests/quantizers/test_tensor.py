"""The quantizer of a tensor in every phase of its life."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.arithmetic import PowerOfTwoRule, Sign, fake_quantize
from edgeq.errors import CalibrationError
from edgeq.phase import Phase, set_phase
from edgeq.quantizers.tensor import TensorQuantizer, clip
from edgeq.spec import Method, ScaleKind, TensorSpec
from tests.quantizers.layouts import LAYOUTS, normal
from tests.strategies import numbers, specs, tensors

MINMAX = Method("minmax")
BOUNDS = [(None, None), (0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 2.0)]


def quantizer(spec=None, phase=Phase.FLOAT, observer=MINMAX, fixed=None):
    made = TensorQuantizer("features.3", spec or TensorSpec(), observer, fixed)
    made.phase = phase
    return made


def calibrated(x, spec=None, observer=MINMAX):
    made = quantizer(spec, Phase.OBSERVE, observer)
    made(x)
    made.finish()
    made.phase = Phase.QUANTIZE
    return made


def definition(made, x, floor=None, ceiling=None):
    clamped = x if floor is None and ceiling is None else x.clamp(floor, ceiling)
    return fake_quantize(clamped, *made.qparams, None, made.spec.rounding)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("phase", Phase)
def test_each_phase_quantizes_and_observes_as_it_says(phase, layout, bounds):
    x = LAYOUTS[layout]()
    made = calibrated(normal(50))
    made.phase = phase
    before = copy.deepcopy(made)
    y = made(x, *bounds)
    if phase in (Phase.FLOAT, Phase.OBSERVE):
        assert torch.equal(y, x if bounds == (None, None) else x.clamp(*bounds))
    else:
        assert torch.equal(y, definition(made, x, *bounds))  # law 1, with the ranges that are in force now
    seen = int(phase in (Phase.OBSERVE, Phase.ADAPT) and x.numel() > 0)
    assert made.observer.batches - before.observer.batches == seen
    if phase is not Phase.ADAPT:
        assert all(torch.equal(a, b) for a, b in zip(made.qparams, before.qparams, strict=True))


@settings(deadline=None, max_examples=150)
@given(spec=specs(), batches=st.lists(tensors(numbers), min_size=1, max_size=3), phase=st.sampled_from(Phase))
def test_fake_quantize_is_quantize_and_dequantize_for_every_spec_in_every_phase(spec, batches, phase):
    """Law 1, and law 8: all stays finite."""
    made = quantizer(spec, Phase.ADAPT)
    for x in batches:
        assert torch.equal(made(x), definition(made, x))
    made.finish()
    made.phase = phase
    y = made(batches[0])
    simulates = phase in (Phase.ADAPT, Phase.QUANTIZE)
    assert torch.equal(y, definition(made, batches[0]) if simulates else batches[0])
    assert bool(torch.isfinite(y).all())


@pytest.mark.parametrize("rule", PowerOfTwoRule)
def test_a_power_of_two_is_one_at_every_step_of_training(rule):
    """Law 5. The straight-through gradient is that of any other scale."""
    spec = TensorSpec(scale=ScaleKind.POWER_OF_TWO, power_of_two_rule=rule)
    made = quantizer(spec, Phase.ADAPT, Method("moving_average", (("momentum", 0.3),)))
    found = []
    for step in range(20):
        x = (0.8**step * normal(64, seed=step)).requires_grad_()
        y = made(x)
        y.square().sum().backward()
        codes = x.detach() / made.scale + made.zero_point
        inside = (codes > made.quant_min - 0.5) & (codes < made.quant_max + 0.5)
        assert torch.equal(x.grad, 2 * y.detach() * inside)
        found.append(made.scale.item())
    assert {np.frexp(scale)[0] for scale in found} == {0.5}
    assert found[0] > 4 * found[-1]  # it follows the data


def test_while_it_adapts_the_range_is_that_of_the_activation_not_of_its_input():
    made = quantizer(phase=Phase.ADAPT)
    made(torch.tensor([-3.0, 9.0]), 0.0, 6.0)
    assert made.observer.range() == (0.0, 6.0)
    assert made.scale == torch.tensor(6.0) / 255


def test_frozen_ranges_do_not_move():
    made = calibrated(torch.tensor([-1.0, 1.0]))
    before = copy.deepcopy(made.state_dict())
    made(torch.tensor([-100.0, 100.0]))
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize(("fixed", "scale", "zero_point"), [((0.0, 1.0), 2**-8, 0), ((-1.0, 1.0), 2**-7, 128)])
@pytest.mark.parametrize("spec", [TensorSpec(), TensorSpec(range_max=4.0), TensorSpec(fixed_range=4.0)])
def test_a_known_range_is_a_power_of_two_and_never_observed(spec, fixed, scale, zero_point):
    made = quantizer(spec, Phase.ADAPT, fixed=fixed)
    made(normal(100))
    made.finish()
    assert (made.scale, made.zero_point) == (scale, zero_point)
    assert made.observer is None
    assert made.observed


@pytest.mark.parametrize("phase", Phase)
def test_what_is_no_floating_tensor_passes_untouched(phase):
    made = quantizer(phase=phase)
    for x in (torch.arange(5), torch.tensor([True]), (1, 2), None, 3.5):
        assert made(x) is x
    assert not made.observed


def test_an_empty_batch_neither_counts_nor_moves_anything():
    made = quantizer(phase=Phase.ADAPT)
    before = copy.deepcopy(made.state_dict())
    assert made(torch.zeros(0, 3)).shape == (0, 3)
    made.finish()
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("observer", ["minmax", "percentile", "squared_error", "moving_average"])
def test_data_that_is_not_finite_is_an_error_that_names_the_tensor(observer, bad):
    made = quantizer(phase=Phase.OBSERVE, observer=Method(observer))
    made(torch.tensor([1.0, bad]))
    made(torch.tensor([1.0, 2.0]))
    with pytest.raises(CalibrationError, match=r"'features\.3' held NaN or infinity.*Look at the data"):
        made.finish()


def test_a_quantizer_that_saw_nothing_keeps_its_numbers():
    made = quantizer(phase=Phase.OBSERVE)
    made.finish()
    assert (made.observed, made.scale) == (False, torch.tensor(1 / 255))


def test_a_checkpoint_holds_the_numbers_bit_for_bit():
    """Law 2."""
    made = calibrated(normal(1000), TensorSpec(symmetric=True, sign=Sign.AUTO))
    other = quantizer(TensorSpec(symmetric=True, sign=Sign.AUTO), Phase.QUANTIZE)
    other.load_state_dict(made.state_dict())
    assert [torch.equal(a, b) for a, b in zip(made.qparams, other.qparams, strict=True)] == [True] * 4
    x = normal(100, seed=3)
    assert torch.equal(made(x), other(x))


def test_casting_the_network_leaves_scales_in_float32():
    made = calibrated(normal(100))
    scale = made.scale.clone()
    made.to(torch.bfloat16)
    assert made.scale.dtype is torch.float32
    assert torch.equal(made.scale, scale)
    x = normal(100).to(torch.bfloat16)
    assert torch.equal(made(x), definition(made, x))


def test_only_a_fresh_tensor_without_gradient_is_overwritten():
    made = calibrated(normal(100))
    x = normal(16)
    before = x.clone()
    made(x)
    assert torch.equal(x, before)
    assert made(x, fresh=True).data_ptr() == x.data_ptr()
    wanted = before.clone().requires_grad_()
    again = wanted * 1.0
    made(again, fresh=True).sum().backward()
    assert torch.equal(again, before)
    assert torch.equal(wanted.grad, torch.ones(16))  # it was calibrated on more, so nothing clips


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("fresh", [True, False])
def test_clip_is_the_clamp_with_its_gradient(fresh, bounds):
    x = torch.linspace(-2.0, 2.0, 200).requires_grad_()
    e = x.exp()  # its gradient needs its output, which nothing may overwrite
    y = clip(e, *bounds, fresh)
    y.sum().backward()
    low = -float("inf") if bounds[0] is None else bounds[0]
    high = float("inf") if bounds[1] is None else bounds[1]
    assert torch.equal(y, x.exp().clamp(low, high))
    assert torch.equal(x.grad, x.exp() * ((e > low) & (e < high)))
    z = torch.linspace(-9.0, 9.0, 50)
    assert torch.equal(clip(z.clone(), *bounds, fresh), z.clamp(low, high))


def test_set_phase_reaches_all_quantizers_below_a_module():
    network = torch.nn.Sequential(quantizer(), torch.nn.Sequential(quantizer(), torch.nn.ReLU()))
    set_phase(network, Phase.ADAPT)
    assert [network[0].phase, network[1][0].phase] == [Phase.ADAPT] * 2
    assert not hasattr(network[1][1], "phase")
