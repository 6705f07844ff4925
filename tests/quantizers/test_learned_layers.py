"""Quantizers that learn, in every kind of layer: what is trained is what is converted."""

import copy

import pytest
import torch
from torch import nn

import edgeq
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from edgeq.phase import Phase
from tests.graph.parity import assert_exact, relative_error
from tests.networks import network
from tests.quantizers.learning import DATA, optimizer_of, prepared, train_epoch

WEIGHTS = ["lsq", "lsqplus", "tqt", "dsq", "dorefa", "qil"]
TWO = {"scale": "power_of_two"}


def preset(name, granularity="channel", **changes):
    """Eight bits, so that a network of one layer hardly differs from the float one."""
    weight = {"quantizer": name, "granularity": granularity} | (TWO if name == "tqt" else {})
    activation = {"quantizer": name if name in ("lsq", "tqt", "dsq") else "lsq", "symmetric": True}
    return {"weight": weight, "activation": activation | (TWO if name == "tqt" else {})} | changes


class Scaled(nn.Module):
    """A norm in front of a layer, folded into it, and one behind whose gammas are of both signs and zero."""

    def __init__(self, layer, channels, before):
        super().__init__()
        self.before = nn.BatchNorm2d(3) if before else nn.Identity()
        self.layer, self.norm = layer, nn.BatchNorm2d(channels)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(-1, 1, channels))
            self.norm.weight[0] = 0.0

    def forward(self, x):
        return self.norm(self.layer(self.before(x)))


LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 6, 3), False),
    "grouped": (lambda: nn.Conv2d(3, 6, 3, groups=3), False),
    "norm before": (lambda: nn.Conv2d(3, 6, 3), True),
    "transposed": (lambda: nn.ConvTranspose2d(3, 6, 3), False),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(3, 6, 3, groups=3), False),
}


def steps(wrapped, data, count=3):
    learned = wrapped.quantizer_parameters()
    others = [parameter for parameter in wrapped.parameters() if all(parameter is not each for each in learned)]
    optimizer = torch.optim.SGD([{"params": others}, {"params": learned, "lr": 1e-6}], lr=1e-3)
    wrapped.train()
    for index in range(count):
        optimizer.zero_grad()
        wrapped(data[index % len(data)]).square().mean().backward()
        optimizer.step()
    return wrapped


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_between_norms_is_trained_and_converted_exactly(layer, name, granularity):
    torch.manual_seed(0)
    make, before = LAYERS[layer]
    model = Scaled(make(), 6, before).train()
    with torch.no_grad():
        for batch in DATA:
            model(batch)
    expected = copy.deepcopy(model).eval()(DATA[0])
    wrapped = edgeq.QATFxModule(model, preset(name, granularity), total_epochs=4, example_inputs=(DATA[0],))
    (quantized,) = wrapped.module.quantized_layers()
    assert quantized.norm_is_live
    steps(wrapped, DATA)
    parameters = wrapped.quantizer_parameters()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in parameters)
    wrapped.train()
    wrapped.train()  # the second epoch: norms are frozen
    steps(wrapped.eval(), DATA)
    assert not quantized.norm_is_live
    (found,) = assert_exact(wrapped.eval(), DATA[0])
    assert relative_error(found, expected) < 0.3


@pytest.mark.parametrize("strategy", list(NORM_STRATEGIES))
@pytest.mark.parametrize("name", ["lsq", "dorefa", "qil"])
def test_every_strategy_for_norms_trains_and_converts_exactly(name, strategy):
    model = prepared(preset(name, batch_norm=strategy))
    optimizer = optimizer_of(model, 0.02)
    losses = [train_epoch(model, optimizer, epoch) for epoch in range(4)]
    assert losses[-1] < 0.7 * losses[0]
    assert_exact(model.eval(), DATA[0])


class Words(nn.Module):
    """A table, a bag and a recurrence, whose weights are stored."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)
        with torch.no_grad():
            self.embedding.weight.mul_(0.2)  # small entries, which DoReFa's tanh hardly bends

    def forward(self, indices):
        return self.head(self.lstm(self.embedding(indices))[0])


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_stored_weights_are_trained_and_converted_exactly(name, granularity):
    torch.manual_seed(0)
    data = [torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    model = Words()
    expected = model.eval()(data[0]).detach()
    wrapped = edgeq.QATFxModule(model.train(), preset(name, granularity), total_epochs=2)
    steps(wrapped, data)
    parameters = wrapped.quantizer_parameters()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in parameters)
    (found,) = assert_exact(wrapped.eval(), data[0])
    assert relative_error(found, expected) < 0.2


def test_a_tensor_that_several_operations_share_starts_from_all_of_them():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return torch.cat([self.one(x), 3 * self.two(x)], 1)

    torch.manual_seed(0)
    wrapped = edgeq.QATFxModule(Shared().train(), preset("lsq"), total_epochs=2)
    shared = [tensor for tensor in wrapped.module.quantizers() if tensor.scheme.tensors > 1]
    wrapped(DATA[0]).sum().backward()
    wrapped(10 * DATA[0])
    for tensor in wrapped.module.quantizers():
        assert int(tensor.scheme.started) == int(tensor.observer.batches) == tensor.scheme.tensors
    assert len(shared) == 1
    assert all(parameter.grad is not None for parameter in wrapped.quantizer_parameters())
    assert_exact(wrapped.eval(), DATA[0])


def test_training_without_gradients_takes_what_the_optimizer_has_made():
    model = prepared(preset("lsq"))
    optimizer = optimizer_of(model)
    for epoch in range(4):
        train_epoch(model, optimizer, epoch)
    assert {tensor.phase for tensor in model.module.quantizers()} == {Phase.QUANTIZE}
    with torch.no_grad():
        for tensor in model.module.quantizers():
            tensor.scheme.step.mul_(1.5)
        model(DATA[0])
    for tensor in model.module.quantizers():
        assert float(tensor.scale / tensor.scheme.step.detach().abs()) == pytest.approx(1.0, abs=1.1e-3)


def test_compiled_training_has_the_losses_and_gradients_of_eager_training():
    eager, compiled = prepared(preset("lsq")), prepared(preset("lsq"))
    run = torch.compile(compiled, backend="aot_eager")
    for _ in range(2):
        losses = []
        for model in (eager, run):
            torch.manual_seed(1)
            loss = model(DATA[0]).square().mean()
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for mine, its in zip(eager.quantizer_parameters(), compiled.quantizer_parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, rtol=2e-2, atol=1e-4)


def test_parts_and_the_functional_interface_learn_too():
    model = edgeq.QATFxModule(network("residual").train(), "W4A4_LSQ", total_epochs=2, submodules=["conv2"])
    assert len(model.quantizer_parameters()) == len(model.module.quantizer_parameters()) > 0
    functional = edgeq.prepare_qat_fx(
        network("residual").train(), edgeq.QConfigMapping().set_global(preset("lsq")), None
    )
    functional(DATA[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in functional.quantizer_parameters())
