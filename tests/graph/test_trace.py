"""Capture keeps the user's tree, keys and Parameter objects, and says where it fails."""

import copy
import inspect

import pytest
import torch
from torch import fx, nn

import edgeq
from edgeq.errors import SpecError, TraceError
from edgeq.graph.trace import SCOPE, trace
from tests.graph.parity import assert_exact, calibrated, images
from tests.networks import NETWORKS, batches, network


@pytest.mark.parametrize("name", NETWORKS)
def test_float_keys_shapes_and_parameter_objects_stay(name):
    model = network(name)
    module = edgeq.QATFxModule(model, total_epochs=4).module
    state = module.state_dict()
    assert {key: state[key].shape for key in model.state_dict()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(key.startswith("quantization.") or ".weight_quantizer." in key or key.endswith(".bias_shift")
               for key in state.keys() - model.state_dict().keys())  # fmt: skip
    own = dict(module.named_parameters())
    assert all(own[key] is value for key, value in model.named_parameters())
    assert list(own) == [key for key, _ in model.named_parameters()]


def test_the_module_tree_stays_and_so_do_the_classes():
    model = network("separable")
    module = edgeq.PTCFxModule(model).module
    for path, child in model.named_modules():
        if path:
            assert isinstance(module.get_submodule(path), type(child)), path


def test_submodules_that_the_graph_does_not_call_stay():
    class WithSpare(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.spare = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.conv(x)

    module = edgeq.PTCFxModule(WithSpare()).module
    assert module.state_dict()["spare.weight"].shape == (5, 3, 1, 1)
    assert type(module.spare) is nn.Conv2d  # never called, so never quantized


def test_wrapping_leaves_the_users_model_as_it_was():
    model = network("residual").train()
    model.bn1.eval()
    attributes, expected = set(vars(model)), copy.deepcopy(model)
    x = batches(1)[0]
    edgeq.PTCFxModule(model, bias_calibration_factor=0).calibrate([x])  # which moves the user's own biases
    assert set(vars(model)) == attributes
    assert (model.training, model.bn1.training, model.bn2.training) == (True, False, True)
    assert model.relu.inplace
    assert type(model.conv1) is nn.Conv2d
    assert torch.equal(model.eval()(x), expected.eval()(x))


class WithConstants(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.offset = torch.tensor([1.0, -2.0, 0.5, 0.0])  # a tensor that is no buffer

    def forward(self, x):
        return self.conv(x) * torch.tensor(2.5) + self.offset[:, None, None]


def test_constant_tensors_go_with_the_network_and_not_with_the_users_model():
    model, x = WithConstants(), images()
    attributes = set(vars(model))
    wrapped = calibrated(model, x)
    (found,) = assert_exact(wrapped, x)
    step = wrapped.module.quantization.tensors.add.scale
    assert (found - model(x)).abs().max() < 4 * step
    assert set(vars(model)) == attributes


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.scale(x)
        return x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.Sequential(nn.ReLU(), Deciding())

    def forward(self, x):
        return self.blocks(self.first(x))


def test_the_error_of_an_untraceable_model_names_file_line_and_submodule():
    model = Outer().train()
    lines, first = inspect.getsourcelines(Deciding.forward)
    line = first + next(index for index, text in enumerate(lines) if "if x.sum()" in text)
    with pytest.raises(TraceError) as caught:
        trace(model)
    message = str(caught.value)
    assert f"{__file__}:{line}: if x.sum() > 0:" in message
    assert "submodule 'blocks.1' (Deciding)" in message
    assert "untraced=[name or class]" in message
    assert all(module.training for module in model.modules())  # also after the failure


@pytest.mark.parametrize("untraced", [["blocks.1"], [Deciding], ["nothing", Deciding]])
def test_an_untraced_submodule_stays_whole_and_float(untraced):
    model, x = Outer().eval(), images(8, 3)
    wrapped = calibrated(model, x, untraced=untraced)
    assert type(wrapped.module.blocks[1]) is Deciding
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["first"]
    assert "stays float" in next(line for line in wrapped.explain().splitlines() if line.startswith("blocks_1"))
    (found,) = assert_exact(wrapped, x)
    assert torch.allclose(found, model.blocks[1](wrapped.module.blocks[0](wrapped.module.first(x))), atol=0.1)


def test_a_graph_module_is_taken_as_it_is_and_not_changed():
    model, x = network("residual"), batches(1)[0]
    traced = fx.symbolic_trace(copy.deepcopy(model))
    code = traced.code
    wrapped = calibrated(traced, x)
    assert traced.code == code
    assert torch.equal(assert_exact(wrapped, x)[0], assert_exact(calibrated(model, x), x)[0])


def test_a_model_without_a_layer_to_quantize_is_refused():
    with pytest.raises(SpecError, match=r"Sequential has no layer that can be quantized: no convolution and no linear"):
        edgeq.PTCFxModule(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))


def test_lazy_modules_are_refused_until_they_have_seen_a_batch():
    model, x = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU()).eval(), torch.rand(2, 3, 8, 8)
    with pytest.raises(SpecError, match=r"without a shape: 0.weight, 0.bias, 1.weight, .*: run one through the float"):
        edgeq.PTCFxModule(model)
    model(x)
    assert_exact(calibrated(model, x), x)


def test_a_model_whose_attribute_is_in_the_way_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    model.quantization = nn.Identity()
    with pytest.raises(SpecError, match=r"already has an attribute 'quantization'.*rename"):
        edgeq.PTCFxModule(model)


def test_constants_that_were_met_while_tracing_move_with_the_network_and_are_not_saved():
    wrapped, x = calibrated(WithConstants(), images()), images()
    constants = [name for name in wrapped.module._buffers if name.startswith("_tensor_constant")]
    assert constants
    assert not set(constants) & set(wrapped.module.state_dict())
    wrapped.to(torch.float64)
    assert {wrapped.module.get_buffer(name).dtype for name in constants} == {torch.float64}
    wrapped.to("meta")
    assert {wrapped.module.get_buffer(name).device.type for name in constants} == {"meta"}
    twin = copy.deepcopy(calibrated(WithConstants(), x))
    assert_exact(twin, x)


def test_a_node_knows_the_module_that_made_it_and_nothing_else():
    nodes = trace(network("residual")).nodes
    assert {key for node in nodes for key in node.meta} == {SCOPE}
    assert {node.meta[SCOPE] for node in nodes} > {"", "conv1", "bn1"}


def test_the_graph_of_a_graph_module_is_copied():
    model = fx.symbolic_trace(network("residual"))
    graph = trace(model)
    assert graph is not model.graph
    assert [str(node) for node in graph.nodes] == [str(node) for node in model.graph.nodes]
    assert {node.graph for node in graph.nodes} == {graph}
