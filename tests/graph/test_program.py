"""Prepared and converted networks are modules like any other: copied, pickled, saved and loaded, at any moment."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from edgeq.graph.program import Program
from edgeq.graph.trace import trace
from tests.graph.parity import assert_exact, calibrated, images, leaves
from tests.graph.random_networks import RandomNetwork
from tests.networks import NETWORKS, batches, network


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, pickled, saved]


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_copy_computes_the_same_and_shares_nothing(name, duplicate):
    wrapped, x = edgeq.PTCFxModule(network(name)).calibrate(batches()), batches(1, seed=5)[0]
    for module in (wrapped, wrapped.convert()):
        expected = module(x)
        twin = duplicate(module)
        assert torch.equal(twin(x), expected)
        kept = {value.data_ptr() for value in module.state_dict().values()}
        assert not kept & {value.data_ptr() for value in twin.state_dict().values()}
        for value in twin.state_dict().values():
            value.zero_()
        assert torch.equal(module(x), expected)


@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_can_be_made_before_the_first_batch_and_trained_and_converted(duplicate):
    wrapped = edgeq.QATFxModule(network("residual").train(), total_epochs=4)
    twin = duplicate(wrapped)
    for module in (wrapped, twin):
        torch.manual_seed(0)
        module.train()(batches(1)[0]).sum().backward()
    for one, other in zip(wrapped.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    x = batches(1, seed=2)[0]
    assert torch.equal(assert_exact(wrapped.eval(), x)[0], assert_exact(twin.eval(), x)[0])


@pytest.mark.parametrize("seed", range(20))
def test_any_graph_survives_pickling(seed):
    model, x = RandomNetwork(seed), images(seed=seed)
    program = Program(model, trace(model))
    twin = pickled(program)
    assert [node.name for node in twin.fx_graph.nodes] == [node.name for node in program.fx_graph.nodes]
    assert twin.code.splitlines()[5:] == program.code.splitlines()[5:]  # annotations of types are left behind
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(leaves(twin(x)), leaves(model(x)), strict=True))


@pytest.mark.parametrize("seed", range(20, 30))
def test_any_converted_network_survives_pickling(seed):
    wrapped, x = calibrated(RandomNetwork(seed), images(seed=seed)), images(seed=seed)
    with torch.no_grad():
        expected = leaves(wrapped.convert()(x))
        assert all(torch.equal(a, b) for a, b in zip(leaves(pickled(wrapped.convert())(x)), expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(leaves(pickled(wrapped)(x)), expected, strict=True))


@pytest.mark.parametrize("convert", [False, True])
@torch.no_grad()
def test_a_state_dict_makes_another_network_of_the_same_form_the_same(convert):
    one = edgeq.PTCFxModule(network("separable", 0)).calibrate(batches(seed=0))
    other = edgeq.PTCFxModule(network("separable", 1)).calibrate(batches(seed=7))
    first, second = (wrapped.convert() if convert else wrapped for wrapped in (one, other))
    x = batches(1, seed=3)[0]
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_the_float_state_loads_into_a_wrapped_network_and_back():
    model, other = network("residual", 0), network("residual", 1)
    module = edgeq.PTCFxModule(model).module
    missing, unexpected = module.load_state_dict(other.state_dict(), strict=False)
    assert unexpected == []
    assert all("quantiz" in key or key.endswith("bias_shift") for key in missing)
    assert torch.equal(model.conv1.weight, other.conv1.weight)  # the user's own parameter
    with torch.no_grad():
        x = batches(1)[0]
        assert torch.allclose(module.run_float(x), other(x), atol=1e-5)


def test_what_the_graph_does_not_use_is_kept_in_copies():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)
            self.constant = torch.tensor([1.0, 2.0, 3.0])
            self.register_buffer("temporary", torch.ones(3), persistent=False)

        def forward(self, x):
            return self.used(x) * self.constant + self.temporary

    wrapped = calibrated(Spare().eval(), images(4, 3))
    for twin in (copy.deepcopy(wrapped), pickled(wrapped)):
        assert torch.equal(twin.module.spare.weight, wrapped.module.spare.weight)
        assert torch.equal(twin.module.constant, torch.tensor([1.0, 2.0, 3.0]))
        assert "temporary" not in twin.module.state_dict()
        assert torch.equal(twin(images(4, 3)), wrapped(images(4, 3)))


def test_an_error_inside_of_the_network_shows_the_line_of_its_code():
    wrapped = edgeq.PTCFxModule(nn.Sequential(nn.Linear(3, 3)).eval())
    with pytest.raises(RuntimeError) as caught:
        wrapped.train()(images(4, 5))
    entry = next(e for e in caught.traceback if str(e.path).startswith("<edgeq program"))
    assert 'getattr(self, "0")' in str(entry.statement)


def test_functions_are_pickled_by_the_name_that_they_are_imported_under():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.linear(x)), 2)
            return torch.cat([x, F.interpolate(x, scale_factor=1)], 1).to(torch.float32)[:, ::2]

    wrapped, x = calibrated(Functions().eval(), images()), images()
    with torch.no_grad():
        assert torch.equal(pickled(wrapped)(x), wrapped(x))
        assert torch.equal(pickled(wrapped.convert())(x), wrapped(x))


TAKEN = ["layers", "tensors", "groups", "schedule", "bank", "run", "code", "backend", "reasons", "tree", "operations"]


class Unlucky(nn.Module):
    """Children with names of what edgeq's own modules have."""

    def __init__(self):
        super().__init__()
        for name in TAKEN:
            setattr(self, name, nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
        self.quantizers = nn.Parameter(torch.full((3, 1, 1), 0.7))

    def forward(self, x):
        for name in TAKEN:
            x = x + getattr(self, name)(x) * self.quantizers
        return x


def test_children_may_be_called_as_the_programs_own_attributes(tmp_path):
    torch.manual_seed(0)
    model, image = Unlucky().eval(), batches(1, seed=4)[0]
    wrapped = edgeq.PTCFxModule(model).calibrate(batches())
    assert set(model.state_dict()) <= set(wrapped.module.state_dict())
    assert len(wrapped.module.quantized_layers()) == len(TAKEN)
    with torch.no_grad():
        expected = wrapped(image)
        assert (expected - model(image)).abs().max() < 0.05 * model(image).abs().max()
        for twin in (wrapped.convert(), copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
            assert torch.equal(twin(image), expected)
    assert wrapped.export(image, tmp_path / "model.onnx").passed
