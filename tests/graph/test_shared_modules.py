"""Modules that are called twice, weights that are tied, and layers whose parameters live elsewhere."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeq
from tests.graph.parity import assert_exact, calibrated, images


class Twice(nn.Module):
    """A head that runs over two levels, as detectors have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.norm, self.act = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.head.weight.data.mul_(3)

    def forward(self, x):
        first = self.act(self.norm(self.head(self.stem(x))))
        second = self.act(self.norm(self.head(first)))
        return first, second


def test_each_call_of_a_shared_layer_has_ranges_of_its_own_and_one_weight():
    model, x = Twice().eval(), images()
    wrapped = calibrated(model, x)
    _, first, second = wrapped.module.quantized_layers()
    assert first.weight is second.weight is model.head.weight
    assert first.site.target is second.site.source is not second.site.target
    assert first.site.norm is second.site.norm
    assert (first.site.floor, second.site.floor) == (0.0, 0.0)
    assert float(first.site.target.scale) != float(second.site.target.scale)
    found = assert_exact(wrapped, x)
    for one, other, layer in zip(found, model(x), (first, second), strict=True):
        assert (one - other).abs().max() < 8 * layer.site.target.scale


def test_a_further_call_of_a_layer_is_told_as_tied_and_copies_keep_it_so():
    x = images()
    wrapped = calibrated(Twice().eval(), x)
    rows = [line for line in wrapped.explain().splitlines() if line.startswith("head")]
    assert ["8 bits symmetric channel free, tied" in row for row in rows] == [False, True]
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        _, first, second = other.module.quantized_layers()
        assert first.weight is second.weight is other.module.head.weight
        assert first.weight is not wrapped.module.head.weight
        assert first.site.target is not second.site.target
        for one, same in zip(other(x), wrapped(x), strict=True):
            assert torch.equal(one, same)


def test_a_shared_layer_adds_no_second_weight_to_the_state():
    model = Twice()
    module = edgeq.PTCFxModule(model).module
    assert [key for key in module.state_dict() if key.endswith("weight")] == [
        key for key in model.state_dict() if key.endswith("weight")
    ]
    assert len(list(module.parameters())) == len(list(model.parameters()))


def test_a_shared_layer_trains_through_both_calls():
    model, reference = Twice().train(), Twice().train()
    wrapped = edgeq.QATFxModule(model, num_batch_norm_update_epochs=1, num_observer_update_epochs=0, total_epochs=2)
    for network in (wrapped.train(), reference):
        network(images())[1].sum().backward()
    assert torch.equal(model.head.weight.grad, reference.head.weight.grad)
    quantized = edgeq.QATFxModule(Twice().train(), total_epochs=4).train()
    quantized(images())[1].sum().backward()
    found, expected = (network.head.weight.grad.flatten() for network in (quantized.module, reference))
    assert F.cosine_similarity(found, expected, dim=0) > 0.9
    assert_exact(quantized.eval(), images())


class Tied(nn.Module):
    """An embedding and the output layer over one matrix, the layer with a bias of its own."""

    def __init__(self, functional):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mix, self.functional = nn.Embedding(11, 6), nn.Linear(6, 6), functional
        self.bias = nn.Parameter(torch.randn(11))
        if not functional:
            self.out = nn.Linear(6, 11)
            self.out.weight = self.table.weight

    def forward(self, ids):
        x = self.mix(self.table(ids))
        return F.linear(x, self.table.weight, self.bias) if self.functional else self.out(x)


@pytest.mark.parametrize("functional", [True, False])
def test_a_matrix_tied_to_an_embedding_stays_tied(functional):
    model, ids = Tied(functional).eval(), torch.arange(11)[None]
    wrapped = calibrated(model, ids)
    layer = wrapped.module.quantized_layers()[-1]
    assert layer.weight is model.table.weight
    assert wrapped.module.table.weight is model.table.weight
    (found,) = assert_exact(wrapped, ids)
    assert (found - model(ids)).norm() < 0.02 * model(ids).norm()
    assert layer.bias is (model.bias if functional else model.out.bias)


def test_one_module_under_two_names_keeps_both_keys_and_one_parameter():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x):
            return self.second(F.relu(self.first(x)))

    model, x = Both().eval(), images(5, 4)
    wrapped = calibrated(model, x)
    state = wrapped.module.state_dict()
    assert {"first.weight", "second.weight", "first.bias", "second.bias"} <= {*state}
    assert all(layer.weight is model.first.weight for layer in wrapped.module.quantized_layers())
    assert len(wrapped.module.quantized_layers()) == 2
    assert_exact(wrapped, x)


def test_two_layers_over_one_parameter():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    torch.manual_seed(0)
    model, x = Shared().eval(), images(5, 4)
    wrapped = calibrated(model, x)
    assert wrapped.module.a.weight is wrapped.module.b.weight is model.a.weight
    assert torch.equal(wrapped.module.a.weight_quantizer.scale, wrapped.module.b.weight_quantizer.scale)
    assert_exact(wrapped, x)


def test_functional_layers_are_quantized_unless_their_weight_depends_on_the_input():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.gain = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4, 1))

        def forward(self, x):
            y = F.linear(F.linear(x, self.weight), (self.weight * self.gain).mT)
            return F.linear(y, self.weight * x.mean())

    model, x = Computed().eval(), images(6, 5)
    wrapped = calibrated(model, x)
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["linear", "linear_1"]
    assert wrapped.module.reasons["linear_2"] == "stays float: its weight is computed, not stored"
    assert_exact(wrapped, x)


def test_functional_layers_read_the_users_parameters_as_they_are_now():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3) / 5), nn.Parameter(torch.randn(4))
            self.register_buffer("mixing", torch.randn(5, 4))
            self.parts = nn.ParameterDict({"up": torch.randn(4, 2, 2, 2)})

        def forward(self, x):
            y = F.relu(F.conv2d(x, self.weight, self.bias, padding=1))
            return F.conv_transpose2d(y, weight=self.parts["up"], stride=2), F.linear(y.mean((2, 3)), self.mixing)

    model, x = Own().eval(), images()
    wrapped = calibrated(model, x)
    assert [layer.site.name for layer in wrapped.module.quantized_layers()] == ["conv2d", "conv_transpose2d", "linear"]
    before = assert_exact(wrapped, x)
    with torch.no_grad():
        model.weight.zero_()
    after = assert_exact(wrapped, x)
    assert not torch.equal(before[0], after[0])
    assert set(wrapped.module.state_dict()) >= set(model.state_dict())
