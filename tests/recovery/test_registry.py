"""A recovery step can be added from outside, by a decorator and a name in a preset."""

import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import SpecError
from edgeq.recovery import LAYER_STEPS
from tests.networks import batches, network


@pytest.fixture
def step():
    """A step of a user's that notes what it is shown and moves the bias."""
    calls = []

    @LAYER_STEPS.register("user_step")
    def user_step(layer, x):
        calls.append((layer.site.name, x.shape, torch.equal(layer.site.source(x), x)))
        with torch.no_grad():
            layer.bias.add_(0.25)

    yield calls
    del LAYER_STEPS._entries["user_step"]


def test_a_step_from_outside_sees_each_layer_with_its_quantized_input(step):
    wrapped = edgeq.PTCFxModule(network("attention"), {"inherits": "WC8_AT8", "recovery": ["user_step"]})
    assert step == []
    wrapped.calibrate(batches(2))
    assert [name for name, _, _ in step] == ["patch", "qkv", "proj", "fc1", "fc2", "head"]
    assert step[0][1] == (8, 3, 16, 16)  # all samples that were kept, once
    assert step[1][1] == (8, 16, 16)
    assert all(is_on_the_grid for _, _, is_on_the_grid in step)


def test_what_a_step_changes_is_in_force_before_the_next_layer_and_before_the_bias_is_measured(step):
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    plain, stepped = nn.Linear(6, 4), nn.Linear(6, 4)
    stepped.load_state_dict(plain.state_dict())
    edgeq.PTCFxModule(nn.Sequential(plain)).calibrate([x])
    edgeq.PTCFxModule(nn.Sequential(stepped), {"inherits": "WC8_AT8", "recovery": ["user_step"]}).calibrate([x])
    assert torch.allclose(stepped.bias, plain.bias, atol=1e-4)  # calibration takes the 0.25 away again


def test_steps_run_without_bias_calibration_too(step):
    preset = {"inherits": "WC8_AT8", "recovery": ["user_step"]}
    module = nn.Linear(6, 4)
    before = module.bias.detach().clone()
    edgeq.PTCFxModule(nn.Sequential(module), preset, bias_calibration_factor=0).calibrate([torch.randn(8, 6)])
    assert torch.equal(module.bias, before + 0.25)


def test_training_runs_no_steps(step):
    preset = {"inherits": "WC8_AT8", "recovery": ["user_step"]}
    wrapped = edgeq.QATFxModule(network("residual"), preset, total_epochs=4, bias_calibration_factor=1.0).train()
    wrapped(batches()[0])
    wrapped.eval()
    assert step == []


def test_a_name_that_nobody_registered_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="compensated_rounding"):
        edgeq.PTCFxModule(network("residual"), {"recovery": ["compensated_roundin"]})


def test_a_name_is_registered_once():
    with pytest.raises(SpecError, match="'compensated_rounding' is already registered"):
        LAYER_STEPS.register("compensated_rounding")(lambda layer, x: None)
