"""From a range and a spec to scale, zero point and codes (laws 2 to 5 and 8)."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeq
from edgeq.arithmetic import PowerOfTwoRule, Rounding, Sign, fake_quantize
from edgeq.qparams import QParams, code_bounds, limit_range, qparams_of_range
from edgeq.spec import ScaleKind, TensorSpec
from tests.networks import batches, network
from tests.strategies import numbers, specs, tensors


def parameters_of(spec, x):
    low, high = (x.amin(), x.amax()) if x.numel() else (torch.tensor(0.0), torch.tensor(0.0))
    return qparams_of_range(spec, low, high)


def on_grid(spec, x):
    return fake_quantize(x, *parameters_of(spec, x), None, spec.rounding)


@settings(deadline=None, max_examples=300)
@given(spec=specs(), x=tensors(numbers))
def test_any_tensor_has_a_finite_positive_scale_and_stays_finite(spec, x):
    scale, zero_point, quant_min, quant_max = parameters_of(spec, x)
    assert 2.0**-60 <= scale <= 2.0**60
    assert quant_min <= zero_point <= quant_max
    y = on_grid(spec, x)
    assert bool(torch.isfinite(y).all())
    assert y.shape == x.shape


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3.7, 2.0**-149, -(2.0**-126), 3e38, -3e38])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (0, 3)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_constant_tensor_is_kept_to_half_a_step(symmetric, shape, value):
    spec = TensorSpec(symmetric=symmetric)
    x = torch.full(shape, value)
    scale = parameters_of(spec, x).scale
    error = (on_grid(spec, x).double() - x.double()).abs()
    saturates = abs(value) > 255 * 2.0**60  # no scale is larger than 2**60
    assert bool((error <= scale * 0.5000001).all()) or saturates


@settings(deadline=None, max_examples=300)
@given(spec=specs(), x=tensors(st.floats(-(2.0**40), 2.0**40, width=32), min_size=1))
def test_what_lies_in_the_range_is_kept_to_the_steps_that_the_spec_allows(spec, x):
    """Half a step of rounding (a whole one for floor), half a step more for the zero point of an affine range, and
    one for the end that a power of two may clip.
    """
    unsigned = spec.symmetric and spec.sign is Sign.UNSIGNED
    x = x.abs() if unsigned else x
    clips = spec.scale is ScaleKind.POWER_OF_TWO
    if clips:
        spec = dataclasses.replace(spec, power_of_two_rule=PowerOfTwoRule.CEIL)
    steps = (1.0 if spec.rounding is Rounding.FLOOR else 0.5) + 0.5 * (not spec.symmetric) + clips
    error = (on_grid(spec, x).double() - x.double()).abs().max()
    assert error <= parameters_of(spec, x).scale.double() * steps * (1 + 2.0**-6)


@settings(deadline=None, max_examples=200)
@given(spec=specs(symmetric=True), x=tensors(numbers, min_size=1))
def test_symmetric_means_zero_point_0_and_no_sign_unless_it_is_needed(spec, x):
    parameters = parameters_of(spec, x)
    assert parameters.zero_point == 0
    signed = spec.sign is Sign.SIGNED or (spec.sign is Sign.AUTO and bool(x.min() < 0))
    assert (parameters.quant_min.item(), parameters.quant_max.item()) == spec.codes(signed)


@settings(deadline=None, max_examples=100)
@given(spec=specs(symmetric=False), x=tensors(numbers, min_size=1))
def test_affine_codes_are_unsigned_unless_the_spec_says_signed(spec, x):
    parameters = parameters_of(spec, x)
    expected = spec.codes(signed=spec.sign is Sign.SIGNED)
    assert (parameters.quant_min.item(), parameters.quant_max.item()) == expected


@settings(deadline=None, max_examples=100)
@given(spec=specs(), x=tensors(numbers, min_size=1))
def test_zero_is_kept_exactly(spec, x):
    assert fake_quantize(torch.zeros(1), *parameters_of(spec, x), None, spec.rounding).item() == 0.0


def test_a_reduced_range_leaves_the_top_bit():
    spec = TensorSpec(reduce_range=True)
    assert qparams_of_range(spec, torch.tensor(0.0), torch.tensor(127.0))[2:] == (0, 127)
    assert qparams_of_range(spec, torch.tensor(0.0), torch.tensor(127.0)).scale == 1.0


def test_range_max_limits_a_range_and_leaves_smaller_ones():
    spec = TensorSpec(range_max=4.0)
    low, high = limit_range(spec, torch.tensor([-9.0, -1.0, 0.0]), torch.tensor([3.0, 9.0, 9.0]))
    assert low.tolist() == [-4.0, -1.0, 0.0]
    assert high.tolist() == [3.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("sign", "expected"),
    [(Sign.AUTO, [-4.0, 0.0, 0.0]), (Sign.SIGNED, [-4.0, -4.0, -4.0]), (Sign.UNSIGNED, [0.0, 0.0, 0.0])],
)
def test_a_fixed_range_replaces_what_was_found(sign, expected):
    spec = TensorSpec(sign=sign, symmetric=True, fixed_range=4.0)
    low, high = limit_range(spec, torch.tensor([-9.0, 0.0, 1.0]), torch.tensor([3.0, 9.0, 2.0]))
    assert low.tolist() == expected
    assert high.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("bits", [3, 4, 7, 8, 16])
def test_a_fixed_range_gives_the_scale_of_its_closed_form(bits):
    spec = TensorSpec(bits=bits, sign=Sign.SIGNED, symmetric=True, fixed_range=4.0)
    scale = qparams_of_range(spec, torch.tensor(-100.0), torch.tensor(0.1)).scale
    assert scale.item() == np.float32(4) / np.float32(2 ** (bits - 1) - 1)
    power = dataclasses.replace(spec, scale=ScaleKind.POWER_OF_TWO)
    assert qparams_of_range(power, torch.tensor(-100.0), torch.tensor(0.1)).scale == 4 / 2 ** (bits - 1)


@settings(deadline=None, max_examples=100)
@given(spec=specs(), ends=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_many_ranges_in_one_call_are_the_same_as_one_by_one(spec, ends):
    low, high = torch.tensor([sorted(pair) for pair in ends]).unbind(1)
    together = qparams_of_range(spec, low, high)
    for index in range(len(ends)):
        alone = qparams_of_range(spec, low[index], high[index])
        for name, many, one in zip(QParams._fields, together, alone, strict=True):
            assert torch.equal(many[index] if many.dim() else many, one), name


def test_code_bounds_are_plain_numbers_where_the_sign_is_known():
    assert code_bounds(TensorSpec(), torch.tensor(-1.0)) == (0, 255)
    assert code_bounds(TensorSpec(sign=Sign.SIGNED), torch.tensor(1.0)) == (-128, 127)
    low, high = code_bounds(TensorSpec(symmetric=True), torch.tensor([-1.0, 0.0]))
    assert (low.tolist(), high.tolist()) == ([-128, 0], [127, 255])


@settings(deadline=None, max_examples=6)
@given(preset=st.sampled_from(["WC8_AT8", "WT8SYMP2_AT8SYMP2", "WC8P2_AT8P2", "WC4_AT8"]), seed=st.integers(0, 99))
def test_checkpoint_converted_module_and_file_hold_the_same_scales(preset, seed, tmp_path_factory):
    """Law 2."""
    wrapped = edgeq.PTCFxModule(network("residual", seed), preset).calibrate(batches(seed=seed))
    state = wrapped.module.state_dict()
    scales = [value.reshape(-1) for key, value in state.items() if key.endswith(".scale")]
    known = set(torch.cat(scales).tolist())
    converted = wrapped.convert().module.state_dict()
    held = [value.reshape(-1) for key, value in converted.items() if key.endswith("scale")]
    assert set(torch.cat(held).tolist()) <= known
    path = tmp_path_factory.mktemp("law") / "model.onnx"
    wrapped.export(batches(1)[0], path)
    graph = onnx.load(path).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    written = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert len(written) >= 5
    assert {float(values[name]) for name in written} <= known
    if "P2" in preset:
        assert {np.frexp(value)[0] for value in known} == {0.5}
