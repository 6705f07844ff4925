"""Rounding that lets the errors of a weight's columns cancel, against nearest rounding and against brute force."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgeq
from edgeq.modules.operation import Operation
from edgeq.presets import load_preset, preset_names
from edgeq.recovery.compensated_rounding import DAMPING, input_columns, round_rows, second_moments
from tests.networks import NETWORKS, batches, network


def correlated(count, inputs, seed=0, rank=4):
    """Rows of numbers that depend on few: what activations behind a wide layer are like."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank, inputs, generator=generator)
    noise = torch.randn(count, inputs, generator=generator)
    return (torch.randn(count, rank, generator=generator) @ mix + 0.3 * noise).relu()


def moments_of(x):
    return x.double().T @ x.double() / len(x)


# ---- the algorithm


def output_error(codes, rows, scale, moments):
    """Mean squared error of each output for inputs of these second moments."""
    error = codes * scale[:, None] - rows
    return torch.einsum("oi,ij,oj->o", error, moments, error)


def solved(rows, scale, moments, low, high):
    """The same by its definition: after each rounding the columns that are left are fitted anew."""
    order = torch.argsort(moments.diagonal(), descending=True)
    want, m = (rows / scale[:, None])[:, order], moments[order][:, order]
    codes = torch.zeros_like(want)
    for at in range(want.shape[1]):
        done = codes[:, :at] - want[:, :at]
        # min over the rest of (done, rest) M (done, rest): rest = -M_rr^-1 M_rd done
        rest = want[:, at:] - (torch.linalg.solve(m[at:, at:], m[at:, :at] @ done.T)).T if at else want
        codes[:, at] = rest[:, 0].round().clamp(low, high)
    return codes[:, torch.argsort(order)]


@settings(deadline=None, max_examples=40)
@given(inputs=st.integers(1, 12), outputs=st.integers(1, 5), seed=st.integers(0, 9999), bits=st.integers(2, 8))
def test_every_column_is_the_best_continuation_of_those_before(inputs, outputs, seed, bits):
    torch.manual_seed(seed)
    x = correlated(64, inputs, seed).double()
    moments = moments_of(x) + 0.01 * torch.eye(inputs)
    rows, low, high = torch.randn(outputs, inputs).double(), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = rows.abs().amax(1) / high
    found = round_rows(rows, scale, moments, low, high)
    assert torch.equal(found, solved(rows, scale, moments, low, high))
    assert found.min() >= low
    assert found.max() <= high
    assert torch.equal(found, found.round())


def test_on_tiny_layers_it_comes_near_the_best_codes_that_there_are():
    excess_nearest = excess = best_sum = 0.0
    for seed in range(30):
        torch.manual_seed(seed)
        moments = moments_of(correlated(64, 5, seed, rank=2)) + 0.01 * torch.eye(5)
        rows = torch.randn(1, 5).double()
        scale = rows.abs().amax(1) / 7
        near = torch.floor(rows / scale[:, None])
        steps = torch.tensor(list(itertools.product((-1, 0, 1, 2), repeat=5)))
        candidates = (near + steps).clamp(-8, 7)
        errors = output_error(candidates, rows.expand(len(candidates), -1), scale.expand(len(candidates)), moments)
        best = float(errors.min())
        found, nearest = (
            float(output_error(codes, rows, scale, moments))
            for codes in (round_rows(rows, scale, moments, -8, 7), (rows / scale[:, None]).round().clamp(-8, 7))
        )
        assert found >= best - 1e-12
        excess, excess_nearest, best_sum = excess + found, excess_nearest + nearest, best_sum + best
    assert excess < 1.25 * best_sum
    assert excess_nearest > 1.6 * best_sum


def test_uncorrelated_inputs_round_to_nearest():
    torch.manual_seed(0)
    rows, scale = torch.randn(6, 10).double(), torch.full((6,), 0.3).double()
    moments = torch.diag(torch.rand(10).double() + 0.1)
    assert torch.equal(round_rows(rows, scale, moments, -8, 7), (rows / 0.3).round().clamp(-8, 7))


# ---- the inputs that it sees


COLUMNS = {
    "conv": (nn.Conv2d(3, 4, 3, 2, 1), (2, 3, 7, 6)),
    "uneven": (nn.Conv2d(3, 4, (1, 4), (2, 1), (0, 3), (1, 2)), (2, 3, 6, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, dilation=2), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    "same": (nn.Conv2d(3, 4, (4, 3), padding="same"), (2, 3, 6, 6)),
    "valid": (nn.Conv2d(3, 4, 2, padding="valid"), (2, 3, 6, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, 2, 1, 2, groups=2), (2, 4, 11)),
    "conv1d same": (nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 11)),
    "unbatched": (nn.Conv2d(3, 4, 3), (3, 6, 6)),
    "unbatched conv1d": (nn.Conv1d(3, 4, 3), (3, 6)),
    "linear": (nn.Linear(5, 4), (7, 5)),
    "linear rank 4": (nn.Linear(5, 4), (2, 3, 7, 5)),
    "linear rank 1": (nn.Linear(5, 4), (5,)),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_the_columns_times_the_rows_are_the_layers_output(name):
    module, shape = COLUMNS[name]
    operation, x = Operation.of_module(module), torch.randn(shape)
    columns = input_columns(operation, module.weight, x)
    rows = operation.rows(module.weight).unflatten(0, (operation.groups, -1))
    product = torch.einsum("pgi,goi->pgo", columns, rows).flatten(1)
    expected = operation(x, module.weight, None).movedim(operation.channel_axis, -1).reshape(product.shape)
    assert torch.allclose(product, expected, atol=1e-5)


def test_second_moments_are_damped_means_of_outer_products():
    module, x = nn.Linear(5, 4), torch.randn(50, 5)
    found = second_moments(Operation.of_module(module), module.weight, x)
    plain = moments_of(x)
    assert found.shape == (1, 5, 5)
    assert torch.allclose(found[0], plain + DAMPING * plain.diagonal().mean() * torch.eye(5), atol=1e-6)


def test_inputs_that_are_always_zero_do_no_harm():
    module = nn.Linear(6, 4)
    for x in (torch.zeros(8, 6), torch.zeros(8, 6).index_fill(1, torch.tensor([1]), 2.0)):
        wrapped = edgeq.PTCFxModule(nn.Sequential(module), "WC4_AT8").calibrate([x])
        assert torch.isfinite(wrapped(torch.randn(3, 6))).all()


# ---- in a network


SMOOTH = nn.functional.avg_pool2d(torch.randn(16, 8, 24, 24, generator=torch.Generator().manual_seed(3)), 5, 1)
GAINS = {
    "linear": (lambda: nn.Linear(32, 16), correlated(256, 32), 0.35),
    "conv": (lambda: nn.Conv2d(8, 16, 3, padding=1), SMOOTH, 0.6),
    "grouped": (lambda: nn.Conv2d(8, 16, 3, groups=2), SMOOTH, 0.5),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), SMOOTH, 0.5),
    "conv1d": (lambda: nn.Conv1d(8, 16, 5), SMOOTH.flatten(2), 0.75),
}


