"""Weights that are computed whenever they are read."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import edgeq
from edgeq.errors import TraceError
from edgeq.modules.computed import computation_of, has_computed_weight, picklable, take_over_hooks
from tests.graph.parity import images

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_a_hook_that_writes_a_weight_becomes_its_computation():
    layer, x = torch.nn.utils.weight_norm(nn.Linear(3, 4)), images(2, 3)
    expected = layer(x)
    hook = next(iter(layer._forward_pre_hooks.values()))
    take_over_hooks(layer)
    assert (layer.weight_hooks, len(layer._forward_pre_hooks)) == ({"weight": hook}, 0)
    assert "weight" not in vars(layer)
    compute, sources = computation_of(layer, "weight")
    assert {id(source) for source in sources} == {id(layer.weight_g), id(layer.weight_v), id(layer.bias)}
    assert torch.equal(nn.functional.linear(x, compute(), layer.bias), expected)
    assert "weight" not in vars(layer)  # nothing stays behind that could be out of date
    assert computation_of(layer, "bias") is None


def test_other_hooks_stay():
    layer = prune.random_unstructured(nn.Linear(3, 4), "weight", 0.5)
    seen = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    take_over_hooks(layer)
    assert [*layer.weight_hooks] == ["weight"]
    assert len(layer._forward_pre_hooks) == 1


NORMALIZED = [nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal]


@pytest.mark.parametrize("normalize", NORMALIZED)
def test_a_layer_that_is_the_whole_network_is_refused_where_its_weight_would_be_that_of_one_moment(normalize):
    layer = normalize(nn.Linear(3, 3))
    assert has_computed_weight(layer)
    with pytest.raises(TraceError, match=r"of the Linear layer is computed .* nn.Sequential\(layer\) will do"):
        edgeq.QATFxModule(layer, total_epochs=2)
    parameters = dict(layer.named_parameters())
    wrapped = edgeq.QATFxModule(nn.Sequential(layer), total_epochs=2)
    for _ in range(2):
        wrapped(images(8, 3)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("normalize", NORMALIZED)
def test_such_a_layer_stays_float_where_it_alone_could_be_a_part(normalize):
    class Looping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = normalize(nn.Linear(3, 3)), nn.Linear(3, 3)

        def forward(self, x):
            return self.second(self.first(x)) if x.sum() < 1e9 else x

    wrapped = edgeq.PTCFxModule(Looping())
    assert list(wrapped.module.parts) == ["second"]


def test_a_parametrized_weight_is_computed_once_for_parameters_that_stay():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4))).eval()
    wrapped = edgeq.PTCFxModule(model).calibrate([images(8, 3)])
    (layer,) = wrapped.module.quantized_layers()
    with torch.no_grad():
        first = layer.weight
        assert layer.weight is first
        layer.parametrizations.weight.original0.mul_(2)
        torch.testing.assert_close(layer.weight, 2 * first)
    assert layer.weight.requires_grad  # a gradient needs a computation of its own
    layer.weight.sum().backward()
    assert model[0].parametrizations.weight.original0.grad is not None


def test_hooks_on_loading_that_no_pickle_takes_are_left_behind():
    layer = parametrizations.weight_norm(nn.Linear(3, 4))
    assert len(layer._load_state_dict_pre_hooks) == 1
    assert len(picklable(vars(layer))["_load_state_dict_pre_hooks"]) == 0
    assert len(layer._load_state_dict_pre_hooks) == 1