@pytest.mark.parametrize("preset", ["WC4_AT8", {"inherits": "WT8SYMP2_AT8SYMP2", "weight": {"bits": 4}}])
@pytest.mark.parametrize("name", GAINS)
def test_the_error_of_a_layers_output_is_a_fraction_of_that_of_nearest_rounding(name, preset):
    make, x, greatest = GAINS[name]
    sums = {}
    for recovery in ([], ["compensated_rounding"]):
        torch.manual_seed(0)
        module = make()
        weight = module.weight.detach().clone()
        options = {"inherits": preset} if isinstance(preset, str) else preset
        wrapped = edgeq.PTCFxModule(nn.Sequential(module), {**options, "recovery": recovery}).calibrate([x])
        (layer,) = wrapped.module.quantized_layers()
        with torch.no_grad():
            sums[len(recovery)] = float(
                (layer.simulated(layer.site.source(x)) - wrapped.module.run_float(x)).square().mean()
            )
        codes = layer.weight_quantizer.codes(module.weight)
        assert -8 <= codes.min() < codes.max() <= 7
        assert torch.equal(module.weight, weight)  # only its codes are chosen
    assert sums[1] < greatest * sums[0]


def test_the_same_data_give_the_same_codes():
    states = [edgeq.PTCFxModule(network("separable"), "WC4_AT8").calibrate(batches()).state_dict() for _ in range(2)]
    offsets = [key for key in states[0] if key.endswith("offset")]
    assert len(offsets) == 5
    assert all(states[0][key].dtype == torch.int8 and states[0][key].any() for key in offsets)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def smooth_images(count, seed):
    """Images whose neighbouring pixels are alike, as those of photographs are."""
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.interpolate(torch.randn(count, 3, 4, 4, generator=generator), size=16, mode="bilinear")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gains(name):
    errors = {}
    for recovery in ([], ["compensated_rounding"]):
        errors[len(recovery)] = 0.0
        for seed in range(3):
            model, x = network(name, seed), smooth_images(64, seed + 50)
            expected = model(x).detach()
            preset = {"inherits": "WC4_AT8", "recovery": recovery}
            wrapped = edgeq.PTCFxModule(model, preset).calibrate([smooth_images(64, seed)])
            with torch.no_grad():
                errors[len(recovery)] += float((wrapped(x) - expected).square().mean() / expected.var())
    assert errors[1] < 0.75 * errors[0]


def test_the_presets_of_coarse_weights_use_it():
    using = [name for name in preset_names() if "compensated_rounding" in load_preset(name).recovery]
    assert using == ["WC2_AT4", "WC4M4_AT8", "WC4_AT4", "WC4_AT8", "WT8SYMP2_AT8SYMP2"]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.ConvTranspose2d(3, 4, 3), (4, 3, 6, 6)),
        (lambda: nn.Conv3d(3, 4, 2), (4, 3, 4, 4, 4)),
        (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (4, 3, 6, 6)),
    ],
)
def test_layers_that_it_does_not_know_round_to_nearest(make, shape):
    wrapped = edgeq.PTCFxModule(nn.Sequential(make()), "WC4_AT8").calibrate([torch.randn(shape)])
    (layer,) = wrapped.module.quantized_layers()
    assert not layer.weight_quantizer.offset.any()
    with torch.no_grad():
        scale = layer.weight_quantizer.scale.reshape(
            [-1 if d == layer.operation.weight_axis else 1 for d in range(layer.weight.dim())]
        )
        assert torch.equal(layer.weight_quantizer.codes(layer.weight), (layer.weight / scale).round().clamp(-8, 7))


def test_calibrating_again_starts_from_the_nearest_codes():
    once, twice = (
        edgeq.PTCFxModule(copy.deepcopy(network("residual")), "WC4_AT8", bias_calibration_factor=0) for _ in range(2)
    )
    once.calibrate(batches())
    twice.calibrate(batches(seed=7)).calibrate(batches(seed=7))
    offsets = once.module.conv1.weight_quantizer.offset, twice.module.conv1.weight_quantizer.offset
    assert not torch.equal(*offsets)
    fresh = edgeq.PTCFxModule(copy.deepcopy(network("residual")), "WC4_AT8", bias_calibration_factor=0)
    fresh.calibrate(batches(seed=7))
    assert torch.equal(fresh.module.conv1.weight_quantizer.offset, offsets[1])
